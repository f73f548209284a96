"""The openai dialect: `/v1/…`. https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson

from serving.api import fields, messages, tool_fields
from serving.api.chat import Chat
from serving.api.dialect import Answer, Delta, Message, Reasoning, Usage, chunk_prefix, head
from serving.api.failures import Kind, NoRoute, kind_of, message_of
from serving.api.text import Logprob
from serving.api.tools.base import CallArguments, CallStart, Text
from serving.core import FinishReason
from serving.errors import BadField, BadRequest
from serving.settings import LimitSettings

name = "openai"

FIELDS: dict[str, fields.Check] = {
    "model": fields.text,
    "max_tokens": fields.integer(1, 2**31 - 1),
    "max_completion_tokens": fields.integer(1, 2**31 - 1),
    "temperature": fields.number(0, 2),
    "top_p": fields.number(0, 1, above=True),
    "top_k": fields.integer(-1, 2**31 - 1),
    "min_p": fields.number(0, 1),
    "repetition_penalty": fields.number(0, 10, above=True),
    "frequency_penalty": fields.number(-2, 2),
    "presence_penalty": fields.number(-2, 2),
    "logit_bias": fields.logit_bias,
    "seed": fields.integer(-(2**63), 2**63 - 1),
    "stop": fields.stops,
    "stop_token_ids": fields.token_ids,
    "stream": fields.boolean,
    "stream_options": fields.mapping,
    "logprobs": fields.boolean,
    "top_logprobs": fields.integer(0, 20),
    "n": fields.integer(1, 8),
    "min_tokens": fields.integer(0, 2**31 - 1),
    "ignore_eos": fields.boolean,
    "skip_special_tokens": fields.boolean,
    "parallel_tool_calls": fields.boolean,
    "chat_template_kwargs": fields.mapping,
    "user": fields.text,
}

# A template's own words for what it is given: a caller may not give them again.
_TEMPLATES_OWN = {"self", "messages", "tools", "add_generation_prompt"}


def parse(body: dict[str, Any], model: str | None, limits: LimitSettings) -> Chat:
    if body.get("model") is None and model is None:
        raise BadField("model", "is required")
    if body.get("messages") is None:
        raise BadField("messages", "is required")
    chat_messages = messages.check("messages", body["messages"], limits.messages, counted_results=False)
    got = fields.read(body, FIELDS)
    if "max_completion_tokens" in got:
        got["max_tokens"] = got.pop("max_completion_tokens")
    if "top_k" in got:
        got["top_k"] = max(0, got["top_k"])  # -1, as vLLM's clients say it: all
    variables = got.pop("chat_template_kwargs", {})
    if taken := _TEMPLATES_OWN & variables.keys():
        raise BadField(f"chat_template_kwargs.{min(taken)}", "is not the caller's to set")
    options = got.pop("stream_options", None)
    if options is not None and not got.get("stream", False):
        raise BadField("stream_options", "is only allowed when stream is true")
    usage = (options or {}).get("include_usage")
    wants, best = got.pop("logprobs", False), got.pop("top_logprobs", None)
    if best and not wants:
        raise BadField("top_logprobs", "needs logprobs to be true")
    got["model"] = model or got["model"]
    chat = Chat(
        messages=chat_messages,
        include_usage=fields.boolean("stream_options.include_usage", usage) if usage is not None else False,
        logprobs=(best or 0) if wants else None,
        splits_reasoning=True,
        template_variables=variables,
        **got,
    )
    if body.get("tools") is not None:
        chat.tools = tool_fields.tools("tools", body["tools"], limits, schema_required=False)
        if not chat.tools:
            raise BadField("tools", "must hold at least one tool")
    chat.tool_choice, chat.named_tool = tool_fields.openai_choice("tool_choice", body.get("tool_choice"), chat.tools)
    if body.get("response_format") is not None:
        chat.shape = tool_fields.openai_shape("response_format", body["response_format"], limits)
    return chat


class encoder:  # noqa: N801 - the Dialect protocol's word
    """Builds each event from byte prefixes made once for the choice."""

    def __init__(self, answer: Answer, index: int) -> None:
        self._named = answer.named_call
        self._calls = -1  # index of the open call
        usage_null = b',"usage":null' if answer.include_usage else b""
        self._choice = chunk_prefix(answer) + b',"choices":[{"index":%d,"delta":{' % index
        self._content = self._choice + b'"content":'
        self._end = b"}]" + usage_null + b"}\n\n"
        self._after = b'},"logprobs":null,"finish_reason":null' + self._end

    def opening(self) -> bytes:
        return self._choice + b'"role":"assistant","content":""' + self._after

    def text(self, text: str) -> bytes:
        return self._content + orjson.dumps(text) + self._after

    def delta(self, delta: Delta, logprobs: list[Logprob] | None) -> bytes:
        match delta:
            case Text(text):
                if logprobs is None:
                    return self.text(text)
                inner = b'"content":' + orjson.dumps(text)
            case Reasoning(text):
                inner = b'"reasoning_content":' + orjson.dumps(text)
            case CallStart(called):
                self._calls += 1
                call = {"index": self._calls, **_call(called, "")}
                inner = b'"tool_calls":[' + orjson.dumps(call) + b"]"
            case CallArguments(fragment):
                inner = b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (
                    self._calls,
                    orjson.dumps(fragment),
                )
        return self._choice + inner + b'},"logprobs":' + _logprobs(logprobs) + b',"finish_reason":null' + self._end

    def closing(self, finish: FinishReason, logprobs: list[Logprob] | None) -> bytes:
        reason = _finish(finish, called=self._calls >= 0, named=self._named).encode()
        return self._choice + b'},"logprobs":' + _logprobs(logprobs) + b',"finish_reason":"%s"' % reason + self._end


def usage_event(answer: Answer, usage: Usage) -> bytes:
    return chunk_prefix(answer) + b',"choices":[],"usage":' + orjson.dumps(_usage(usage)) + b"}\n\n"


def whole(answer: Answer, choices: Sequence[Message], usage: Usage) -> bytes:
    shown = [_choice(answer, index, message) for index, message in enumerate(choices)]
    return orjson.dumps(head(answer, "chat.completion") | {"choices": shown, "usage": _usage(usage)})


def _choice(answer: Answer, index: int, message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": message.text}
    if message.reasoning:
        said["reasoning_content"] = message.reasoning
    if message.calls:
        said["content"] = message.text or None
        said["tool_calls"] = [_call(call.name, call.arguments) for call in message.calls]
    return {
        "index": index,
        "message": said,
        "logprobs": None if message.logprobs is None else {"content": [_logprob(one) for one in message.logprobs]},
        "finish_reason": _finish(message.finish, called=bool(message.calls), named=answer.named_call),
    }


def _call(called: str, arguments: str) -> dict[str, Any]:
    identifier = f"call_{uuid.uuid4().hex[:24]}"
    return {"id": identifier, "type": "function", "function": {"name": called, "arguments": arguments}}


def _finish(finish: FinishReason, *, called: bool, named: bool) -> str:
    if finish is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if called and not named else "stop"


def _logprobs(logprobs: list[Logprob] | None) -> bytes:
    return orjson.dumps({"content": [_logprob(one) for one in logprobs]}) if logprobs else b"null"


def _logprob(found: Logprob) -> dict[str, Any]:
    return {
        "token": found.token,
        "logprob": found.logprob,
        "bytes": found.bytes,
        "top_logprobs": [asdict(token) for token in found.top],
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


_TYPES = {
    Kind.VALIDATION: (400, "invalid_request_error", None),
    Kind.TEMPLATE: (400, "invalid_request_error", None),
    Kind.TOOL: (400, "invalid_request_error", None),
    Kind.SYNTAX: (400, "invalid_request_error", None),
    Kind.TOO_LARGE: (413, "invalid_request_error", None),
    Kind.NO_ROUTE: (404, "invalid_request_error", None),
    Kind.UNKNOWN_MODEL: (404, "not_found", "model_not_found"),
    Kind.OVERLOADED: (429, "rate_limit_error", "rate_limit_exceeded"),
    Kind.LOADING: (503, "service_unavailable", None),
    Kind.DEADLINE: (504, "server_error", "timeout"),
    Kind.ENGINE: (500, "server_error", None),
    Kind.ENGINE_LOST: (500, "server_error", None),
    Kind.INTERNAL: (500, "server_error", None),
}


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    kind = kind_of(error)
    status, type_, code = _TYPES[kind]
    field = error.field if isinstance(error, BadRequest) else None
    message = message_of(error)
    if isinstance(error, NoRoute):
        status = error.status
    return status, {"error": {"message": message, "type": type_, "param": field, "code": code}}


def failure_event(error: Exception) -> bytes:
    return b"data: " + orjson.dumps(failure(error)[1]) + b"\n\n"
