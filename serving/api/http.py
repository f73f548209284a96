"""Plain ASGI: reading a body within bounds, answering once, noticing that the client is gone.

No framework object stands between a token and the socket: a response class would cost each token
more than all of this file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from starlette.types import Receive, Scope, Send

from serving.api.edge import DIRECT, RAW_SEND, DirectWriter
from serving.errors import BadField, BadSyntax, TooLarge
from serving.settings import LimitSettings

Headers = list[tuple[bytes, bytes]]

SSE: Headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
JSON: Headers = [(b"content-type", b"application/json")]


class ClientGone(Exception):
    """The client closed its connection. Nobody is left to tell."""


async def read_body(receive: Receive, headers: Mapping[bytes, str], limits: LimitSettings) -> bytes:
    """The whole body. Raises `TooLarge`, `BadSyntax` for a client that is too slow, or `ClientGone`."""
    most = limits.body_bytes
    declared = headers.get(b"content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise TooLarge(f"the body has {declared} bytes, at most {most} are allowed")
    body: bytes = b""
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > most:
                    raise TooLarge(f"the body has more than {most} bytes")
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        raise BadSyntax(f"the body did not arrive within {limits.body_seconds:g} seconds") from None


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncGenerator[None]:
    """Run the body of the `async with` until the client goes away; then it ends with `ClientGone`."""
    task, gone = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


class Reply:
    """One HTTP response, started at most once."""

    def __init__(self, scope: Scope, send: Send, headers: Headers) -> None:
        self._send = send
        extensions = scope.get("extensions", {})
        self._send_more: Send = extensions.get(RAW_SEND, send)
        self.direct: DirectWriter | None = extensions.get(DIRECT)
        self._headers = headers
        self._starting = asyncio.Lock()
        self._writes = 0
        self.started = False

    @property
    def writes(self) -> int:
        """How often something was written: a stream that does not write is silent."""
        return self._writes + (self.direct.writes if self.direct is not None else 0)

    async def start(self, status: int, headers: Headers) -> None:
        """Does nothing when it has started: a heartbeat may have come first."""
        async with self._starting:
            if not self.started:
                await self._send({"type": "http.response.start", "status": status, "headers": headers + self._headers})
                self.started = True

    async def write(self, data: bytes) -> None:
        """Part of the body, past the layers between: they only care for the first and the last."""
        self._writes += 1
        await self._send_more({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, body: bytes, headers: Headers = JSON) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        await self.finish(body)


_TICKS = 3  # looks at a stream in the time after which it counts as silent


@asynccontextmanager
async def heartbeat(reply: Reply, seconds: float, headers: Callable[[], Headers]) -> AsyncGenerator[None]:
    """While inside, a stream that has been silent for `seconds` gets an SSE comment, and is started if need be.

    A token pays nothing for it: the watcher looks a few times whether anything was written.
    """

    async def watch() -> None:
        seen, quiet = reply.writes, 0
        while True:
            await asyncio.sleep(seconds / _TICKS)
            quiet = quiet + 1 if reply.writes == seen else 0
            if quiet >= _TICKS:
                await reply.start(200, headers())
                await reply.write(b":\n\n")
                quiet = 0
            seen = reply.writes

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


def seconds_header(headers: Mapping[bytes, str], name: str, most: float) -> float:
    """A positive number of seconds from a header, capped at `most`. Raises `BadField` naming the header."""
    value = headers.get(name.encode())
    if value is None:
        return most
    try:
        seconds = float(value)
    except ValueError:
        raise BadField(name, f"must be a number of seconds, not {value!r}") from None
    if not 0 < seconds < float("inf"):
        raise BadField(name, f"must be a positive number of seconds, not {value}")
    return min(seconds, most)


def flag_header(headers: Mapping[bytes, str], name: str, default: bool) -> bool:
    """false, 0, no and off are false, anything else is true, as the Hub's API reads its headers."""
    value = headers.get(name.encode())
    return default if value is None else value.strip().lower() not in ("false", "0", "no", "off")
