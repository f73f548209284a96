from __future__ import annotations

import pytest

from serving.api.tools.base import CallArguments, CallStart, Text
from serving.api.tools.generic import Generic
from tests.api.tools.answers import TOOLS, Walk, read

F = '{"name": "f", "arguments": {"a": 1}}'
CALL = [CallStart("f"), CallArguments('{"a": 1}')]


@pytest.mark.parametrize(
    ("answer", "events"),
    [
        (F, CALL),
        (f"\n {F}\n", CALL),
        (f"[{F}]", CALL),
        (f"[ {F} , {F}\n]", CALL * 2),
        (f"[{F}, ", CALL),
        (f"[{F}, x]", [*CALL, Text(", x]")]),
        (f"{F} done", [*CALL, Text(" done")]),
        (f"{F}{F}", [*CALL, Text(F)]),
        (f"Here: {F}", [Text(f"Here: {F}")]),
        ("[1, 2]", [Text("[1, 2]")]),
        ('{"city": "Oslo"}', [Text('{"city": "Oslo"}')]),
    ],
)
def test_the_whole_answer_is_calls_or_text(answer: str, events: list[object]) -> None:
    assert read(Generic(), [answer]) == read(Generic(), answer) == events


def test_in_the_grammar_text_does_not_begin_like_a_call() -> None:
    walk = Walk(Generic().answer(TOOLS, {}, parallel=True))
    assert walk.accepts("[see below] {this}")
    for beginning in ("", " ", "\n\t"):
        assert not walk.accepts(beginning + '{"city": "Oslo"}')
        assert not walk.accepts(beginning + '[\n{"city": "Oslo"}]')
