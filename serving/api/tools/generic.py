"""For models that were never taught to call tools: the whole answer is a call in bare JSON, or a list of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.api.grammar import Literal, Many, Node, OneOf, Seq, TextUnlike
from serving.api.tools import json_calls
from serving.api.tools.base import Parser, Tool
from serving.api.tools.common import result
from serving.api.tools.json_calls import JsonReading
from serving.api.tools.source import Steps


class _Reading(JsonReading):
    def calls(self) -> Steps[None]:
        yield from self.call_or_list()


class Generic:
    name = "generic"

    def specials(self) -> Sequence[str]:
        return ()

    def parser(self, tools: Sequence[Tool]) -> Parser:
        return _Reading(tools)

    def calls(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        call = json_calls.any_of(tools)
        return OneOf((call, Seq((Literal("["), Many(call, ", "), Literal("]"))))) if parallel else call

    def answer(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        return OneOf((TextUnlike(("{", "[{")), self.calls(tools, tokens, parallel=parallel)))

    def instructions(self) -> str:
        return (
            "You can call the functions listed below. To call one, answer with nothing but a JSON object like this:\n"
            '{"name": "the function", "arguments": {"argument": "value"}}\n'
            "or with a JSON list of such objects to make several calls. Use only functions and arguments that are "
            "listed. If no function helps, answer in plain text. The functions:\n"
        )

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        objects = json_calls.written(calls)
        return objects[0] if len(objects) == 1 else f"[{', '.join(objects)}]"

    def result(self, name: str | None, content: str) -> str:
        return result(name, content)
