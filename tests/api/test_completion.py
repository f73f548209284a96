"""The endpoint in process: real parsing, real text, a scheduler that a test plays by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from serving.api import routes
from serving.api.service import Models, ServedModel
from serving.core import Finished, FinishReason, Output, Request
from serving.engine.base import TokenStream
from serving.errors import EngineLost, Overloaded
from serving.models import embedded
from serving.models.text import ModelText
from serving.settings import LimitSettings

OPENAI, HUGGINGFACE = "/v1/chat/completions", "/models/org/tiny/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


class HandScheduler:
    """Feeds each request with what `script` makes of it."""

    ready, max_model_len = True, 512

    def __init__(self, text: ModelText) -> None:
        self.requests: list[Request] = []
        self.left = 0
        self.script: Callable[[TokenStream, Request], None] = self.say("Hello wörld", FinishReason.STOP)
        self.refuse: Exception | None = None
        self._text = text

    def say(self, words: str, finish: FinishReason) -> Callable[[TokenStream, Request], None]:
        def script(stream: TokenStream, request: Request) -> None:
            for number, token in enumerate(self._text.encode(words)):
                stream.feed(Output([token], cached_tokens=0 if number == 0 else None))
            stream.feed(Output([2], finish))

        return script

    @asynccontextmanager
    async def generate(self, request: Request) -> AsyncIterator[TokenStream]:
        if self.refuse:
            raise self.refuse
        self.requests.append(request)
        stream = TokenStream()
        self.script(stream, request)
        try:
            yield stream
        finally:
            self.left += 1


class Log:
    def __init__(self) -> None:
        self.finished_requests: list[Finished] = []

    def finished(self, request: Finished) -> None:
        self.finished_requests.append(request)


@pytest.fixture(scope="session")
def text() -> ModelText:
    return ModelText(embedded.prepare())


@pytest.fixture
def scheduler(text: ModelText) -> HandScheduler:
    return HandScheduler(text)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def app(scheduler: HandScheduler, text: ModelText, log: Log) -> routes.PublicApp:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield

    models = Models([ServedModel("org/tiny", text, scheduler, 1)], {"alias": "org/tiny"})  # type: ignore[arg-type]
    return routes.build(models, LimitSettings(), log, lifespan)


@pytest.fixture
async def client(app: routes.PublicApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:  # type: ignore[arg-type]
        yield client


def chunks(answer: httpx.Response) -> list[Any]:
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


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
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
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
    assert answer.json() == {"error": "Model org/tiny is currently loading", "error_type": "loading"}


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


async def test_a_client_that_goes_away_ends_its_request(
    app: routes.PublicApp, scheduler: HandScheduler, log: Log
) -> None:
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
