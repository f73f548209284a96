"""The huggingface dialect: `/models/{id}/…`, the Hub's chat-completion task as TGI spoke it.

Its shapes are those of the task's published schema, odd ones included: docs/api.md.
https://huggingface.co/docs/api-inference/tasks/chat-completion
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from serving.api import fields, messages, tool_fields
from serving.api.chat import Chat
from serving.api.dialect import Answer, Delta, Message, Reasoning, Usage, chunk_prefix, head
from serving.api.failures import Kind, NoRoute, kind_of, message_of
from serving.api.text import Logprob
from serving.api.tools.base import CallArguments, CallStart, Text
from serving.core import FinishReason
from serving.errors import BadField, ModelLoading, ToolRefused
from serving.settings import LimitSettings

name = "huggingface"

FIELDS: dict[str, fields.Check] = {
    "max_tokens": fields.integer(1, 2**31 - 1),
    "max_completion_tokens": fields.integer(1, 2**31 - 1),
    "temperature": fields.number(0, 2),
    "top_p": fields.number(0, 1, above=True),
    "frequency_penalty": fields.number(-2, 2),
    "presence_penalty": fields.number(-2, 2),
    "seed": fields.integer(0, 2**64 - 1),
    "stop": fields.stops,
    "stream": fields.boolean,
    "stream_options": fields.mapping,
    "logprobs": fields.boolean,
    "top_logprobs": fields.integer(0, 5),
    "tool_prompt": fields.text,
}


def parse(body: dict[str, Any], model: str | None, limits: LimitSettings) -> Chat:
    """`model` in the body is ignored where the path has one."""
    if body.get("messages") is None:
        raise BadField("messages", "is required")
    chat_messages = messages.check("messages", body["messages"], limits.messages, counted_results=True)
    got = fields.read(body, FIELDS)
    got.setdefault("max_tokens", got.pop("max_completion_tokens", limits.huggingface_max_tokens))
    usage = got.pop("stream_options", {}).get("include_usage")
    wants, best = got.pop("logprobs", False), got.pop("top_logprobs", None)
    if best and not wants:
        raise BadField("top_logprobs", "needs logprobs to be true")
    if "seed" in got:
        got["seed"] &= 2**63 - 1  # vLLM's seeds are signed
    got["tool_prompt"] = got.get("tool_prompt") or None  # "" is the default text too
    chat = Chat(
        model=model or fields.text("model", body.get("model")),
        messages=chat_messages,
        include_usage=fields.boolean("stream_options.include_usage", usage) if usage is not None else False,
        logprobs=(best or 0) if wants else None,
        use_cache=True,
        **got,
    )
    if body.get("tools") is not None:
        chat.tools = tool_fields.tools("tools", body["tools"], limits, schema_required=True)
    choice = tool_fields.huggingface_choice("tool_choice", body.get("tool_choice"), chat.tools)
    chat.tool_choice, chat.named_tool = choice
    if body.get("response_format") is not None:
        chat.shape = tool_fields.huggingface_shape("response_format", body["response_format"], limits)
        if chat.shape is not None and chat.tools:
            raise ToolRefused("response_format: cannot be combined with tools", "response_format")
    return chat


_FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_SEQUENCE: "stop_sequence",
    FinishReason.LENGTH: "length",
}


class encoder:  # noqa: N801 - the Dialect protocol's word
    """Builds each event from byte prefixes made once for the choice."""

    def __init__(self, answer: Answer, index: int) -> None:
        self._calls = -1  # index of the open call
        self._answer = answer
        self._first_id = answer.first_call_id
        self._choice = chunk_prefix(answer) + b',"choices":[{"index":%d,"delta":{"role":"assistant",' % index
        self._content = self._choice + b'"content":'
        self._after = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def opening(self) -> bytes:
        return b""

    def text(self, text: str) -> bytes:
        return self._content + orjson.dumps(text) + self._after

    def delta(self, delta: Delta, logprobs: list[Logprob] | None) -> bytes:
        match delta:
            case Text(text) | Reasoning(text):
                if logprobs is None:
                    return self.text(text)
                inner = b'"content":' + orjson.dumps(text)
            case CallStart(called):
                self._calls += 1
                inner = self._call(called, "")
            case CallArguments(fragment):
                inner = self._call(None, fragment)
        return self._choice + inner + b'},"logprobs":' + _logprobs(logprobs) + b',"finish_reason":null}]}\n\n'

    def _call(self, called: str | None, arguments: str) -> bytes:
        call = {
            "index": self._calls,
            "id": str(self._first_id + self._calls),
            "type": "function",
            "function": {"name": called, "arguments": arguments},
        }
        return b'"tool_calls":' + orjson.dumps(call)

    def closing(self, finish: FinishReason, logprobs: list[Logprob] | None) -> bytes:
        reason = _finish(finish, self._answer).encode()
        return self._content + b'""},"logprobs":' + _logprobs(logprobs) + b',"finish_reason":"%s"}]}\n\n' % reason


def _finish(finish: FinishReason, answer: Answer) -> str:
    return "eos_token" if finish is FinishReason.STOP and answer.says_eos_token else _FINISH[finish]


def usage_event(answer: Answer, usage: Usage) -> bytes:
    return chunk_prefix(answer) + b',"choices":[],"usage":' + orjson.dumps(_usage(usage)) + b"}\n\n"


def whole(answer: Answer, choices: Sequence[Message], usage: Usage) -> bytes:
    shown = [_choice(answer, index, message) for index, message in enumerate(choices)]
    return orjson.dumps(head(answer, "chat.completion") | {"choices": shown, "usage": _usage(usage)})


def _choice(answer: Answer, index: int, message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant"}
    if message.calls:
        said["tool_calls"] = _calls(answer, message)
    elif answer.forced_call:
        raise _cut_off(message)
    else:
        said["content"] = message.text
    return {
        "index": index,
        "message": said,
        "logprobs": None if message.logprobs is None else {"content": [_logprob(one) for one in message.logprobs]},
        "finish_reason": _finish(message.finish, answer),
    }


def _calls(answer: Answer, message: Message) -> list[dict[str, Any]]:
    """Arguments are an object here, so a call that was cut off cannot be told; those before it can."""
    told: list[dict[str, Any]] = []
    for identifier, call in enumerate(message.calls, answer.first_call_id):
        try:
            function: dict[str, Any] = {"name": call.name, "arguments": orjson.loads(call.arguments)}
        except orjson.JSONDecodeError:
            break
        if description := answer.descriptions.get(call.name):
            function["description"] = description
        told.append({"id": identifier, "type": "function", "function": function})
    if not told:
        raise _cut_off(message)
    return told


def _cut_off(message: Message) -> ToolRefused:
    if message.finish is FinishReason.STOP_SEQUENCE:
        return ToolRefused("the call was cut off by a stop sequence before it was whole", "stop")
    return ToolRefused("the call was cut off before it was whole; raise max_tokens", "max_tokens")


def _logprobs(logprobs: list[Logprob] | None) -> bytes:
    return orjson.dumps({"content": [_logprob(one) for one in logprobs]}) if logprobs else b"null"


def _logprob(found: Logprob) -> dict[str, Any]:
    top = [{"token": token.token, "logprob": token.logprob} for token in found.top]
    return {"token": found.token, "logprob": found.logprob, "top_logprobs": top}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


_TYPES = {
    Kind.VALIDATION: (422, "validation"),
    Kind.TEMPLATE: (422, "template_error"),
    Kind.TOOL: (422, "tool_error"),
    Kind.SYNTAX: (400, "validation"),
    Kind.TOO_LARGE: (413, "validation"),
    Kind.NO_ROUTE: (404, "validation"),
    Kind.UNKNOWN_MODEL: (404, "not_found"),
    Kind.OVERLOADED: (429, "overloaded"),
    Kind.LOADING: (503, "loading"),
    Kind.DEADLINE: (504, "timeout"),
    Kind.ENGINE: (424, "generation"),
    Kind.ENGINE_LOST: (500, "incomplete_generation"),
    Kind.INTERNAL: (500, "generation"),
}


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    kind = kind_of(error)
    status, type_ = _TYPES[kind]
    message = message_of(error)
    if isinstance(error, NoRoute):
        status = error.status
    if type_ == "validation" and kind is not Kind.NO_ROUTE:
        message = f"Input validation error: {message}"
    body: dict[str, Any] = {"error": message, "error_type": type_}
    if isinstance(error, ModelLoading):
        body["estimated_time"] = error.retry_after
    return status, body


def failure_event(error: Exception) -> bytes:
    kind = kind_of(error)
    message = message_of(error)
    type_ = "timeout" if kind is Kind.DEADLINE else "generation"
    return b"data: " + orjson.dumps({"error": message, "error_type": type_}) + b"\n\n"
