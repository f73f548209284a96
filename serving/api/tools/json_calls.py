"""A call as one JSON object, `{"name": ..., "arguments": {...}}`: read, described as a grammar, written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from serving.api.grammar import Json, Literal, Node, OneOf, Seq
from serving.api.tools.base import Tool
from serving.api.tools.common import quoted
from serving.api.tools.reading import Reading
from serving.api.tools.source import NotACall, Steps

_ARGUMENTS = ("arguments", "parameters")
_END = Literal("}")


class JsonReading(Reading):
    """Reads call objects: keys in any order, others than name and arguments passed over.

    A call starts when its name is known and its arguments have begun, so that what has no arguments
    object, a number say, is never announced. Arguments that come before the name are held until then;
    a string that holds JSON is held until it is whole.
    """

    def call_or_list(self) -> Steps[None]:
        if (yield from self.peek()) != "[":
            yield from self.call()
            return
        yield from self.one_of("[")
        yield from self.call()
        while (yield from self.one_of(",]")) == ",":
            yield from self.call()
        self.drop()

    def call(self) -> Steps[None]:
        """Reads one call. Raises `NotACall`."""
        yield from self.one_of("{")
        self.undecided()
        name: str | None = None
        held: str | None = None  # arguments that wait for the name
        started = False
        while True:
            key = yield from self._string()
            yield from self.one_of(":")
            first = yield from self.peek()
            if (key == "name" and name is not None) or (key in _ARGUMENTS and (started or held is not None)):
                raise NotACall  # said twice
            if key == "name":
                name = yield from self._string()
                self.known(name)
            elif key not in _ARGUMENTS or first == "n":  # null is no arguments
                yield from self._skip(first)
            elif first == "{" and name is not None:
                started = True
                self.start(name)
                yield from self.value(self.arguments)
                self.whole()
            else:
                held = yield from self._held_arguments(first)
            if name is not None and held is not None and not started:
                started = True
                self._at_once(name, held)
            if (yield from self.one_of(",}")) == "}":
                break
        if name is None:
            raise NotACall
        if not started:
            self._at_once(name, "{}")
        self.drop()

    def _at_once(self, name: str, arguments: str) -> None:
        self.start(name)
        self.arguments(arguments)
        self.whole()

    def _string(self) -> Steps[str]:
        if (yield from self.peek()) != '"':
            raise NotACall
        pieces: list[str] = []
        yield from self.value(pieces.append)
        try:
            return str(json.loads("".join(pieces)))
        except ValueError:
            raise NotACall from None

    def _held_arguments(self, first: str) -> Steps[str]:
        if first == "{":
            pieces: list[str] = []
            yield from self.value(pieces.append)
            return "".join(pieces)
        text = yield from self._string()
        try:
            text.encode()  # half of a surrogate pair, escaped, is valid in JSON and nowhere else
            if isinstance(json.loads(text), dict):
                return text
        except (ValueError, RecursionError):
            pass
        raise NotACall

    def _skip(self, first: str) -> Steps[None]:
        if first in '"{[':
            yield from self.value(lambda piece: None)
            return
        word = ""
        while (char := (yield from self.peek())) not in ",}":
            word += char
            self.at += 1
        try:
            json.loads(word)
        except ValueError:
            raise NotACall from None


def node(tool: Tool, key: str = "arguments", end: Node = _END) -> Node:
    """The grammar of a call of this tool."""
    return Seq((Literal(f'{{"name": {quoted(tool.name)}, "{key}": '), Json({"type": "object"} | tool.parameters), end))


def any_of(tools: Sequence[Tool], key: str = "arguments", end: Node = _END) -> Node:
    """The grammar of a call of one of the tools."""
    return OneOf(tuple(node(tool, key, end) for tool in tools))


def written(calls: Iterable[tuple[str, str]], key: str = "arguments") -> list[str]:
    return [f'{{"name": {quoted(name)}, "{key}": {arguments}}}' for name, arguments in calls]
