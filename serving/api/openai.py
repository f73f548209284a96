"""The openai dialect: `/v1/…`. https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson

from serving.api import fields, messages
from serving.api.chat import Chat
from serving.api.dialect import Answer, Usage
from serving.api.failures import Kind, NoRoute, kind_of, message_of
from serving.api.text import Logprob, Piece
from serving.core import FinishReason
from serving.errors import BadField, BadRequest
from serving.settings import LimitSettings

name = "openai"

_FIELDS: dict[str, fields.Check] = {
    "model": fields.text,
    "max_tokens": fields.integer(1, 2**31 - 1),
    "max_completion_tokens": fields.integer(1, 2**31 - 1),
    "temperature": fields.number(0, 2),
    "top_p": fields.number(0, 1, above=True),
    "frequency_penalty": fields.number(-2, 2),
    "presence_penalty": fields.number(-2, 2),
    "seed": fields.integer(-(2**63), 2**63 - 1),
    "stop": fields.stops,
    "stream": fields.boolean,
    "stream_options": fields.mapping,
    "logprobs": fields.boolean,
    "top_logprobs": fields.integer(0, 20),
    "min_tokens": fields.integer(0, 2**31 - 1),
    "ignore_eos": fields.boolean,
    "user": fields.text,
}


def parse(body: dict[str, Any], model: str | None, limits: LimitSettings) -> Chat:
    if body.get("model") is None and model is None:
        raise BadField("model", "is required")
    if body.get("messages") is None:
        raise BadField("messages", "is required")
    chat_messages = messages.check("messages", body["messages"], limits.messages)
    got = fields.read(body, _FIELDS)
    if "max_completion_tokens" in got:
        got["max_tokens"] = got.pop("max_completion_tokens")
    stream = got.get("stream", False)
    options = got.pop("stream_options", None)
    if options is not None and not stream:
        raise BadField("stream_options", "is only allowed when stream is true")
    usage = (options or {}).get("include_usage")
    wants, best = got.pop("logprobs", False), got.pop("top_logprobs", None)
    if best and not wants:
        raise BadField("top_logprobs", "needs logprobs to be true")
    got["model"] = model or got["model"]
    return Chat(
        messages=chat_messages,
        include_usage=fields.boolean("stream_options.include_usage", usage) if usage is not None else False,
        logprobs=(best or 0) if wants else None,
        **got,
    )


_FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
    FinishReason.LENGTH: "length",
}


class encoder:  # noqa: N801 - the Dialect protocol's word
    """Builds each event from byte prefixes made once for the answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        head = {"id": answer.id, "object": "chat.completion.chunk", "created": answer.created, "model": answer.model}
        self._chunk = b"data: " + orjson.dumps(head)[:-1] + b',"system_fingerprint":' + orjson.dumps(answer.fingerprint)
        self._usage_null = b',"usage":null' if answer.include_usage else b""
        self._content = self._chunk + b',"choices":[{"index":0,"delta":{"content":'
        self._after = b'},"logprobs":null,"finish_reason":null}]' + self._usage_null + b"}\n\n"

    def opening(self) -> bytes:
        return (
            self._chunk
            + b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
            + self._usage_null
            + b"}\n\n"
        )

    def text(self, text: str) -> bytes:
        return self._content + orjson.dumps(text) + self._after

    def piece(self, piece: Piece) -> bytes:
        if piece.logprob is None:
            return self.text(piece.text)
        return (
            self._content
            + orjson.dumps(piece.text)
            + b'},"logprobs":'
            + orjson.dumps({"content": [_logprob(piece.logprob)]})
            + b',"finish_reason":null}]'
            + self._usage_null
            + b"}\n\n"
        )

    def closing(self, finish: FinishReason, usage: Usage) -> bytes:
        end = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%s"}]' % _FINISH[finish].encode()
        events = self._chunk + end + self._usage_null + b"}\n\n"
        if self._answer.include_usage:
            events += self._chunk + b',"choices":[],"usage":' + orjson.dumps(_usage(usage)) + b"}\n\n"
        return events

    def whole(self, pieces: list[Piece], finish: FinishReason, usage: Usage) -> bytes:
        answer = self._answer
        logprobs = [_logprob(piece.logprob) for piece in pieces if piece.logprob is not None]
        return orjson.dumps(
            {
                "id": answer.id,
                "object": "chat.completion",
                "created": answer.created,
                "model": answer.model,
                "system_fingerprint": answer.fingerprint,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "".join(piece.text for piece in pieces)},
                        "logprobs": {"content": logprobs} if logprobs else None,
                        "finish_reason": _FINISH[finish],
                    }
                ],
                "usage": _usage(usage),
            }
        )


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
    Kind.UNKNOWN_MODEL: (404, "not_found_error", "model_not_found"),
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
