from __future__ import annotations

from typing import Any

import pytest

from serving.api.tools.base import CallArguments, CallStart, Event, Text, Tool
from serving.api.tools.pythonic import Pythonic
from serving.errors import ToolRefused
from tests.api.tools.answers import OPEN_TOOLS, Walk, read


def reading(answer: str) -> list[Event]:
    events = read(Pythonic(), [answer])
    assert read(Pythonic(), answer) == events
    return events


def test_calls_in_a_list() -> None:
    answer = """ [f(a=1, b="x)", c={'k': [True, None]}), get-it(), f2(s='it\\'s "so"',)] """
    assert reading(answer) == [
        CallStart("f"),
        CallArguments('{"a": 1, "b": "x)", "c": {"k": [true, null]}}'),
        CallStart("get-it"),
        CallArguments("{}"),
        CallStart("f2"),
        CallArguments('{"s": "it\'s \\"so\\""}'),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "[1, 2]",
        "[f]",
        "[f(1)]",
        "[f(a=b)]",
        "[f(a=g())]",
        "[launch(a=1)]",
        "[f(a=1",
        "[]",
        "f(a=1)",
        "[a](b)",
        "[get_weath",
    ],
)
def test_what_is_no_call_is_text(answer: str) -> None:
    assert reading(answer) == [Text(answer)]


@pytest.mark.parametrize("junk", [", f(1)]", " then", ", get_w", "]]"])
def test_what_follows_a_call_is_text(junk: str) -> None:
    assert reading(f"[f(){junk}") == [CallStart("f"), CallArguments("{}"), Text(junk.removeprefix("]"))]


def test_text_is_held_only_while_it_may_name_a_tool() -> None:
    parser = Pythonic().parser(OPEN_TOOLS)
    assert parser.feed("[get") == []
    assert parser.feed(" it") == [Text("["), Text("get it")]


def tool(**schema: Any) -> Tool:
    return Tool("f", None, schema)


def test_keywords_stand_in_order_and_only_required_ones_must() -> None:
    whole = {"type": "integer"}
    properties = {"a": whole, "b": whole, "c": whole}
    for required, right, wrong in [
        (
            ["b"],
            ["b=1", "a=1, b=2", "b=1, c=2", "a=1, b=2, c=3"],
            ["", "a=1", "a=1, c=2", "b=1, a=2", ", b=1", "b=1, "],
        ),
        ([], ["", "a=1", "b=1", "c=1", "a=1, c=2", "b=1, c=2", "a=1, b=2, c=3"], ["c=1, a=2", ", a=1", "a=1,b=2"]),
        (["a", "c"], ["a=1, c=2", "a=1, b=2, c=3"], ["a=1", "c=1", "a=1, b=2"]),
    ]:
        for make in (Pythonic().calls, Pythonic().answer):
            walk = Walk(make([tool(type="object", properties=properties, required=required)], {}, parallel=True))
            assert all(walk.accepts(f"[f({keywords})]") for keywords in right)
            assert not any(walk.accepts(f"[f({keywords})]") for keywords in wrong)
            assert walk.accepts(f"[f({right[0]}), f({right[1]})]")


def test_properties_share_definitions() -> None:
    shared = {"$defs": {"size": {"enum": [1, 2]}}, "properties": {"a": {"$ref": "#/$defs/size"}}}
    walk = Walk(Pythonic().calls([tool(**shared)], {}, parallel=False))
    assert walk.accepts("[f(a=2)]")
    assert not walk.accepts("[f(a=3)]")


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"properties": {"a": {}}}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {}}},
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "minProperties": 1},
        {"properties": {"a": True}},
        {"properties": {"a b": {}}},
        {"properties": []},
        {"required": "a"},
    ],
)
def test_parameters_that_are_no_list_of_keywords_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ToolRefused, match="tool f: "):
        Pythonic().calls([tool(**schema)], {}, parallel=True)


def test_a_name_that_would_not_be_read_back_is_refused() -> None:
    with pytest.raises(ToolRefused, match=r"tool f/2: .* its name"):
        Pythonic().calls([Tool("f/2", None, {})], {}, parallel=True)


def test_calls_are_written_as_python() -> None:
    assert (
        Pythonic().write([("f", '{"a": "x", "b": [true, null]}'), ("f2", "{}")]) == "[f(a='x', b=[True, None]), f2()]"
    )
