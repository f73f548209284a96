"""Plain ASGI: reading a body within bounds, answering once, noticing that the client is gone.

No framework object stands between a token and the socket: a response class would cost each token
more than all of this file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

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
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self._headers})

    async def write(self, data: bytes) -> None:
        """Part of the body, past the layers between: they only care for the first and the last."""
        await self._send_more({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, body: bytes, headers: Headers = JSON) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        await self.finish(body)


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
