"""Golden exchanges: for each row of the contract the request and the very bytes of its answer, in both dialects.

They lie in `golden/`, a file for each row; `UPDATE_GOLDEN=1` writes them anew. What differs from run to
run (times, ids that are drawn) is written as its name in braces.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import __version__
from serving.api import completion, huggingface, openai
from serving.core import FinishReason, Output, Request
from serving.engine.base import TokenStream
from serving.errors import DeadlineExceeded, EngineLost, EngineRefused, Overloaded
from serving.models.families import FAMILIES
from serving.models.template import ChatTemplate
from serving.models.text import ModelText
from tests.api.hand import HELLO, HUGGINGFACE, OPENAI, RAW, Front, open_front, tool

GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"

Prepare = Callable[[Front], None]


@dataclass(frozen=True)
class Exchange:
    """A request, and what the engine makes of it."""

    name: str
    path: str
    body: dict[str, Any] | bytes
    says: str = "Hello wörld"
    finish: FinishReason = FinishReason.STOP
    headers: dict[str, str] = field(default_factory=dict)
    prepare: Prepare | None = None
    """Sets the stage, where saying something is not all that the engine does."""
    template: str | None = None
    """Of the family whose chat template it is, where it is not the embedded model's."""


WEATHER = tool("get_weather", {"city": {"type": "string"}, "days": {"type": "integer"}}, description="By the hour")
CLOCK = tool("get_time")
TOOLS = {"tools": [WEATHER, CLOCK]}


def called(*calls: tuple[str, dict[str, Any]]) -> str:
    texts = [json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) for name, arguments in calls]
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)


ONE_CALL = called(("get_weather", {"city": "Köln", "days": 3}))
PAST = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "tool_calls": [{"id": 6, "type": "function", "function": {"name": "get_time", "arguments": {}}}],
    },
    {"role": "tool", "name": "get_time", "content": "noon"},
]


def both(name: str, body: dict[str, Any] | bytes, **more: Any) -> list[Exchange]:
    """The same in both dialects."""
    if isinstance(body, bytes):
        return [Exchange(f"{name}, {path_name}", path, body, **more) for path_name, path in PATHS.items()]
    body = {"messages": HELLO} | body
    openai = Exchange(f"{name}, openai", OPENAI, {"model": "org/tiny"} | body, **more)
    return [openai, Exchange(f"{name}, huggingface", HUGGINGFACE, body, **more)]


def whole_and_streamed(name: str, body: dict[str, Any], **more: Any) -> list[Exchange]:
    return both(name, body, **more) + both(f"{name}, streamed", body | {"stream": True}, **more)


PATHS = {"openai": OPENAI, "huggingface": HUGGINGFACE}


def refusing(error: Exception) -> Prepare:
    def prepare(front: Front) -> None:
        front.scheduler.refuse = error

    return prepare


def failing(error: Exception, *, after: bool) -> Prepare:
    """The engine fails, before its first token or after it."""

    def script(stream: TokenStream, request: Request) -> None:
        if after:
            stream.feed(Output([504], cached_tokens=0))
            asyncio.get_running_loop().call_later(0.01, stream.fail, error)
        else:
            stream.fail(error)

    def prepare(front: Front) -> None:
        front.scheduler.script = script

    return prepare


def loading(front: Front) -> None:
    front.scheduler.ready = False


def parted(front: Front) -> None:
    """Answers that differ, one after the other."""
    scripts = iter([front.scheduler.say("Hi"), front.scheduler.say("Hello there", FinishReason.LENGTH)])

    def script(stream: TokenStream, request: Request) -> None:
        next(scripts)(stream, request)

    front.scheduler.script = script


def cached(front: Front) -> None:
    front.scheduler.script = front.scheduler.say("Hi", cached=8)


LOST, REFUSED = EngineLost("the engine went away"), EngineRefused("the engine would not take it")
LATE, BUSY = DeadlineExceeded("the deadline passed", 2.0), Overloaded("Model is overloaded", 1.2)
NAMED = TOOLS | {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
REQUIRED = TOOLS | {"tool_choice": "required"}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
SHAPED = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}}
STREAM = {"stream": True}

