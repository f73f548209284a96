"""Hermes, Qwen, SmolLM2: each call, or a list of them, between tags, anywhere in the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.api.grammar import Literal, Many, Node, Seq, Tagged
from serving.api.tools import json_calls
from serving.api.tools.base import Parser, Tool
from serving.api.tools.common import marker
from serving.api.tools.json_calls import JsonReading
from serving.api.tools.source import Steps

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class _Reading(JsonReading):
    opening = OPEN

    def calls(self) -> Steps[None]:
        yield from self.call_or_list()
        yield from self.peek()
        yield from self.literal(CLOSE)
        self.drop()


class JsonTags:
    name = "json_tags"

    def specials(self) -> Sequence[str]:
        return (OPEN, CLOSE)

    def parser(self, tools: Sequence[Tool]) -> Parser:
        return _Reading(tools)

    def calls(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        call = Seq((marker(OPEN, tokens), _body(tools, tokens)))
        return Many(call, "\n", None if parallel else 1)

    def answer(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        return Tagged(((marker(OPEN, tokens), _body(tools, tokens)),), None if parallel else 1)

    def instructions(self) -> str:
        return (
            "You can call the functions listed below. To call one, write a JSON object with its name and its "
            f"arguments between tags, each on a line of its own:\n{OPEN}\n"
            f'{{"name": "the function", "arguments": {{"argument": "value"}}}}\n{CLOSE}\n'
            "Use a pair of tags for each call. If no function helps, answer in plain text. The functions:\n"
        )

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        return "\n".join(f"{OPEN}\n{call}\n{CLOSE}" for call in json_calls.written(calls))

    def result(self, name: str | None, content: str) -> str:
        return f"<tool_response>\n{content}\n</tool_response>"


def _body(tools: Sequence[Tool], tokens: Mapping[str, int]) -> Node:
    return Seq((Literal("\n"), json_calls.any_of(tools), Literal("\n"), marker(CLOSE, tokens)))
