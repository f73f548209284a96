"""What holds for every format."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api.grammar import lark
from serving.api.tools import registry
from serving.api.tools.base import CallArguments, CallStart, Text, Tool
from tests.api.tools.answers import (
    CLOCK,
    OPEN_TOOLS,
    TOOLS,
    WEATHER,
    Walk,
    as_json,
    called,
    calls,
    cut,
    read,
    shown,
    words,
)

NAMES = ["json_tags", "llama3_json", "mistral", "pythonic", "generic"]

# Pieces that nearly make calls, in all formats.
PIECES = ["<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|py", "\n", " "]
PIECES += ["{", "}", "[", "]", ";", ",", ":", "(", ")", "=", '"name"', '"arguments"', '"parameters"', '"f"', '"no"']
PIECES += ['{"name": "f", "arguments": ', '{"name": "f"}', '{"a": 1}', '"{}"', "f(", "a=", "'x'", "hello", "é", "null"]
PIECES += ['"', "\\", '{"name": "f", "arguments": {}}', "[f(a=1)]", "12", '"id": "x"']
few = settings(max_examples=50)
nearly = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@pytest.mark.parametrize("name", NAMES)
@few
@given(data=st.data(), made=called)
def test_written_calls_are_read_back(name: str, data: st.DataObject, made: list[tuple[str, dict[str, Any]]]) -> None:
    format = registry.find(name)
    answer = format.write([(tool, json.dumps(arguments)) for tool, arguments in made])
    events = read(format, data.draw(cut(answer)))
    assert calls(events) == made
    assert shown(events) == ""


@pytest.mark.parametrize("name", NAMES)
@few
@given(data=st.data(), answer=nearly)
def test_however_an_answer_is_cut_it_reads_the_same(name: str, data: st.DataObject, answer: str) -> None:
    format = registry.find(name)
    assert read(format, data.draw(cut(answer))) == read(format, [answer])


@pytest.mark.parametrize("name", NAMES)
@few
@given(data=st.data(), made=called)
def test_a_call_cut_short_is_text_or_a_call_with_less(name: str, data: st.DataObject, made: Any) -> None:
    format = registry.find(name)
    answer = format.write([(tool, json.dumps(arguments)) for tool, arguments in made])
    end = data.draw(st.integers(0, len(answer)))
    events = read(format, [answer[:end]])
    started = [event.name for event in events if isinstance(event, CallStart)]
    assert started == [tool for tool, _ in made][: len(started)]
    assert all(not isinstance(event, Text) or event is events[-1] for event in events)
    assert answer[:end].endswith(shown(events))
    if not started:
        assert shown(events) == answer[:end]


@pytest.mark.parametrize("name", NAMES)
@few
@given(answer=nearly)
def test_an_answer_without_calls_is_its_text(name: str, answer: str) -> None:
    events = read(registry.find(name), [answer])
    if not any(isinstance(event, CallStart) for event in events):
        assert shown(events) == answer
    at = 0
    for event in events:  # and with calls every text and name stands in it, in this order
        if isinstance(event, Text | CallStart):
            part = event.text if isinstance(event, Text) else event.name
            at = answer.index(part, at) + len(part)


# What is no call, wherever a call could begin, and how it goes on.
LOOK_ALIKES = {
    "json_tags": [
        "<tool_call>",
        "<tool_call>\n{",
        '<tool_call>{"name": "launch", "arguments": {}}</tool_call>',
        "</tool",
    ],
    "mistral": [
        "[TOOL_CALLS]",
        "[TOOL_CALLS] [",
        '[TOOL_CALLS] [{"name": "launch", "arguments": {}}]',
        "[TOOL_CALLS]f(",
    ],
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
@few
@given(data=st.data())
def test_calls_stand_among_text(name: str, data: st.DataObject) -> None:
    format = registry.find(name)
    text = words.filter(lambda text: text.strip() and not any(mark in text for mark in format.specials()))
    text |= st.sampled_from(LOOK_ALIKES[name]).map(lambda part: f"{part}no,")
    parts: list[str | list[tuple[str, Any]]] = data.draw(st.lists(text | called, max_size=5))
    answer, expected = "", list[Any]()
    for part in parts:
        if isinstance(part, str):
            answer += part
            expected += [part]
        else:
            answer += format.write([(tool, data.draw(as_json(arguments))) for tool, arguments in part])
            expected += part
    events = read(format, data.draw(cut(answer)))
    assert shown(events) == "".join(part for part in expected if isinstance(part, str))
    assert calls(events) == [part for part in expected if not isinstance(part, str)]
    order = [isinstance(event, Text) for event in events if not isinstance(event, CallArguments)]
    runs = [list(run) for _, run in groupby(isinstance(part, str) for part in expected)]
    assert order == [kind for run in runs for kind in (run[:1] if run[0] else run)]


@pytest.mark.parametrize("name", NAMES)
@few
@given(answer=st.text("ab <[{", max_size=30))
def test_plain_text_stays_as_it_is(name: str, answer: str) -> None:
    assert read(registry.find(name), answer) == ([Text(answer)] if answer else [])


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_tool_is_text(name: str) -> None:
    format = registry.find(name)
    answer = format.write([("launch", '{"now": true}')])
    assert read(format, answer) == [Text(answer)]


@pytest.mark.parametrize("name", NAMES)
def test_deep_nesting_does_no_harm(name: str) -> None:
    format = registry.find(name)
    for deep in ('{"a": ' * 4_000, '{"a": ' + "[" * 4_000 + "]" * 4_000 + "}"):
        answer = format.write([("f", '{"a": 1}')]).replace("1", deep).replace('{"a": {', "{")
        assert read(format, [answer]) == read(format, answer)


@pytest.mark.parametrize("name", NAMES)
def test_plain_text_is_shown_at_once(name: str) -> None:
    parser = registry.find(name).parser(OPEN_TOOLS)
    assert [parser.feed(piece) for piece in ("Hel", "lo ", "you")] == [[Text("Hel")], [Text("lo ")], [Text("you")]]


@pytest.mark.parametrize("name", ["json_tags", "llama3_json", "mistral", "generic"])
def test_arguments_are_shown_as_they_come(name: str) -> None:
    format = registry.find(name)
    answer = format.write([("f", '{"path": "x", "lines": [1, 2]}')])
    parser = format.parser(OPEN_TOOLS)
    parser.feed(answer[: answer.index("lines")])
    assert all(parser.feed(char) for char in "lines")


@pytest.mark.parametrize("name", NAMES)
def test_instructions_show_the_format_and_results_the_content(name: str) -> None:
    format = registry.find(name)
    assert format.instructions().endswith("\n")
    assert "sunny" in format.result("get_weather", "sunny")
    assert "sunny" in format.result(None, "sunny")


# Grammars

GOOD = [("get_weather", '{"city": "Oslo"}'), ("get_weather", '{"city": "São \\"Paulo\\"", "days": 2, "units": "C"}')]
BAD = ["{}", '{"city": 5}', '{"city": "Oslo", "units": "K"}', '{"city": "Oslo", "wind": true}', '{"days": 2}']


def written(name: str, *made: tuple[str, str]) -> str:
    answer = registry.find(name).write(made)
    return answer.replace("'", '"') if name == "pythonic" else answer


@pytest.mark.parametrize("name", NAMES)
def test_grammars_take_valid_calls_and_nothing_else(name: str) -> None:
    format = registry.find(name)
    for node in (format.calls(TOOLS, {}, parallel=True), format.answer(TOOLS, {}, parallel=True)):
        walk = Walk(node)
        assert walk.accepts(written(name, GOOD[0]))
        assert walk.accepts(written(name, ("get_weather", '{"city": "a", "days": 2, "units": "C"}')))
        assert walk.accepts(written(name, GOOD[0], ("clock", "{}"), GOOD[0]))
        assert not any(walk.accepts(written(name, ("get_weather", arguments))) for arguments in BAD)
        assert not any(walk.accepts(written(name, GOOD[0], ("get_weather", arguments))) for arguments in BAD)
        assert not walk.accepts(written(name, GOOD[0])[:-1])
    assert not Walk(format.calls(TOOLS, {}, parallel=True)).accepts(written(name, ("launch", "{}")))


@pytest.mark.parametrize("name", NAMES)
def test_grammars_of_one_call_take_one(name: str) -> None:
    format = registry.find(name)
    for node in (format.calls(TOOLS, {}, parallel=False), format.answer(TOOLS, {}, parallel=False)):
        walk = Walk(node)
        assert walk.accepts(written(name, GOOD[0]))
        assert not walk.accepts(written(name, GOOD[0], GOOD[0]))


@pytest.mark.parametrize("name", NAMES)
def test_free_text_is_an_answer_but_no_call(name: str) -> None:
    format = registry.find(name)
    for text in ("Hello {you}, [1] <b>\n\nOslo: 5 °C", "x", "[a link](https://example.org)"):
        assert Walk(format.answer(TOOLS, {}, parallel=True)).accepts(text)
        assert not Walk(format.calls(TOOLS, {}, parallel=True)).accepts(text)


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_that_the_grammar_takes_holds_only_valid_calls(name: str) -> None:
    """What the parser would read as a call with wrong arguments, the grammar does not let through."""
    format = registry.find(name)
    bad = written(name, ("clock", '{"x": 1}'))
    for answer in (bad, " " + bad, "\n\n" + bad, "Text. " + bad, written(name, ("clock", "{}")) + bad):
        if calls(read(format, [answer], TOOLS)) not in ([], [("clock", {})]):
            for parallel in (True, False):
                assert not Walk(format.answer(TOOLS, {}, parallel=parallel)).accepts(answer), answer


@pytest.mark.parametrize("name", NAMES)
def test_markers_are_special_tokens_where_the_model_has_them(name: str) -> None:
    format = registry.find(name)
    tokens = {special: number for number, special in enumerate(format.specials(), 3)}
    for parallel in (True, False):
        calls, answer = (make(TOOLS, tokens, parallel=parallel) for make in (format.calls, format.answer))
        call = written(name, GOOD[0])
        assert Walk(calls).accepts(call, tokens)
        assert Walk(answer).accepts(call, tokens)
        assert Walk(answer).accepts("Hello", tokens)
        if any(special in call for special in tokens):
            assert not Walk(answer).accepts(call)  # spelled, not meant


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tool", [WEATHER, CLOCK, Tool("größe", None, {})], ids=lambda tool: tool.name)
def test_every_grammar_compiles(name: str, tool: Tool) -> None:
    format = registry.find(name)
    for parallel in (True, False):
        for make in (format.calls, format.answer):
            assert lark(make([tool], {}, parallel=parallel), specials=False)
            Walk(make([tool, CLOCK], {}, parallel=parallel))
