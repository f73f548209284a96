"""Mistral: the special token `[TOOL_CALLS]`, then a JSON list of calls; text may come before.

Newer models write each call as `[TOOL_CALLS]name{...}` or `[TOOL_CALLS]name[ARGS]{...}`: read, not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.api.grammar import Literal, Many, Node, OneOf, Regex, Seq, Tagged
from serving.api.tools import json_calls
from serving.api.tools.base import Parser, Tool
from serving.api.tools.common import marker, result
from serving.api.tools.json_calls import JsonReading
from serving.api.tools.source import NotACall, Steps

OPEN, ARGS = "[TOOL_CALLS]", "[ARGS]"


class _Reading(JsonReading):
    opening = OPEN

    def calls(self) -> Steps[None]:
        if (yield from self.peek()) in "[{":
            yield from self.call_or_list()
        else:
            yield from self._named()

    def _named(self) -> Steps[None]:
        self.undecided()
        name = yield from self.bare_name()
        if (yield from self.peek()) == "[":
            yield from self.literal(ARGS)
        if (yield from self.peek()) != "{":
            raise NotACall
        self.start(name)
        yield from self.value(self.arguments)
        self.whole()


class Mistral:
    name = "mistral"

    def specials(self) -> Sequence[str]:
        return (OPEN, ARGS)

    def parser(self, tools: Sequence[Tool]) -> Parser:
        return _Reading(tools)

    def calls(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        return Seq((marker(OPEN, tokens), _list(tools, parallel)))

    def answer(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        return Tagged(((marker(OPEN, tokens), _list(tools, parallel)),), most=1)

    def instructions(self) -> str:
        return (
            f"You can call the functions listed below. To call some, write {OPEN} and then a JSON list of calls:\n"
            f'{OPEN} [{{"name": "the function", "arguments": {{"argument": "value"}}}}]\n'
            "If no function helps, answer in plain text. The functions:\n"
        )

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        return f"{OPEN} [{', '.join(json_calls.written(calls))}]"

    def result(self, name: str | None, content: str) -> str:
        return result(name, content)


def _list(tools: Sequence[Tool], parallel: bool) -> Node:
    # Models write ids in some versions and no blank before the list in others.
    end = OneOf((Literal("}"), Seq((Literal(', "id": "'), Regex("[a-zA-Z0-9]{9}"), Literal('"}')))))
    calls = Many(json_calls.any_of(tools, end=end), ", ", None if parallel else 1)
    return Seq((OneOf((Literal(" ["), Literal("["))), calls, Literal("]")))
