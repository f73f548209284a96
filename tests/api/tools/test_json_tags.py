from __future__ import annotations

import pytest

from serving.api.tools.base import CallArguments, CallStart, Event, Text
from serving.api.tools.json_tags import JsonTags
from tests.api.tools.answers import OPEN_TOOLS, TOOLS, Walk, read

F = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CALL = [CallStart("f"), CallArguments('{"a": 1}')]


def reading(answer: str) -> list[Event]:
    events = read(JsonTags(), [answer])
    assert read(JsonTags(), answer) == events
    return events


def test_calls_in_a_row() -> None:
    assert reading(F) == CALL
    assert reading(f"\n{F}\n\n{F} {F}\n") == CALL * 3


def test_text_around_calls() -> None:
    assert reading(f"Let me see.\n{F}\nand\n{F} < done") == [
        Text("Let me see.\n"),
        *CALL,
        Text("\nand\n"),
        *CALL,
        Text(" < done"),
    ]


def test_a_list_between_tags() -> None:
    answer = '<tool_call>[{"name": "f", "arguments": {"a": 1}}, {"name": "f2"}]</tool_call>'
    assert reading(answer) == [*CALL, CallStart("f2"), CallArguments("{}")]
    assert reading("<tool_call>[]</tool_call>") == [Text("<tool_call>[]</tool_call>")]


@pytest.mark.parametrize(
    "end", ["<", "<tool_", "<tool_call>", '<tool_call>{"name', '<tool_call>[{"name": "f"', "<tool_x"]
)
def test_half_a_marker_is_text_at_the_end_and_not_before(end: str) -> None:
    parser = JsonTags().parser(OPEN_TOOLS)
    assert parser.feed("Hi ") == [Text("Hi ")]
    events = parser.feed(end)
    assert events == ([] if end != "<tool_x" else [Text(end)])
    assert events + parser.finish() == [Text(end)]


@pytest.mark.parametrize("end", ["", "}", "}\n", "}\n</tool", ', "id": "x'])
def test_a_call_that_is_not_closed_is_a_call(end: str) -> None:
    assert reading('<tool_call>{"name": "f", "arguments": {"a": 1}' + end) == CALL


def test_a_missing_closing_tag_does_not_hide_the_next_call() -> None:
    assert reading(F.removesuffix("</tool_call>") + F) == CALL * 2
    assert reading(f"<tool_call><tool_call>{F}") == [Text("<tool_call><tool_call>"), *CALL]


def test_blank_answers_are_text_and_blanks_about_calls_are_not() -> None:
    assert reading(" \n") == [Text(" \n")]
    assert reading(f" \n{F} \n") == CALL
    assert reading(f"{F} \nx") == [*CALL, Text(" \nx")]


def test_the_grammar_lets_text_stand_anywhere_and_no_tag_without_a_call() -> None:
    call = JsonTags().write([("get_weather", '{"city": "Oslo"}')])
    walk = Walk(JsonTags().answer(TOOLS, {}, parallel=True))
    assert walk.accepts(f"I look.\n{call}\nOr < {call} done")
    assert not walk.accepts("I look. <tool_call>garbage")
    assert not walk.accepts("<tool_call>")
    assert not walk.accepts(f"{call} <tool_call>")
    one = Walk(JsonTags().answer(TOOLS, {}, parallel=False))
    assert one.accepts(f"I look.\n{call} done")
    assert not one.accepts(f"{call} and {call}")


def test_a_result_stands_between_tags() -> None:
    assert JsonTags().result("f", "sunny") == "<tool_response>\nsunny\n</tool_response>"
