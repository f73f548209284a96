"""Llama 3: the whole answer is a JSON object with `parameters`, or several with semicolons between.

The models put the special token `<|python_tag|>` before it at times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.api.grammar import Literal, Many, Node, OneOf, Seq, TextUnlike
from serving.api.tools import json_calls
from serving.api.tools.base import Parser, Tool
from serving.api.tools.common import marker, result
from serving.api.tools.json_calls import JsonReading
from serving.api.tools.source import Steps

TAG = "<|python_tag|>"


class _Reading(JsonReading):
    def calls(self) -> Steps[None]:
        if (yield from self.peek()) == "<":
            yield from self.literal(TAG)
        yield from self.call()
        while (yield from self.peek()) == ";":
            yield from self.one_of(";")
            yield from self.call()


class Llama3Json:
    name = "llama3_json"

    def specials(self) -> Sequence[str]:
        return (TAG,)

    def parser(self, tools: Sequence[Tool]) -> Parser:
        return _Reading(tools)

    def calls(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        return Many(json_calls.any_of(tools, "parameters"), "; ", None if parallel else 1)

    def answer(self, tools: Sequence[Tool], tokens: Mapping[str, int], *, parallel: bool) -> Node:
        calls = self.calls(tools, tokens, parallel=parallel)
        return OneOf((TextUnlike(("{", TAG)), Seq((OneOf((marker(TAG, tokens), Literal(""))), calls))))

    def instructions(self) -> str:
        return (
            "You can call the functions listed below. To call one, answer with nothing but a JSON object like this:\n"
            '{"name": "the function", "parameters": {"parameter": "value"}}\n'
            'Put "; " between several calls. If no function helps, answer in plain text. The functions:\n'
        )

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        return "; ".join(json_calls.written(calls, "parameters"))

    def result(self, name: str | None, content: str) -> str:
        return result(name, content)
