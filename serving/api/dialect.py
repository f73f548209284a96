"""What a dialect must offer: one parser and one encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from serving.api.chat import Chat
from serving.api.text import Logprob
from serving.api.tools.base import CallArguments, CallStart, Text
from serving.core import FinishReason
from serving.settings import LimitSettings

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(slots=True, frozen=True)
class Answer:
    """What every body and chunk of one answer repeats, and what the question says about its encoding."""

    id: str
    model: str
    created: int
    fingerprint: str
    include_usage: bool = False
    named_call: bool = False  # the caller named the tool
    forced_call: bool = False  # a call was named or required: what is no call was cut off before it became one
    first_call_id: int = 0  # where ids are integers
    descriptions: Mapping[str, str | None] = field(default_factory=dict)  # of the tools
    prompt: str | None = None  # a raw one, to be repeated
    says_eos_token: bool = False  # huggingface: "eos_token" where it is "stop"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model thought and did not say. Never empty."""

    text: str


Delta = Text | Reasoning | CallStart | CallArguments


@dataclass(slots=True)
class Call:
    name: str
    arguments: str  # raw JSON


@dataclass(slots=True)
class Message:
    """One choice, whole."""

    text: str
    reasoning: str
    calls: list[Call]
    logprobs: list[Logprob] | None
    finish: FinishReason


class Encoder(Protocol):
    """The events of one streamed choice. Each is a whole SSE event."""

    def opening(self) -> bytes:
        """Before the first token."""
        ...

    def text(self, text: str) -> bytes:
        """One token of plain text: the common case."""
        ...

    def delta(self, delta: Delta, logprobs: list[Logprob] | None) -> bytes: ...

    def closing(self, finish: FinishReason, logprobs: list[Logprob] | None) -> bytes:
        """After the last token. `logprobs` are those that no delta has carried."""
        ...


class Dialect(Protocol):
    name: str

    def parse(self, body: dict[str, Any], model: str | None, limits: LimitSettings) -> Chat:
        """Check the body. `model` is the one in the path, if any. Raises `BadRequest`."""
        ...

    def encoder(self, answer: Answer, index: int) -> Encoder: ...

    def usage_event(self, answer: Answer, usage: Usage) -> bytes:
        """The event before [DONE] that tells the usage, where the caller asked for it."""
        ...

    def whole(self, answer: Answer, choices: Sequence[Message], usage: Usage) -> bytes:
        """The body of an answer that is not streamed. Raises `ToolRefused` for what the dialect cannot say."""
        ...

    def failure(self, error: Exception) -> tuple[int, dict[str, Any]]:
        """HTTP status and body for an error, before the first byte."""
        ...

    def failure_event(self, error: Exception) -> bytes:
        """The one SSE event for an error after the first byte."""
        ...


def head(answer: Answer, kind: str) -> dict[str, Any]:
    """The keys that bodies and chunks of both dialects begin with."""
    return {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
    }


def chunk_prefix(answer: Answer) -> bytes:
    """A chunk up to its choices, ready-made once for an answer."""
    return b"data: " + orjson.dumps(head(answer, "chat.completion.chunk"))[:-1]
