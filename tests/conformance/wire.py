"""The contract on the wire as assertions: bodies, streams and errors of both dialects.

Written from the contract alone, without a look at the server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import jsonschema

Dialect = Literal["huggingface", "openai"]
Json = dict[str, Any]

MODEL = "SmolLM2-135M-Instruct"
ALIAS = f"HuggingFaceTB/{MODEL}"  # an id with a slash
CONTEXT = 2048
DIALECTS: tuple[Dialect, ...] = ("huggingface", "openai")
QUESTION: list[Json] = [{"role": "user", "content": "What is the capital of France?"}]
OMIT: Any = object()  # a field to leave out

COMPLETION_KEYS = {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
CHUNK_KEYS = COMPLETION_KEYS - {"usage"}
USAGE_KEYS = {"prompt_tokens", "completion_tokens", "total_tokens"}
FINISH: Mapping[Dialect, set[str]] = {
    "huggingface": {"length", "stop", "stop_sequence"},
    "openai": {"length", "stop", "tool_calls"},
}


@dataclass
class Api:
    """The server as a client sees it."""

    client: httpx.Client
    headers: dict[str, str] = field(default_factory=dict)

    def path(self, dialect: Dialect, model: str = MODEL) -> str:
        return f"/models/{model}/v1/chat/completions" if dialect == "huggingface" else "/v1/chat/completions"

    def body(self, dialect: Dialect, **fields: Any) -> Json:
        base: Json = {"messages": QUESTION, "max_tokens": 2}
        if dialect == "openai":
            base["model"] = MODEL
        return {key: value for key, value in (base | fields).items() if value is not OMIT}

    def chat(self, dialect: Dialect, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """One chat completion; `OMIT` leaves a default field out."""
        return self.client.post(self.path(dialect), json=self.body(dialect, **fields), headers=headers)

    def ok(self, dialect: Dialect, headers: Mapping[str, str] | None = None, **fields: Any) -> Json:
        """A chat completion that must succeed, its shape checked."""
        return completion(self.chat(dialect, headers, **fields), dialect)

    def stream(self, dialect: Dialect, headers: Mapping[str, str] | None = None, **fields: Any) -> Stream:
        """A streamed chat completion that must succeed, its shape checked."""
        return stream(self.chat(dialect, headers, stream=True, **fields), dialect)

    def raw(self, dialect: Dialect, content: bytes | Iterator[bytes]) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return self.client.post(self.path(dialect), content=content, headers=headers)

    def ask(self, dialect: Dialect, streamed: bool, **fields: Any) -> Said:
        """The first choice, however it was sent."""
        if streamed:
            return self.stream(dialect, **fields).said()
        return said(self.ok(dialect, **fields)["choices"][0], dialect)


@dataclass
class Said:
    """One choice, the same for both dialects and for streams."""

    content: str | None
    calls: list[Call]
    finish_reason: str


@dataclass
class Call:
    id: Any
    name: str
    arguments: Any
    description: str | None = None


# ---------------------------------------------------------------------------------------------------------- answers


def completion(answer: httpx.Response, dialect: Dialect) -> Json:
    """The body of a 200 that is no stream."""
    assert answer.status_code == 200, answer.text[:2000]
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    body: Json = answer.json()
    if dialect == "huggingface":
        assert set(body) == COMPLETION_KEYS
        assert set(body["usage"]) == USAGE_KEYS
        assert [choice["index"] for choice in body["choices"]] == [0]
    else:
        assert set(body) == COMPLETION_KEYS
        assert USAGE_KEYS <= set(body["usage"]) <= USAGE_KEYS | {"prompt_tokens_details", "completion_tokens_details"}
        assert [choice["index"] for choice in body["choices"]] == list(range(len(body["choices"])))
    _envelope(body, "chat.completion")
    _usage(body["usage"])
    for choice in body["choices"]:
        assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
        assert choice["finish_reason"] in FINISH[dialect]
        said(choice, dialect)
    return body


def said(choice: Json, dialect: Dialect) -> Said:
    message = choice["message"]
    assert message["role"] == "assistant"
    if "tool_calls" not in message:
        assert isinstance(message["content"], str)
        assert set(message) <= {"role", "content"} | ({"reasoning_content"} if dialect == "openai" else set())
        return Said(message["content"], [], choice["finish_reason"])
    calls = message["tool_calls"]
    assert isinstance(calls, list) and calls
    if dialect == "huggingface":
        assert set(message) == {"role", "tool_calls"}
        return Said(None, [_huggingface_call(call) for call in calls], choice["finish_reason"])
    assert set(message) <= {"role", "content", "tool_calls", "reasoning_content"}
    assert message["content"] is None or isinstance(message["content"], str)
    return Said(message["content"], [_openai_call(call) for call in calls], choice["finish_reason"])


def _huggingface_call(call: Json) -> Call:
    assert set(call) == {"id", "type", "function"}
    assert type(call["id"]) is int
    assert call["type"] == "function"
    function = call["function"]
    assert {"name", "arguments"} <= set(function) <= {"name", "arguments", "description"}
    assert isinstance(function["arguments"], dict)
    return Call(call["id"], function["name"], function["arguments"], function.get("description"))


def _openai_call(call: Json) -> Call:
    assert set(call) == {"id", "type", "function"}
    assert call["id"].startswith("call_") and len(call["id"]) > len("call_")
    assert call["type"] == "function"
    assert set(call["function"]) == {"name", "arguments"}
    assert isinstance(call["function"]["arguments"], str)
    return Call(call["id"], call["function"]["name"], _json_or_text(call["function"]["arguments"]))


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _envelope(body: Json, kind: str) -> None:
    assert body["id"].startswith("chatcmpl-") and len(body["id"]) > len("chatcmpl-")
    assert body["object"] == kind
    assert type(body["created"]) is int and abs(body["created"] - time.time()) < 600
    assert isinstance(body["model"], str) and body["model"]
    fingerprint = body["system_fingerprint"]
    assert isinstance(fingerprint, str) and "-" in fingerprint.strip("-")  # {version}-{build}


def _usage(usage: Json) -> None:
    assert all(type(usage[key]) is int and usage[key] >= 0 for key in USAGE_KEYS)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 0


# ---------------------------------------------------------------------------------------------------------- streams


@dataclass
class Stream:
    """A stream's chunks, checked; usage chunks apart."""

    dialect: Dialect
    chunks: list[Json]
    usage: list[Json]

    def deltas(self, index: int = 0) -> list[Json]:
        return [choice["delta"] for choice in self.choices(index)]

    def choices(self, index: int = 0) -> list[Json]:
        return [choice for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == index]

    def text(self, index: int = 0) -> str:
        return "".join(delta.get("content") or "" for delta in self.deltas(index))

    def finish_reason(self, index: int = 0) -> str:
        (reason,) = [c["finish_reason"] for c in self.choices(index) if c["finish_reason"] is not None]
        assert isinstance(reason, str)
        return reason

    def said(self, index: int = 0) -> Said:
        calls = self.calls(index)
        return Said(None if calls else self.text(index), calls, self.finish_reason(index))

    def calls(self, index: int = 0) -> list[Call]:
        """The calls that the fragments make, each checked against the dialect's shape."""
        fragments: dict[int, list[Json]] = {}
        order: list[int] = []
        for delta in self.deltas(index):
            if (calls := delta.get("tool_calls")) is None:
                continue
            if self.dialect == "huggingface":
                assert isinstance(calls, dict)  # an object, one call a chunk
                calls = [calls]
            assert isinstance(calls, list)
            for call in calls:
                fragments.setdefault(call["index"], []).append(call)
                order.append(call["index"])
        assert order == sorted(order)
        assert list(fragments) == list(range(len(fragments)))
        join = _join_huggingface if self.dialect == "huggingface" else _join_openai
        return [join(parts) for parts in fragments.values()]