ROWS: dict[str, list[Exchange]] = {
    "text": whole_and_streamed("text", {}),
    "odd-text": whole_and_streamed("odd text", {}, says='🦜 "\\" </script>\t\u2028 日本'),
    "no-text": whole_and_streamed("no text", {}, says=""),
    "cut-off": whole_and_streamed("cut off", {"max_tokens": 2}, says="Hello", finish=FinishReason.LENGTH),
    "stop-string": whole_and_streamed("a stop string", {"stop": ["o w"]}),
    "logprobs": whole_and_streamed("logprobs", {"logprobs": True, "top_logprobs": 2}, says="a 🦜"),
    "logprobs-without-best": both("logprobs without the best", {"logprobs": True}, says="a"),
    "usage": [
        *both("usage in a stream", STREAM | {"stream_options": {"include_usage": True}}, says="Hi"),
        *both("usage of a known beginning", {}, prepare=cached),
    ],
    "several-choices": [
        one for one in whole_and_streamed("two choices", {"n": 2}, prepare=parted) if one.path == OPENAI
    ],
    "named-tool": whole_and_streamed("a named tool", NAMED, says=ONE_CALL),
    "required-tools": whole_and_streamed("two calls", REQUIRED, says=f"{ONE_CALL}\n{called(('get_time', {}))}"),
    "text-and-a-call": whole_and_streamed("text and a call", TOOLS, says=f"I look. {ONE_CALL}"),
    "text-and-no-call": whole_and_streamed("text and no call", TOOLS, says="It is < warm."),
    "call-cut-off": whole_and_streamed("a call cut off", NAMED, says=ONE_CALL[:62], finish=FinishReason.LENGTH),
    "call-with-logprobs": [
        one
        for name, stream in (("a call with logprobs", {}), ("a call with logprobs, streamed", STREAM))
        for one in both(name, REQUIRED | stream | {"logprobs": True}, says=called(("get_time", {})))
    ],
    "ids-go-on": both("ids go on", TOOLS | {"messages": PAST, "tool_choice": "required"}, says=ONE_CALL),
    "structured": whole_and_streamed("structured", SHAPED, says='{"age": 7}'),
    "other-dialect": [
        replace(one, headers={"x-dialect": "openai" if one.path == HUGGINGFACE else "huggingface"})
        for body in ({"model": "org/tiny"}, {"model": "alias", "stop": 1})
        for one in both("the other dialect", body)
    ],
    "raw-text": [
        Exchange("raw text", RAW, {"inputs": "Can you please let us know more details about your "}),
        Exchange("with its prompt", RAW, {"inputs": "Once", "parameters": {"return_full_text": True}}),
        Exchange("a parameter that is wrong", RAW, {"inputs": "Once", "parameters": {"top_p": 2}}),
        Exchange("a stream of it", RAW, {"inputs": "Once", "stream": True}),
        Exchange("a chat at the same path", RAW, {"messages": HELLO}),
    ],
    "error-value": both("a value", {"temperature": 3}) + both("a message", {"messages": [{"role": "user"}]}),
    "error-syntax": both("syntax", b'{"messages": [') + both("no object", b"[]"),
    "error-too-large": both("too large", b"x" * 2_000_001),
    "error-context": both("context", {"messages": [{"role": "user", "content": "word " * 520}]}),
    "error-tools": both("no such tool", TOOLS | {"tool_choice": {"type": "function", "function": {"name": "nope"}}})
    + both("no tools", {"tool_choice": "required"})
    + both("a tool without a name", {"tools": [{"type": "function", "function": {}}]}),
    "error-template": both(
        "a message that the template refuses", {"messages": [{"role": "system", "content": "x"}]}, template="gemma-2"
    ),
    "error-grammar": both(
        "a schema that cannot be enforced",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "("}}}},
    ),
    "error-header": [replace(one, headers={"x-request-timeout": "soon"}) for one in both("a header", {})]
    + [replace(one, headers={"x-dialect": "tgi"}) for one in both("a dialect", {})],
    "error-unknown-model": [
        Exchange("unknown model, openai", OPENAI, {"model": "no/pe", "messages": HELLO}),
        Exchange("unknown model, huggingface", "/models/no/pe/v1/chat/completions", {"messages": HELLO}),
    ],
    "error-loading": both("loading", {}, prepare=loading) + both("loading, streamed", STREAM, prepare=loading),
    "error-overloaded": both("overloaded", {}, prepare=refusing(BUSY)),
    "error-deadline": both("the deadline", {}, prepare=failing(LATE, after=False))
    + both("the deadline in a stream", STREAM, prepare=failing(LATE, after=True)),
    "error-engine": both("refused by the engine", {}, prepare=failing(REFUSED, after=False))
    + both("engine lost", STREAM, prepare=failing(LOST, after=False))
    + both("engine lost in the stream", STREAM, prepare=failing(LOST, after=True)),
    "error-internal": both("our own mistake", {}, prepare=failing(ZeroDivisionError("secret"), after=False)),
}


