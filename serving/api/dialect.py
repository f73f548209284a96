"""What a dialect must offer: one parser and one encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from serving.api.chat import Chat
from serving.api.text import Piece
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
    """What every body and chunk of one answer repeats."""

    id: str
    model: str
    created: int
    fingerprint: str
    include_usage: bool


@dataclass(slots=True)
class Failure:
    """An error on its way out: HTTP status, the dialect's body, extra headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


class Encoder(Protocol):
    """Bytes of one answer. Chunks are whole SSE events."""

    def opening(self) -> bytes:
        """Events before the first token."""
        ...

    def piece(self, piece: Piece) -> bytes:
        """The event of one token."""
        ...

    def text(self, text: str) -> bytes:
        """The event of one token without log probabilities."""
        ...

    def closing(self, finish: FinishReason, usage: Usage) -> bytes:
        """Events after the last token, without [DONE]."""
        ...

    def whole(self, pieces: list[Piece], finish: FinishReason, usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        ...


class Dialect(Protocol):
    name: str

    def parse(self, body: dict[str, Any], model: str | None, limits: LimitSettings) -> Chat:
        """Check the body. `model` is the one in the path, if any. Raises `BadRequest`."""
        ...

    def encoder(self, answer: Answer) -> Encoder: ...

    def failure(self, error: Exception) -> tuple[int, dict[str, Any]]:
        """HTTP status and body for an error, before the first byte."""
        ...

    def failure_event(self, error: Exception) -> bytes:
        """The one SSE event for an error after the first byte."""
        ...
