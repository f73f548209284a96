from __future__ import annotations

from typing import Any

import pytest

from serving.api.edge import DIRECT, RAW_SEND, Edge

Headers = list[tuple[bytes, bytes]]


async def through(headers: Headers, answer: Headers, kind: str = "http") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scope that the app sees and what the server gets, for these headers of the client and of the app."""
    seen: dict[str, Any] = {}
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    await Edge(app)({"type": kind, "headers": headers}, receive, send)
    return seen, sent


async def test_the_callers_request_id_is_kept() -> None:
    seen, _ = await through([(b"x-request-id", b"abc"), (b"x-amzn-trace-id", b"t")], [])
    assert dict(seen["headers"])[b"x-request-id"] == b"abc"


@pytest.mark.parametrize("given", [[], [(b"x-request-id", b"")]])
async def test_without_one_the_trace_is_the_id(given: Headers) -> None:
    seen, _ = await through([*given, (b"x-amzn-trace-id", b"Root=1")], [])
    assert [value for name, value in seen["headers"] if name == b"x-request-id"] == [b"Root=1"]


@pytest.mark.parametrize("given", [[], [(b"x-request-id", b"")], [(b"x-amzn-trace-id", b"")]])
async def test_else_it_is_new(given: Headers) -> None:
    ids = set()
    for _ in range(2):
        seen, _ = await through(given, [])
        (value,) = (value for name, value in seen["headers"] if name == b"x-request-id")
        assert len(value) == 32
        ids.add(value)
    assert len(ids) == 2


@pytest.mark.parametrize(
    "name",
    [
        b"x-request-disconnect-disabled",
        b"x-request-timeout-seconds",
        b"x_request_timeout_seconds",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
    ],
)
async def test_serves_own_headers_are_not_for_clients(name: bytes) -> None:
    seen, _ = await through([(name, b"1"), (b"x-request-timeout", b"2"), (b"accept", b"*/*")], [])
    assert [key for key, _ in seen["headers"]] == [b"x-request-timeout", b"accept", b"x-request-id"]


async def test_one_id_goes_back() -> None:
    answer = [(b"content-type", b"a"), (b"x-request-id", b"1"), (b"X-Request-ID", b"2"), (b"set-cookie", b"b")]
    _, sent = await through([], answer)
    assert sent[0]["headers"] == [answer[0], answer[1], answer[3]]
    assert sent[1] == {"type": "http.response.body", "body": b"x"}


async def test_the_servers_own_send_is_at_hand() -> None:
    seen, sent = await through([], [])
    await seen["extensions"][RAW_SEND]({"type": "straight"})
    assert sent[-1] == {"type": "straight"}
    assert DIRECT not in seen["extensions"]  # this is no uvicorn


async def test_what_is_not_http_passes_untouched() -> None:
    headers = [(b"x-request-timeout-seconds", b"1")]
    seen, _ = await through(headers, [], kind="websocket")
    assert seen == {"type": "websocket", "headers": headers}
