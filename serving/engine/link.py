"""The link: one TCP connection between a front and an engine, and what both ends share.

Plain TCP rather than a message library, because the three promises of the link are promises about
*connections*: a dead engine is known at once (the kernel closes its sockets), a malformed message
drops that peer, and a peer that stops reading is cut off when its send buffer is full.
docs/decisions/0003 has the measurements.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import struct
from array import array
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import msgspec

from serving.core import EngineView, Request
from serving.engine import messages
from serving.engine.base import TokenStream
from serving.errors import EngineLost, EngineRefused

log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")
MAX_FRAME = 64 * 2**20  # bytes; a prompt of 1M tokens is 4 MiB
HELLO_BYTES = 4096  # no frame may be larger before the peer has proved that it knows the secret


def proof(secret: bytes, nonce: bytes) -> bytes:
    """What a front answers to a challenge."""
    return hmac.digest(secret, nonce, "sha256")


class FramedProtocol(asyncio.Protocol):
    """Length-prefixed frames over a stream transport.

    A frame that is too long, or that `handle` cannot make sense of, closes the connection.
    """

    max_frame = MAX_FRAME
    transport: asyncio.Transport | None = None
    _buffer: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def handle(self, frame: memoryview) -> None:
        """Handle one frame. ValueError or msgspec.MsgspecError mean that it is malformed."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        view, at, end = memoryview(data), 0, len(data)
        try:
            while end - at >= 4:
                (length,) = _LENGTH.unpack_from(data, at)
                if length > self.max_frame:
                    raise ValueError(f"frame of {length} bytes, at most {self.max_frame} are allowed")
                if end - at - 4 < length:
                    break
                self.handle(view[at + 4 : at + 4 + length])
                at += 4 + length
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("dropping the peer of a malformed message: %s", error)
            self.abort()
        except Exception:
            log.exception("dropping the peer of a message that could not be handled")
            self.abort()
        self._buffer = data[at:] if at < end and self.transport is not None else b""

    def send(self, message: msgspec.Struct) -> None:
        payload = messages.encode(message)
        if self.transport is not None:
            self.transport.write(_LENGTH.pack(len(payload)) + payload)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
            self.transport = None


class EngineLink(FramedProtocol):
    """A front's end of the link to one engine: submits, aborts, and routes outputs to streams.

    `on_report` is called after every report, with `view` up to date; `on_lost` once, when the
    connection is gone. Both are called from the event loop and must not block.
    """

    def __init__(
        self,
        front: str,
        secret: bytes,
        on_report: Callable[[EngineLink], None],
        on_lost: Callable[[EngineLink], None],
    ) -> None:
        self._front = front
        self._secret = secret
        self._on_report = on_report
        self._on_lost = on_lost
        self._slots = itertools.count()
        self._streams: dict[int, TokenStream] = {}
        self._welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.view: EngineView | None = None
        self.submitted = 0
        self.last_heard = asyncio.get_running_loop().time()

    @classmethod
    async def connect(cls, host: str, port: int, timeout: float, **options: Any) -> EngineLink:
        """Open a link and prove the secret. Raises `EngineLost` when that fails in `timeout` seconds."""
        link: EngineLink | None = None
        try:
            async with asyncio.timeout(timeout):
                _, link = await asyncio.get_running_loop().create_connection(lambda: cls(**options), host, port)
                await link._welcomed
        except BaseException as error:
            if link is not None:
                link.abort()
            if isinstance(error, OSError | TimeoutError):
                raise EngineLost(f"no link to the engine at {host}:{port}: {error!r}") from error
            raise
        return link

    @asynccontextmanager
    async def generate(self, request: Request) -> AsyncGenerator[TokenStream]:
        slot, stream = next(self._slots), TokenStream()
        if self.transport is None:
            raise EngineLost("the link to the engine is closed")
        self._streams[slot] = stream
        self.submitted += 1
        prompt = array("i", request.prompt).tobytes()
        self.send(messages.Submit(slot, prompt, request.sampling, request.tenant, request.priority, request.grammar))
        try:
            yield stream
        finally:
            self._streams.pop(slot, None)
            if not stream.ended:
                self.send(messages.Abort([slot]))

    def handle(self, frame: memoryview) -> None:
        match messages.decode_to_front(frame):
            case messages.Step() as step:
                self._step(step)
            case messages.Rejected(slot, reason):
                if stream := self._streams.get(slot):
                    stream.fail(EngineRefused(reason))
            case messages.Challenge(nonce, version):
                if version != messages.VERSION:
                    raise ValueError(f"the engine speaks link version {version}, this front {messages.VERSION}")
                self.send(messages.Hello(self._front, proof(self._secret, nonce)))
            case messages.Welcome() as welcome:
                self.view = EngineView(**msgspec.structs.asdict(welcome), free_blocks=welcome.total_blocks)
                if not self._welcomed.done():
                    self._welcomed.set_result(None)

    def _step(self, step: messages.Step) -> None:
        streams = self._streams
        for slot, token in zip(step.slots, step.tokens, strict=True):
            stream = streams.get(slot)
            if stream is not None:  # aborted ones may still be in flight
                stream.feed_token(token)
        for slot, output in zip(step.output_slots, step.outputs, strict=True):
            stream = streams.get(slot)
            if stream is not None:
                stream.feed(output)
        view, report = self.view, step.report
        if view is None:
            raise ValueError("a step before the welcome")
        view.reports = report.number
        view.running = report.running
        view.waiting = report.waiting
        view.free_blocks = report.free_blocks
        view.live = report.live
        view.received = report.received
        view.step_seconds = report.step_seconds
        self.last_heard = asyncio.get_running_loop().time()
        self._on_report(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        lost = EngineLost("the link to the engine broke")
        if not self._welcomed.done():
            self._welcomed.set_exception(lost)
            with suppress(EngineLost):  # `connect` may have given up: mark it as seen
                self._welcomed.exception()
        for stream in self._streams.values():
            stream.fail(lost)
        self._on_lost(self)