@pytest.mark.parametrize("row", ROWS)
async def test_an_exchange_is_what_it_was(row: str, text: ModelText, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "HOLD_SECONDS", (0.0, 0.0))
    pages = []
    for exchange in ROWS[row]:
        async with open_front(_prompted(text, exchange.template)) as front:  # each finds a server of its own
            pages.append(_page(exchange, await _answer(front, exchange)))
    found = "\n".join(pages)
    file = GOLDEN / f"{row}.txt"
    if UPDATE:
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(found)
    assert found == file.read_text()


def test_every_golden_file_is_of_a_row() -> None:
    assert {file.stem for file in GOLDEN.glob("*")} == set(ROWS)


def test_every_kind_of_failure_has_an_exchange() -> None:
    """By its status and its type, in each dialect."""
    said = "\n".join((GOLDEN / f"{row}.txt").read_text() for row in ROWS)
    for status, type_, code in set(openai._TYPES.values()):
        quoted = "null" if code is None else f'"{code}"'
        assert re.search(rf'"type":"{type_}","param":[^,]*,"code":{quoted}', said), (status, type_, code)
    for status, type_ in set(huggingface._TYPES.values()):
        assert f'"error_type":"{type_}"' in said, (status, type_)


def _prompted(text: ModelText, family: str | None) -> ModelText:
    if family is None:
        return text
    other = copy.copy(text)
    source = next(one.template for one in FAMILIES if one.name == family)
    other.template = ChatTemplate(source, {"bos_token": "<|im_start|>"})
    return other


async def _answer(front: Front, exchange: Exchange) -> httpx.Response:
    front.scheduler.script = front.scheduler.say(exchange.says, exchange.finish)
    if exchange.prepare is not None:
        exchange.prepare(front)
    body = exchange.body if isinstance(exchange.body, bytes) else json.dumps(exchange.body).encode()
    headers = {"x-request-id": "golden", "content-type": "application/json"} | exchange.headers
    return await front.client.post(exchange.path, content=body, headers=headers)


def _page(exchange: Exchange, answer: httpx.Response) -> str:
    return "\n".join([*_question(exchange), *_answered(answer), ""])


def _question(exchange: Exchange) -> Iterator[str]:
    yield f"=== {exchange.name}"
    yield f"POST {exchange.path}" + ("" if exchange.template is None else f" (of {exchange.template})")
    yield from (f"{name}: {value}" for name, value in exchange.headers.items())
    yield ""
    if isinstance(exchange.body, bytes):
        yield exchange.body.decode() if len(exchange.body) < 100 else f"({len(exchange.body)} bytes)"
    else:
        text = json.dumps(exchange.body, ensure_ascii=False)
        yield text if len(text) < 1000 else f"({len(text)} characters)"
    if exchange.prepare is None:
        yield f"--- the model says {json.dumps(exchange.says, ensure_ascii=False)} and ends with {exchange.finish}"
    else:
        yield "---"


_DRAWN = [
    (re.compile(r'"created":\d+'), '"created":{created}'),
    (re.compile(r'"call_[0-9a-f]{24}"'), '"call_{drawn}"'),
    (re.compile(rf'"{re.escape(__version__)}-serving"'), '"{version}-serving"'),
]
_TIMES = {"x-total-time", "x-queue-time", "x-inference-time", "x-time-per-token", "x-compute-time"}


def _answered(answer: httpx.Response) -> Iterator[str]:
    yield str(answer.status_code)
    for name, value in answer.headers.items():
        shown = value
        if name in _TIMES:
            assert re.fullmatch(r"\d+\.\d{6}" if name == "x-compute-time" else r"\d+", value)
            shown = "{time}"
        elif name == "content-length":
            assert int(value) == len(answer.content)
            shown = "{length}"
        yield f"{name}: {shown}"
    yield ""
    body = answer.content.decode()
    for pattern, name in _DRAWN:
        body = pattern.sub(name, body)
    yield body
