from __future__ import annotations

import pytest

from serving.api.tools.base import CallArguments, CallStart, Event, Text
from serving.api.tools.llama import Llama3Json
from tests.api.tools.answers import TOOLS, Walk, read

F = '{"name": "f", "parameters": {"a": 1}}'
CALL = [CallStart("f"), CallArguments('{"a": 1}')]


def reading(answer: str) -> list[Event]:
    events = read(Llama3Json(), [answer])
    assert read(Llama3Json(), answer) == events
    return events


@pytest.mark.parametrize("before", ["", "\n\n", "<|python_tag|>", " <|python_tag|>\n"])
@pytest.mark.parametrize("between", [";", "; ", " ;\n"])
def test_calls_with_semicolons_between(before: str, between: str) -> None:
    assert reading(before + F) == CALL
    assert reading(before + between.join([F] * 3)) == CALL * 3


@pytest.mark.parametrize(
    "answer", [f"Sure: {F}", "<|python_tag|>search(1)", "<|python", "<b>", "{", '{"a": 1}', f"[{F}]"]
)
def test_an_answer_that_does_not_begin_with_a_call_is_text(answer: str) -> None:
    assert reading(answer) == [Text(answer)]


@pytest.mark.parametrize("junk", ["; then", " then", f" {F}", f"\n{F}", '; {"name": "launch"}'])
def test_what_follows_the_calls_is_text(junk: str) -> None:
    assert reading(F + junk)[:2] == CALL
    assert reading(F + junk)[2:] == [Text(junk)]


def test_a_semicolon_too_many_is_no_text() -> None:
    assert reading(f"{F}; \n") == CALL


def test_the_tag_is_one_token_or_spelled() -> None:
    call = Llama3Json().write([("get_weather", '{"city": "Oslo"}')])
    tag = {"<|python_tag|>": 3}
    special, spelled = (Walk(Llama3Json().answer(TOOLS, tokens, parallel=True)) for tokens in (tag, {}))
    assert special.accepts(f"<|python_tag|>{call}", tag)
    assert not special.accepts("<|python_tag|>{}", tag)
    assert not special.accepts(f"<|python_tag|>{call}")
    assert spelled.accepts(f"<|python_tag|>{call}")
    assert not spelled.accepts("<|python_tag|>{}")
    assert spelled.accepts("<|python|>")
