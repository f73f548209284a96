"""What the layers above may ask of an engine, and the stream they get back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from serving.core import Output, Request


class TokenStream(AsyncIterator[list[Output]]):
    """The outputs of one request, fed by a link and read by one task.

    Each item is the list of outputs that came since the last read: one under normal load,
    several when the reader was slower than the engine. It ends after an output with a finish
    reason, or raises the error that `fail` was given.
    """

    __slots__ = ("_ended", "_error", "_outputs", "_waiter", "on_first_output", "on_token")

    def __init__(self) -> None:
        self._outputs: list[Output] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: BaseException | None = None
        self.on_first_output: Callable[[], None] | None = None
        # While the reader waits, plain tokens may go to this instead, at once and without waking
        # it. It returns False for a token that it cannot take; the token is then queued.
        self.on_token: Callable[[int], bool] | None = None

    @property
    def ended(self) -> bool:
        """The engine has nothing more to say: no abort is needed."""
        return self._ended

    def feed_token(self, token: int) -> None:
        """A token with nothing to say about it: the common case."""
        try:
            if not self._outputs and self.on_token is not None and self.on_token(token):
                return
        except Exception as error:  # of this request only: the link and its others go on
            self.on_token, self._error = None, error  # and it has not ended: leaving it aborts it
            self._wake()
            return
        self.feed(Output([token]))

    def feed(self, output: Output) -> None:
        self._outputs.append(output)
        if self.on_first_output is not None:
            self.on_first_output()
            self.on_first_output = None
        if output.finish is not None:
            self._ended = True
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Does nothing to a stream that has ended."""
        if self._ended:
            return
        self._error = error
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def __anext__(self) -> list[Output]:
        if not self._outputs:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            if not self._outputs:
                assert self._error is not None
                raise self._error
        outputs, self._outputs = self._outputs, []
        return outputs


class Engine(Protocol):
    """Whatever can generate: a link, a pool, a scheduler. Every layer has this one verb."""

    def generate(self, request: Request) -> AbstractAsyncContextManager[TokenStream]:
        """Start `request`; leaving the context frees everything it holds below.

        The stream passes through the layers untouched, so a layer costs a request something and
        a token nothing. Raises `EngineRefused` where an engine will not take the request and
        `EngineLost` when the engine or its link goes away.
        """
        ...