def _join_huggingface(parts: list[Json]) -> Call:
    first, *later = parts
    assert all(set(part) == {"index", "id", "type", "function"} for part in parts)
    assert all(set(part["function"]) == {"name", "arguments"} for part in parts)
    assert {part["type"] for part in parts} == {"function"}
    (identity,) = {part["id"] for part in parts}
    assert isinstance(identity, str) and identity == str(int(identity))
    assert isinstance(first["function"]["name"], str) and first["function"]["arguments"] == ""
    assert all(part["function"]["name"] is None for part in later)
    text = "".join(part["function"]["arguments"] for part in parts)
    return Call(identity, first["function"]["name"], _json_or_text(text))


def _join_openai(parts: list[Json]) -> Call:
    first, *later = parts
    assert first["id"].startswith("call_") and first["type"] == "function" and first["function"]["name"]
    for part in later:  # id, type, name once
        assert set(part) <= {"index", "function"} and set(part["function"]) <= {"arguments"}
    text = "".join(part["function"].get("arguments", "") for part in parts)
    return Call(first["id"], first["function"]["name"], _json_or_text(text))


def frames(answer: httpx.Response) -> list[Any]:
    """The events of a stream that ends as it must, comments left out."""
    assert answer.status_code == 200, answer.text[:2000]
    assert answer.headers["content-type"].split(";")[0] == "text/event-stream"
    assert answer.text.endswith("\n\n")
    blocks = [block for block in answer.text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert blocks[-1] == "data: [DONE]" and blocks.count("data: [DONE]") == 1
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def stream(answer: httpx.Response, dialect: Dialect) -> Stream:
    """A stream without errors."""
    events = frames(answer)
    assert events
    for event in events:
        assert "error" not in event, event
        assert CHUNK_KEYS <= set(event) <= CHUNK_KEYS | {"usage"}
        _envelope(event, "chat.completion.chunk")
    assert len({(e["id"], e["created"], e["model"], e["system_fingerprint"]) for e in events}) == 1
    chunks = [event for event in events if event["choices"]]
    usage = [event for event in events if not event["choices"]]
    assert events == chunks + usage  # the usage chunk is the last before [DONE]
    assert len(usage) <= 1
    for event in usage:
        expected = USAGE_KEYS if dialect == "huggingface" else USAGE_KEYS | set(event["usage"])
        assert set(event["usage"]) == expected
        _usage(event["usage"])
    for chunk in chunks:
        if dialect == "huggingface":
            assert set(chunk) == CHUNK_KEYS
        assert chunk.get("usage") is None
        for choice in chunk["choices"]:
            assert {"index", "delta", "finish_reason"} <= set(choice) <= {"index", "delta", "finish_reason", "logprobs"}
    found = Stream(dialect, chunks, usage)
    for index in {choice["index"] for chunk in chunks for choice in chunk["choices"]}:
        _choice_in_order(found, index)
    return found


def _choice_in_order(found: Stream, index: int) -> None:
    choices = found.choices(index)
    assert [c["finish_reason"] is not None for c in choices] == [False] * (len(choices) - 1) + [True]
    assert choices[-1]["finish_reason"] in FINISH[found.dialect]
    deltas = found.deltas(index)
    if found.dialect == "huggingface":
        for delta in deltas:
            assert delta["role"] == "assistant"
            assert set(delta) in ({"role", "content"}, {"role", "tool_calls"})
            assert isinstance(delta.get("content", ""), str)
        assert deltas[-1] == {"role": "assistant", "content": ""}
    else:
        assert deltas[0]["role"] == "assistant"
        assert not any("role" in delta for delta in deltas[1:])
        assert all(set(delta) <= {"role", "content", "tool_calls", "reasoning_content"} for delta in deltas)


# ----------------------------------------------------------------------------------------------------------- errors


def refused(
    answer: httpx.Response,
    dialect: Dialect,
    error_type: str = "validation",
    names: str = "",
    status: int | None = None,
) -> str:
    """An error of the request's making: 422 in the one dialect, 400 in the other. Returns the message."""
    message = error_body(answer, dialect)
    assert answer.status_code == (status or (422 if dialect == "huggingface" else 400)), answer.text[:2000]
    body = answer.json()
    if dialect == "huggingface":
        assert body["error_type"] == error_type
        if error_type == "validation" and answer.status_code == 422:
            assert message.startswith("Input validation error: ")
        assert names in message
    else:
        assert body["error"]["type"] == "invalid_request_error"
        assert names in f"{body['error']['param']} {message}"
    return message


def error_body(answer: httpx.Response, dialect: Dialect) -> str:
    """An error in the dialect's shape, whatever the status. Returns the message."""
    assert answer.status_code >= 400, answer.text[:2000]
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    body = answer.json()
    if dialect == "huggingface":
        assert isinstance(body["error"], str) and body["error"]
        assert isinstance(body["error_type"], str) and body["error_type"]
        return str(body["error"])
    assert set(body) == {"error"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    assert isinstance(body["error"]["type"], str)
    assert {"param", "code"} <= set(body["error"])
    return str(body["error"]["message"])


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


# ------------------------------------------------------------------------------------------------------------ tools


def tool(
    name: str, schema: Any = None, description: str | None = "Does it.", key: str = "parameters", **more: Any
) -> Json:
    function: Json = {"name": name, key: PLACE if schema is None else schema}
    if description is not None:
        function["description"] = description
    return {"type": "function", "function": function | more}


def obj(required: list[str] | None = None, **properties: Any) -> Json:
    """A closed object; all its properties are required unless told."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


PLACE = obj(city={"enum": ["Paris", "Rome"]}, days={"type": "integer", "minimum": 0, "maximum": 9})
ROOM = 400  # tokens: enough for a call with a small schema


def valid(value: Any, schema: Any) -> None:
    jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)
