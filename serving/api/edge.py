"""The outermost ASGI layer, outside Ray Serve's own: what Serve would do to clients, it does first or undoes.

It settles the request id (Serve invents one and answers with two), drops headers by which a client
could change Serve's behaviour, and lets token writes go to the server's own `send`.
"""

from __future__ import annotations

import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

RAW_SEND = "serving.send"  # in scope["extensions"]: the server's own `send`
DIRECT = "serving.direct"  # in scope["extensions"]: a `DirectWriter`, where the server is uvicorn on httptools

# Serve's: switch off cancelling, set its timeout, choose a multiplexed model.
_SERVES_OWN = {b"x-request-disconnect-disabled", b"x-request-timeout-seconds", b"serve_multiplexed_model_id"}


class DirectWriter:
    """Parts of a streamed body, written to the connection from outside any task.

    For the time between a response's start and its end. `ready` must be asked before each `write`.
    """

    __slots__ = ("_cycle", "_flow", "_write", "writes")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write
        self.writes = 0

    def ready(self) -> bool:
        """The client is there and reads."""
        return not self._flow.write_paused and not self._cycle.disconnected and bool(self._cycle.chunked_encoding)

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._write(b"%x\r\n%b\r\n" % (len(data), data))


class Edge:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if pair[0].replace(b"-", b"_") not in _NORMALISED]
        ids = {name: value for name, value in reversed(headers) if name in _IDS and _is_text(value)}
        request_id = ids.get(b"x-request-id") or ids.get(b"x-amzn-trace-id") or uuid.uuid4().hex.encode()
        headers = [pair for pair in headers if pair[0] != b"x-request-id"]
        headers.append((b"x-request-id", request_id))
        scope["headers"] = headers
        extensions = scope.setdefault("extensions", {})
        extensions[RAW_SEND] = send
        cycle = getattr(send, "__self__", None)
        if isinstance(cycle, RequestResponseCycle):
            extensions[DIRECT] = DirectWriter(cycle)

        async def send_one_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _without_second_id(message["headers"])
            await send(message)

        await self._app(scope, receive, send_one_id)


_IDS = (b"x-request-id", b"x-amzn-trace-id")


def _is_text(value: bytes) -> bool:
    """Serve reads the request id as UTF-8, and fails where it is not."""
    try:
        return bool(value.decode())
    except UnicodeDecodeError:
        return False


_NORMALISED = {name.replace(b"-", b"_") for name in _SERVES_OWN}


def _without_second_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    seen, kept = False, []
    for name, value in headers:
        if name.lower() == b"x-request-id":
            if seen:
                continue
            seen = True
        kept.append((name, value))
    return kept
