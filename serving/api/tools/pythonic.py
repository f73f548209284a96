"""Llama 4, Llama 3.2: the whole answer is a Python list of calls, `[f(a=1, b="x"), g()]`.

A call comes out when its closing parenthesis is reached, its arguments in one piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from serving.api.grammar import Json, Literal, Many, Node, OneOf, Seq, TextUnlike
from serving.api.tools.base import Parser, Tool
from serving.api.tools.common import result
from serving.api.tools.python_literals import to_json
from serving.api.tools.reading import NOT_BARE, Reading
from serving.api.tools.source import PYTHON, NotACall, Steps
from serving.errors import ToolRefused


class _Reading(Reading):
    def calls(self) -> Steps[None]:
        yield from self.one_of("[")
        yield from self._call()
        while (yield from self.one_of(",]")) == ",":
            yield from self._call()
        self.drop()

    def _call(self) -> Steps[None]:
        yield from self.peek()
        self.undecided()
        name = yield from self.bare_name()
        if (yield from self.peek()) != "(":
            raise NotACall
        pieces: list[str] = []
        yield from self.value(pieces.append, PYTHON)
        try:
            arguments = to_json("".join(pieces)[1:-1])
        except ValueError:
            raise NotACall from None
        self.start(name)
        self.arguments(arguments)
        self.whole()


class Pythonic:
    name = "pythonic"

    def specials(self) -> Sequence[str]:
        return ()

    def parser(self, tools: Sequence[Tool]) -> Parser:
        return _Reading(tools)

    def calls(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        """Raises `ToolRefused` for a tool whose arguments cannot be listed one by one."""
        # The bracket and the first name are one lexeme, longer than the text that `answer` could take them for.
        first = OneOf(tuple(_call(tool, "[") for tool in tools))
        if not parallel:
            return Seq((first, Literal("]")))
        more = Seq((Literal(", "), Many(OneOf(tuple(_call(tool) for tool in tools)), ", ")))
        return Seq((first, OneOf((more, Literal(""))), Literal("]")))

    def answer(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        """Raises `ToolRefused` for a tool whose arguments cannot be listed one by one."""
        text = TextUnlike(tuple(f"[{tool.name}(" for tool in tools))
        return OneOf((text, self.calls(tools, tokens, parallel=parallel)))

    def instructions(self) -> str:
        return (
            "You can call the functions listed below. To call some, answer with nothing but a Python list of calls "
            "with keyword arguments:\n[function(argument=value, other=value), second()]\n"
            "If no function helps, answer in plain text. The functions:\n"
        )

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        written = []
        for name, arguments in calls:
            keywords = (f"{key}={value!r}" for key, value in json.loads(arguments).items())
            written.append(f"{name}({', '.join(keywords)})")
        return f"[{', '.join(written)}]"

    def result(self, name: str | None, content: str) -> str:
        return result(name, content)


# The grammar: keyword arguments in the schema's order, values in JSON.

_KEYWORD = re.compile(r"[^\W\d][\w-]*")
_SHARED = ("$defs", "definitions")
_PLAIN = {"type", "properties", "required", "additionalProperties", "title", "description", "$schema", *_SHARED}


def _call(tool: Tool, before: str = "") -> Node:
    schema = tool.parameters
    properties, required = schema.get("properties", {}), schema.get("required", [])
    plain = schema.keys() <= _PLAIN and isinstance(properties, dict) and isinstance(required, list)
    if not plain or not all(isinstance(properties.get(key), dict) for key in [*properties, *required]):
        raise _refusal(tool, "its parameters are not an object with all properties listed")
    if NOT_BARE.search(tool.name):
        raise _refusal(tool, "its name cannot stand without quotes")
    if odd := [key for key in properties if not _KEYWORD.fullmatch(key)]:
        raise _refusal(tool, f"its parameter {odd[0]!r} cannot be a keyword")
    shared = {key: schema[key] for key in _SHARED if key in schema}
    keywords = [(Seq((Literal(f"{key}="), Json(value | shared))), key in required) for key, value in properties.items()]
    return Seq((Literal(f"{before}{tool.name}("), _keywords(keywords), Literal(")")))


def _refusal(tool: Tool, why: str) -> ToolRefused:
    return ToolRefused(f"tool {tool.name}: this model's call format cannot express it: {why}", "tools")


def _keywords(keywords: Sequence[tuple[Node, bool]]) -> Node:
    """Keywords with commas between, where those that are not required may be missing."""
    nothing = Literal("")
    first = next((place for place, (_, required) in enumerate(keywords) if required), None)

    def rest(start: int) -> tuple[Node, ...]:
        parts = []
        for keyword, required in keywords[start:]:
            part = Seq((Literal(", "), keyword))
            parts.append(part if required else OneOf((part, nothing)))
        return tuple(parts)

    if first is None:  # whichever comes first has no comma
        return OneOf((nothing, *(Seq((keyword, *rest(n + 1))) for n, (keyword, _) in enumerate(keywords))))
    before = (OneOf((Seq((keyword, Literal(", "))), nothing)) for keyword, _ in keywords[:first])
    return Seq((*before, keywords[first][0], *rest(first + 1)))
