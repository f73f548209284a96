"""The huggingface dialect: `/models/{id}/…`, the Hub's chat-completion task as TGI spoke it.

Its shapes are those of the task's published schema, odd ones included; PROTOCOL in docs/api.md.
https://huggingface.co/docs/api-inference/tasks/chat-completion
"""

from __future__ import annotations

from typing import Any

import orjson

from serving.api import fields, messages
from serving.api.chat import Chat
from serving.api.dialect import Answer, Usage
from serving.api.failures import Kind, NoRoute, kind_of, message_of
from serving.api.text import Logprob, Piece
from serving.core import FinishReason
from serving.errors import BadField
from serving.settings import LimitSettings

name = "huggingface"

_FIELDS: dict[str, fields.Check] = {
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
    "min_tokens": fields.integer(0, 2**31 - 1),
    "ignore_eos": fields.boolean,
}


def parse(body: dict[str, Any], model: str | None, limits: LimitSettings) -> Chat:
    """`model` in the body is ignored: the path decides."""
    if body.get("messages") is None:
        raise BadField("messages", "is required")
    chat_messages = messages.check("messages", body["messages"], limits.messages)
    got = fields.read(body, _FIELDS)
    got.setdefault("max_tokens", got.pop("max_completion_tokens", limits.huggingface_max_tokens))
    usage = got.pop("stream_options", {}).get("include_usage")
    wants, best = got.pop("logprobs", False), got.pop("top_logprobs", None)
    if best and not wants:
        raise BadField("top_logprobs", "needs logprobs to be true")
    if "seed" in got:
        got["seed"] &= 2**63 - 1  # vLLM's seeds are signed
    return Chat(
        model=model or fields.text("model", body.get("model")),
        messages=chat_messages,
        include_usage=fields.boolean("stream_options.include_usage", usage) if usage is not None else False,
        logprobs=(best or 0) if wants else None,
        **got,
    )


_FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_SEQUENCE: "stop_sequence",
    FinishReason.LENGTH: "length",
}


class encoder:  # noqa: N801 - the Dialect protocol's word
    """Builds each event from byte prefixes made once for the answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        head = {
            "id": answer.id,
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": answer.model,
            "system_fingerprint": answer.fingerprint,
        }
        self._chunk = b"data: " + orjson.dumps(head)[:-1]
        self._content = self._chunk + b',"choices":[{"index":0,"delta":{"role":"assistant","content":'
        self._after = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def opening(self) -> bytes:
        return b""

    def text(self, text: str) -> bytes:
        return self._content + orjson.dumps(text) + self._after

    def piece(self, piece: Piece) -> bytes:
        if piece.logprob is None:
            return self.text(piece.text)
        logprobs = orjson.dumps({"content": [_logprob(piece.logprob)]})
        return self._content + orjson.dumps(piece.text) + b'},"logprobs":' + logprobs + b',"finish_reason":null}]}\n\n'

    def closing(self, finish: FinishReason, usage: Usage) -> bytes:
        events = self._content + b'""},"logprobs":null,"finish_reason":"%s"}]}\n\n' % _FINISH[finish].encode()
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
    return status, {"error": message, "error_type": type_}


def failure_event(error: Exception) -> bytes:
    kind = kind_of(error)
    message = message_of(error)
    type_ = "timeout" if kind is Kind.DEADLINE else "generation"
    return b"data: " + orjson.dumps({"error": message, "error_type": type_}) + b"\n\n"
