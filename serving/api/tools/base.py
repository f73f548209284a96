"""What a tool format offers, and the words that its parser uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.api.grammar import Node


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments, an object."""

    name: str
    description: str | None
    parameters: dict[str, Any]
    schema_field: str = "parameters"
    """What the caller called it, for errors."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is not part of a call. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins: its tool's name, told once. What follows belongs to it until the next start."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the open call's arguments, raw JSON. Never empty; all pieces together are one JSON object."""

    fragment: str


Event = Text | CallStart | CallArguments


class Parser(Protocol):
    """Reads one answer as it grows. Never raises, and loses nothing: what is not a call of a known tool is text.

    How the answer is cut into pieces does not matter: the events, with adjacent texts and adjacent
    fragments joined, are the same.
    """

    def feed(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]:
        """The answer is over: what was held back because it might have become a call."""
        ...


class Format(Protocol):
    name: str

    def specials(self) -> Sequence[str]:
        """Special tokens that the parser must see as text."""
        ...

    def parser(self, tools: Sequence[Tool]) -> Parser: ...

    def calls(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        """An answer of nothing but one call, or more where `parallel`. `tokens`: ids of the specials that exist."""
        ...

    def answer(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        """An answer of text, calls, or both as the format has it; the arguments of every call valid."""
        ...

    def instructions(self) -> str:
        """For models whose template does not show tools: how to call them. Comes before the tools' JSON."""
        ...

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Past calls (name, arguments as JSON) as the model would have written them."""
        ...

    def result(self, name: str | None, content: str) -> str:
        """A tool's result as the words of a user, for templates without a role for it."""
        ...
