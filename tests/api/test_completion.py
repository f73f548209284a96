"""The endpoint in process: what goes in, what comes out, and how it ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from serving.api.edge import DIRECT
from serving.core import FinishReason, Output, Request
from serving.engine.base import TokenStream
from serving.errors import DeadlineExceeded, EngineLost, EngineRefused, Overloaded
from serving.models.text import ModelText
from serving.settings import HttpSettings, Settings
from tests.api.hand import (
    HELLO,
    HUGGINGFACE,
    OPENAI,
    HandScheduler,
    Log,
    Wire,
    app_of,
    chunks,
    client_of,
    tool,
    until,
)


@pytest.fixture
def scheduler(text: ModelText) -> HandScheduler:
    return HandScheduler(text)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def app(scheduler: HandScheduler, text: ModelText, log: Log) -> ASGIApp:
    return app_of(text, scheduler, log)


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


async def test_an_openai_answer(client: httpx.AsyncClient, log: Log) -> None:
    answer = await client.post(OPENAI, json={"model": "alias", "messages": HELLO}, headers={"x-request-id": "abc"})
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "abc"
    body = answer.json()
    assert isinstance(body.pop("created"), int)
    assert isinstance(body.pop("system_fingerprint"), str)
    usage = body.pop("usage")
    assert usage["completion_tokens"] + usage["prompt_tokens"] == usage["total_tokens"]
    assert body == {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "model": "alias",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello wörld"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }
    (finished,) = log.finished_requests
    assert (finished.outcome, finished.model) == ("completed", "org/tiny")
    assert finished.generated_tokens == usage["completion_tokens"]


async def test_an_openai_stream(client: httpx.AsyncClient) -> None:
    body = {"model": "org/tiny", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    answer = await client.post(OPENAI, json=body)
    assert answer.headers["content-type"] == "text/event-stream"
    first, *middle, last, usage = chunks(answer)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in middle)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == "Hello wörld"
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert all(chunk["usage"] is None for chunk in (first, *middle, last))
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(middle)


async def test_a_huggingface_stream(client: httpx.AsyncClient) -> None:
    answer = await client.post(HUGGINGFACE, json={"messages": HELLO, "stream": True})
    *middle, last = chunks(answer)
    for chunk in (*middle, last):
        assert set(chunk) == {"id", "object", "created", "model", "system_fingerprint", "choices"}
        assert set(chunk["choices"][0]["delta"]) == {"role", "content"}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == "Hello wörld"
    assert last["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": "stop",
    }


async def test_the_header_overrides_the_path(client: httpx.AsyncClient) -> None:
    answer = await client.post(HUGGINGFACE, json={"messages": HELLO}, headers={"x-dialect": "openai"})
    assert "prompt_tokens_details" in answer.json()["usage"]
    wrong = await client.post(OPENAI, json={}, headers={"x-dialect": "tgi"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-dialect")


async def test_stop_strings_end_the_answer(client: httpx.AsyncClient, scheduler: HandScheduler) -> None:
    for path, reason in ((OPENAI, "stop"), (HUGGINGFACE, "stop_sequence")):
        body = {"model": "org/tiny", "messages": HELLO, "stop": ["o w"]}
        choice = (await client.post(path, json=body)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hell", reason)
    assert scheduler.left == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"presence_penalty": 9}, "presence_penalty"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else value,
)
async def test_bad_fields_are_named_and_nothing_is_queued(
    client: httpx.AsyncClient, scheduler: HandScheduler, change: dict[str, Any], field: str
) -> None:
    body = {"model": "org/tiny", "messages": HELLO} | change
    openai = await client.post(OPENAI, json=body)
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, field)
    huggingface = await client.post(HUGGINGFACE, json=body)
    assert huggingface.status_code == 422
    assert huggingface.json()["error_type"] == "validation"
    assert f"{field}: " in huggingface.json()["error"]
    assert scheduler.requests == []


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        (b"", None, "not valid JSON"),
        (b'{"model": ', None, "line 1 column"),
        (b"[]", None, "must be a JSON object, not an array"),
        (b"[" * 200_000, None, "not valid JSON"),
        (b'{"messages": ' + b"[" * 200_000, None, "not valid JSON"),
        (
            b'{"model": "org/tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "messages[0].content",
            "surrogate",
        ),
        (b'{"model": "org/tiny", "messages": [{"role": "user", "content": "a\\u0000"}]}', "messages[0].content", "NUL"),
        (b'{"model": "org/tiny", "messages": [{"role": "us\\u0000er", "content": "a"}]}', "messages[0].role", "NUL"),
        (b"\xff\xfe", None, "not valid JSON"),
    ],
    ids=range(9),
)
async def test_bad_bodies(
    client: httpx.AsyncClient, scheduler: HandScheduler, raw: bytes, field: str | None, says: str
) -> None:
    answer = await client.post(OPENAI, content=raw)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert says in error["message"]
    assert (await client.post(HUGGINGFACE, content=raw)).status_code in (400, 422)
    assert scheduler.requests == []


async def test_too_large(client: httpx.AsyncClient) -> None:
    answer = await client.post(OPENAI, content=b" " * 2_000_001)
    assert answer.status_code == 413

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(21):
            yield b" " * 100_000

    assert (await client.post(OPENAI, content=drip())).status_code == 413


async def test_unknown_models_and_routes(client: httpx.AsyncClient) -> None:
    answer = await client.post(OPENAI, json={"model": "nope", "messages": HELLO})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    answer = await client.post("/models/no/pe/v1/chat/completions", content=b"not even JSON")
    assert (answer.status_code, answer.json()["error"]) == (404, "Model no/pe does not exist")
    assert (await client.get(OPENAI)).status_code == 404
    assert (await client.get("/v1/models/org/tiny")).json()["id"] == "org/tiny"


@pytest.mark.parametrize("value", ["x", "0", "-1", "inf", "nan"])
async def test_bad_timeouts_name_the_header(client: httpx.AsyncClient, value: str) -> None:
    body = {"model": "org/tiny", "messages": HELLO}
    answer = await client.post(OPENAI, json=body, headers={"x-request-timeout": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout")


async def test_refusals_say_when_to_come_back(client: httpx.AsyncClient, scheduler: HandScheduler) -> None:
    scheduler.refuse = Overloaded("Model is overloaded", retry_after=2.2)
    answer = await client.post(OPENAI, json={"model": "org/tiny", "messages": HELLO, "stream": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    scheduler.ready = False
    answer = await client.post(HUGGINGFACE, json={"messages": HELLO})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json() == {
        "error": "Model org/tiny is currently loading",
        "error_type": "loading",
        "estimated_time": 5.0,
    }
    assert 0.25 <= answer.elapsed.total_seconds() < 5  # some clients come back at once


async def test_a_failure_before_the_first_token_is_a_status(
    client: httpx.AsyncClient, scheduler: HandScheduler, log: Log
) -> None:
    scheduler.script = lambda stream, request: stream.fail(EngineLost("gone"))
    answer = await client.post(OPENAI, json={"model": "org/tiny", "messages": HELLO, "stream": True})
    assert answer.status_code == 500
    assert log.finished_requests[0].outcome == "engine_fault"


@pytest.mark.parametrize("path", [OPENAI, HUGGINGFACE])
async def test_a_failure_after_it_is_one_event(client: httpx.AsyncClient, scheduler: HandScheduler, path: str) -> None:
    def script(stream: TokenStream, request: Request) -> None:
        stream.feed(Output([504], cached_tokens=0))
        asyncio.get_running_loop().call_later(0.02, stream.fail, EngineLost("gone"))

    scheduler.script = script
    answer = await client.post(path, json={"model": "org/tiny", "messages": HELLO, "stream": True})
    *_, last = chunks(answer)
    assert answer.status_code == 200
    if path == OPENAI:
        assert last["error"]["message"] == "gone"
    else:
        assert last == {"error": "gone", "error_type": "generation"}


async def test_defaults_of_the_dialects(client: httpx.AsyncClient, scheduler: HandScheduler) -> None:
    await client.post(OPENAI, json={"model": "org/tiny", "messages": HELLO, "temperature": None})
    await client.post(HUGGINGFACE, json={"messages": HELLO, "seed": 2**64 - 1, "model": 5})
    openai, huggingface = scheduler.requests
    assert openai.sampling.max_tokens == 512 - len(openai.prompt)
    assert huggingface.sampling.max_tokens == 100
    assert huggingface.sampling.seed == 2**63 - 1


async def test_a_client_that_goes_away_ends_its_request(app: ASGIApp, scheduler: HandScheduler, log: Log) -> None:
    scheduler.script = lambda stream, request: None  # an engine that says nothing
    body = json.dumps({"model": "org/tiny", "messages": HELLO}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    gone = asyncio.Event()

    async def receive() -> Any:
        for message in messages:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pytest.fail(f"nobody is there to read {message}")

    scope = {"type": "http", "method": "POST", "path": OPENAI, "headers": []}
    task = asyncio.create_task(app(scope, receive, send))
    while not scheduler.requests:
        await asyncio.sleep(0)
    gone.set()
    await asyncio.wait_for(task, 2)
    assert scheduler.left == 1
    assert log.finished_requests[0].outcome == "cancelled"


STREAM = {"model": "org/tiny", "messages": HELLO, "stream": True}


async def test_a_client_that_goes_away_in_the_middle(app: ASGIApp, scheduler: HandScheduler, log: Log) -> None:
    scheduler.script = lambda stream, request: stream.feed(Output([504], cached_tokens=3))
    wire = Wire(app, STREAM)
    await until(lambda: len(wire.sent) == 2)
    wire.gone.set()
    await asyncio.wait_for(wire.task, 2)
    assert len(wire.sent) == 2  # nothing more for nobody
    assert scheduler.left == 1
    (finished,) = log.finished_requests
    assert (finished.outcome, finished.generated_tokens, finished.cached_tokens) == ("cancelled", 1, 3)
    assert finished.first_token_seconds is not None


async def test_no_byte_before_the_first_token(app: ASGIApp, scheduler: HandScheduler) -> None:
    streams: list[TokenStream] = []
    scheduler.script = lambda stream, request: streams.append(stream)
    wire = Wire(app, STREAM)
    await until(lambda: streams)
    for _ in range(10):
        await asyncio.sleep(0)
    assert wire.sent == []
    streams[0].feed(Output([504], FinishReason.LENGTH, cached_tokens=0))
    await wire.task
    assert [message["type"] for message in wire.sent] == ["http.response.start", *["http.response.body"] * 2]


class HandWriter:
    """Takes bytes at once, as long as it is said to be ready."""

    def __init__(self, sent: Callable[[], list[Any]]) -> None:
        self.able = True
        self._sent = sent
        self.taken = self.writes = 0

    def ready(self) -> bool:
        return self.able

    def write(self, data: bytes) -> None:
        assert self.able
        self.taken += 1
        self.writes += 1
        self._sent().append({"body": data})


@pytest.mark.parametrize("path", [OPENAI, HUGGINGFACE])
async def test_tokens_straight_to_the_socket_are_the_same_stream(
    app: ASGIApp, scheduler: HandScheduler, text: ModelText, path: str
) -> None:
    """Whatever way each token takes, slow reader or not, the bytes are those of a plain stream, in order."""
    tokens = text.encode("naïve 🦜 one two three 日本 four five")
    rng = random.Random(1)
    streams: list[TokenStream] = []
    scheduler.script = lambda stream, request: streams.append(stream)

    async def run(writer: HandWriter | None) -> bytes:
        streams.clear()
        wire = Wire(app, STREAM, path, **({DIRECT: writer} if writer else {}))
        if writer:
            writer._sent = lambda: wire.sent
        await until(lambda: streams)
        streams[0].feed(Output([tokens[0]], cached_tokens=0))
        for token in tokens[1:]:
            for _ in range(rng.choice((0, 0, 1, 2, 3))):
                await asyncio.sleep(0)
            if writer:
                writer.able = rng.random() < 0.7
            streams[0].feed_token(token)
        streams[0].feed(Output([2], FinishReason.STOP))
        await wire.task
        raw = b"".join(message.get("body", b"") for message in wire.sent)
        events = [json.loads(event[6:]) for event in raw.split(b"\n\n")[:-2]]
        assert raw.endswith(b"data: [DONE]\n\n")
        return json.dumps([event["choices"] for event in events]).encode()

    expected = await run(None)
    writers = [HandWriter(list) for _ in range(20)]
    for writer in writers:
        assert await run(writer) == expected
    assert 0 < sum(writer.taken for writer in writers) < len(writers) * len(tokens)


async def test_what_comes_after_a_stop_string_is_not_shown(client: httpx.AsyncClient, scheduler: HandScheduler) -> None:
    """The reader was slow: the token that ends the answer and later ones came together."""
    scheduler.script = scheduler.say("one stop two stop", FinishReason.LENGTH)
    for path in (OPENAI, HUGGINGFACE):
        for stream in (False, True):
            answer = await client.post(
                path, json={"model": "org/tiny", "messages": HELLO, "stop": " stop", "stream": stream}
            )
            if stream:
                parts = [choice["delta"] for chunk in chunks(answer) for choice in chunk["choices"]]
                assert "".join(part.get("content", "") for part in parts) == "one"
            else:
                assert answer.json()["choices"][0]["message"]["content"] == "one"


@pytest.mark.parametrize(
    ("error", "outcome", "openai", "huggingface"),
    [
        (EngineLost("gone"), "engine_fault", (500, "server_error"), (500, "incomplete_generation")),
        (EngineRefused("no"), "engine_fault", (500, "server_error"), (424, "generation")),
        (DeadlineExceeded("late", 2.0), "deadline", (504, "server_error"), (504, "timeout")),
        (ZeroDivisionError("secret"), "internal", (500, "server_error"), (500, "generation")),
    ],
)
async def test_failures_in_both_dialects(
    client: httpx.AsyncClient,
    scheduler: HandScheduler,
    log: Log,
    error: Exception,
    outcome: str,
    openai: tuple[int, str],
    huggingface: tuple[int, str],
) -> None:
    scheduler.script = lambda stream, request: stream.fail(error)
    for stream in (False, True):
        answer = await client.post(OPENAI, json=STREAM | {"stream": stream})
        assert (answer.status_code, answer.json()["error"]["type"]) == openai
        assert ("retry-after" in answer.headers) == isinstance(error, DeadlineExceeded)
        answer = await client.post(HUGGINGFACE, json=STREAM | {"stream": stream})
        assert (answer.status_code, answer.json()["error_type"]) == huggingface
        assert "secret" not in answer.text
    assert [finished.outcome for finished in log.finished_requests] == [outcome] * 4
    assert scheduler.left == 4


@pytest.mark.parametrize("finish", [FinishReason.ABORT, FinishReason.ERROR])
async def test_an_engine_that_gives_up_is_a_failure(
    client: httpx.AsyncClient, scheduler: HandScheduler, finish: FinishReason
) -> None:
    scheduler.script = scheduler.say("some words", finish)
    answer = await client.post(OPENAI, json={"model": "org/tiny", "messages": HELLO})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")


async def test_a_deadline_in_the_stream_is_a_timeout(client: httpx.AsyncClient, scheduler: HandScheduler) -> None:
    def script(stream: TokenStream, request: Request) -> None:
        stream.feed(Output([504], cached_tokens=0))
        asyncio.get_running_loop().call_later(0.01, stream.fail, DeadlineExceeded("late"))

    scheduler.script = script
    *_, last = chunks(await client.post(HUGGINGFACE, json=STREAM))
    assert last == {"error": "late", "error_type": "timeout"}
    *_, last = chunks(await client.post(OPENAI, json=STREAM))
    assert last["error"] == {"message": "late", "type": "server_error", "param": None, "code": "timeout"}


async def test_who_asks_and_for_how_long(client: httpx.AsyncClient, scheduler: HandScheduler) -> None:
    body = {"model": "org/tiny", "messages": HELLO}
    await client.post(OPENAI, json=body | {"user": "ann"}, headers={"x-request-timeout": "5"})
    await client.post(OPENAI, json=body | {"user": "ann"}, headers={"x-tenant": "bob"})
    await client.post(OPENAI, json=body)
    assert [request.tenant for request in scheduler.requests] == ["ann", "bob", "default"]
    seconds = [round(request.deadline - request.arrived) for request in scheduler.requests]
    assert seconds == [5, 600, 600]


async def test_request_ids(client: httpx.AsyncClient) -> None:
    long = await client.post(
        OPENAI, json={"model": "org/tiny", "messages": HELLO}, headers={"x-request-id": b"\xc3\xa9" * 300}
    )
    assert dict(long.headers.raw)[b"x-request-id"] == b"\xc3\xa9" * 64
    ids = {(await client.post(OPENAI, content=b"")).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("path", ["/v1/models/no/pe", "/nope", "/models/org/tiny/nope"])
async def test_other_paths_fail_in_their_dialect(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert isinstance(error, str if path.startswith("/models/") else dict)


async def test_health_and_readiness(client: httpx.AsyncClient, scheduler: HandScheduler) -> None:
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/ready")).status_code == 200
    listed = (await client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["max_model_len"]) for card in listed] == [("org/tiny", 512)]
    scheduler.ready = False
    assert (await client.get("/ready")).status_code == 503
    assert (await client.get("/health")).status_code == 200


def past(identifier: Any, arguments: Any) -> list[dict[str, Any]]:
    call = {"id": identifier, "type": "function", "function": {"name": "weather", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": identifier, "content": "1"}
    return [*HELLO, {"role": "assistant", "tool_calls": [call]}, result, *HELLO]


@pytest.mark.parametrize(
    "change",
    [
        {"messages": past("9" * 30, {})},
        {"messages": past("9" * 5000, {})},
        {"messages": past(2**64 - 1, {})},
        {"messages": past("a", '{"a": ' + "[" * 900 + "]" * 900 + "}")},
        {"logit_bias": {"9" * 5000: 1}},
        {"chat_template_kwargs": {"self": 1}},
        {"chat_template_kwargs": {"variables": 1, "template": 1, "namespace": 1}},
    ],
    ids=["long id", "longest id", "largest id", "nested arguments", "long token id", "self", "other words"],
)
async def test_nothing_that_a_caller_says_is_our_failure(
    client: httpx.AsyncClient, scheduler: HandScheduler, log: Log, change: dict[str, Any]
) -> None:
    scheduler.script = scheduler.say('<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>')
    body = {"model": "org/tiny", "messages": HELLO, "tools": [tool("weather")]} | change
    for path in (OPENAI, HUGGINGFACE):
        for stream in (False, True):
            answer = await client.post(path, json=body | {"stream": stream})
            assert answer.status_code in (200, 400, 422), answer.text
    assert {finished.outcome for finished in log.finished_requests} <= {"completed", "bad_request"}


@pytest.mark.parametrize("path", [OPENAI, HUGGINGFACE])
async def test_a_stream_that_has_to_wait_says_so_and_cannot_refuse_any_more(
    text: ModelText, scheduler: HandScheduler, log: Log, path: str
) -> None:
    app = app_of(text, scheduler, log, Settings(http=HttpSettings(heartbeat_seconds=0.03)))
    streams: list[TokenStream] = []
    scheduler.script = lambda stream, request: streams.append(stream)
    wire = Wire(app, STREAM, path)
    await until(lambda: wire.body.count(b":\n\n") > 1)
    streams.pop().fail(Overloaded("too late for a status"))
    await wire.task
    assert wire.sent[0]["status"] == 200
    *beats, event, done, rest = wire.body.split(b"\n\n")
    assert set(beats) == {b":"}
    assert json.loads(event.removeprefix(b"data: "))["error"]
    assert (done, rest) == (b"data: [DONE]", b"")


async def test_the_huggingface_dialect_may_say_eos_token_instead(
    text: ModelText, scheduler: HandScheduler, log: Log
) -> None:
    app = app_of(text, scheduler, log, Settings(http=HttpSettings(huggingface_eos_token=True)))
    body = {"model": "org/tiny", "messages": HELLO}
    async with client_of(app) as client:
        for path, change, finish, reason in (
            (HUGGINGFACE, {}, FinishReason.STOP, "eos_token"),
            (HUGGINGFACE, {"stop": ["wör"]}, FinishReason.STOP, "stop_sequence"),
            (HUGGINGFACE, {}, FinishReason.LENGTH, "length"),
            (OPENAI, {}, FinishReason.STOP, "stop"),
        ):
            scheduler.script = scheduler.say("Hello wörld", finish)
            whole = await client.post(path, json=body | change)
            assert whole.json()["choices"][0]["finish_reason"] == reason
            streamed = await client.post(path, json=body | change | {"stream": True})
            assert chunks(streamed)[-1]["choices"][0]["finish_reason"] == reason
