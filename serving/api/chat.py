"""A chat completion as the caller asked for it, in no dialect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Chat:
    """Checked, but not yet rendered. None means that the caller said nothing.

    `messages` are plain dicts as a chat template reads them: role, content, and what else was sent.
    """

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None  # None: none; n: the n best beside the chosen one
    min_tokens: int = 0
    ignore_eos: bool = False
    user: str | None = None
    template_variables: dict[str, Any] = field(default_factory=dict)
