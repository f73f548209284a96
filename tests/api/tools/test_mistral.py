from __future__ import annotations

import pytest

from serving.api.tools.base import CallArguments, CallStart, Event, Text
from serving.api.tools.mistral import Mistral
from tests.api.tools.answers import TOOLS, Walk, read

CALL = [CallStart("f"), CallArguments('{"a": 1}')]


def reading(answer: str) -> list[Event]:
    events = read(Mistral(), [answer])
    assert read(Mistral(), answer) == events
    return events


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_list_of_calls_with_ids_or_without(blank: str) -> None:
    calls = '[{"name": "f", "arguments": {"a": 1}, "id": "abcDEF123"}, {"name": "f2", "arguments": {}}]'
    events = [*CALL, CallStart("f2"), CallArguments("{}")]
    assert reading(f"[TOOL_CALLS]{blank}{calls}") == events
    assert reading(f"I look. [TOOL_CALLS]{blank}{calls}{blank}") == [Text("I look. "), *events]
    assert reading(f"[TOOL_CALLS]{blank}{calls} Done") == [*events, Text(" Done")]


@pytest.mark.parametrize("arguments", ["", "[ARGS]", " "])
def test_newer_models_name_the_tool_before_its_arguments(arguments: str) -> None:
    assert reading(f'[TOOL_CALLS]f{arguments}{{"a": 1}}') == CALL
    assert reading(f'Hi[TOOL_CALLS]f{arguments}{{"a": 1}}[TOOL_CALLS]f{{"a": 1}}') == [Text("Hi"), *CALL * 2]


@pytest.mark.parametrize(
    "answer",
    [
        "[TOOL_CALLS]",
        "[TOOL_CALLS]launch{}",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]f[ARG",
        "[TOOL_CALLS]f (1)",
        "[TOOL_CALLS] [1]",
    ],
)
def test_what_is_no_call_is_text(answer: str) -> None:
    assert reading(answer) == [Text(answer)]
    assert reading(f"[{answer}, ") == [Text(f"[{answer}, ")]


def test_the_grammar_takes_text_before_and_ids_of_nine_characters() -> None:
    walk = Walk(Mistral().answer(TOOLS, {}, parallel=True))
    call = '[{"name": "get_weather", "arguments": {"city": "Oslo"}%s}]'
    assert walk.accepts("[TOOL_CALLS]" + call % "")
    assert walk.accepts("I look. [TOOL_CALLS] " + call % ', "id": "abcDEF123"')
    assert not walk.accepts("[TOOL_CALLS] " + call % ', "id": "abc"')
    assert not walk.accepts("[TOOL_CALLS]get_weather{}")
