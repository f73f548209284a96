from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api.tools.base import CallArguments, CallStart, Event, Text
from serving.api.tools.generic import Generic
from tests.api.tools.answers import OPEN_TOOLS, as_json, calls, cut, keywords, read, values, words


def reading(answer: str) -> list[Event]:
    """The answer read whole; in single characters it reads the same."""
    events = read(Generic(), [answer])
    assert read(Generic(), answer) == events
    return events


@settings(max_examples=100)
@given(data=st.data(), arguments=st.dictionaries(keywords, values, max_size=3), more=st.dictionaries(words, values))
def test_keys_stand_in_any_order_among_others(data: st.DataObject, arguments: dict[str, Any], more: Any) -> None:
    key = data.draw(st.sampled_from(["arguments", "parameters"]))
    quoted = json.dumps(arguments) if data.draw(st.booleans()) else arguments
    others = {name: value for name, value in more.items() if name not in ("name", "arguments", "parameters")}
    parts = data.draw(st.permutations([("name", "f"), (key, quoted), *others.items()]))
    answer = data.draw(as_json(dict(parts)))
    events = read(Generic(), data.draw(cut(answer)))
    assert calls(events) == [("f", arguments)]
    assert len(events) == 2


@pytest.mark.parametrize(
    "raw", ["{}", '{ "a" : [1,\n2] }', '{"a": "\\u00e9\\"}"}', '{"a": {"name": "x"}}', "{'no': json}"]
)
def test_arguments_are_shown_as_they_were_written(raw: str) -> None:
    assert reading(f'{{"name": "f", "arguments": {raw}}}') == [CallStart("f"), CallArguments(raw)]
    assert reading(f'{{"arguments": {raw}, "name": "f"}}') == [CallStart("f"), CallArguments(raw)]


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "f"}',
        '{"name": "f", "arguments": null}',
        '{"parameters": null, "name": "f"}',
        '{"name": "f", "arguments": "{}"}',
        '{"type": "function", "name": "f", "arguments": null, "n": 12.5, "list": [{}]}',
    ],
)
def test_no_arguments_are_an_empty_object(answer: str) -> None:
    assert reading(answer) == [CallStart("f"), CallArguments("{}")]


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "f", "arguments": "Oslo"}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "f", "arguments": "{\\"a\\": \\"\\ud800\\"}"}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": 5}',
        '{"name": "f", "arguments": nothing}',
        '{"name": f, "arguments": {}}',
        '{"name": "f" "arguments": {}}',
        '{"name": "\\x", "arguments": {}}',
        '{"name": 5, "arguments": {}}',
        '{"name": "f", "name": "f"}',
        '{"arguments": {}, "parameters": {}, "name": "f"}',
        '{"arguments": {}}',
        '{"name", "f"}',
        "{}",
        "[]",
        '{"f": {}}',
        '{"name": "launch", "arguments": {}}',
    ],
)
def test_what_is_no_call_is_text(answer: str) -> None:
    assert reading(answer) == [Text(answer)]


@pytest.mark.parametrize("end", ["", '{"na', '{"name": "f', '{"name": "f", "arguments": ', '{"arguments": {"a": 1}'])
def test_what_ends_before_a_call_begins_is_text(end: str) -> None:
    assert reading(end) == ([Text(end)] if end else [])


@pytest.mark.parametrize("end", ["{", '{"a": "b', '{"a": "b\\', '{"a": {}', '{"a": {}}'])
def test_arguments_cut_short_end_there(end: str) -> None:
    assert reading('{"name": "f", "arguments": ' + end) == [CallStart("f"), CallArguments(end)]


@pytest.mark.parametrize("junk", [", 5}", " }".replace(" ", "]"), ', "id": x}', ', "arguments": {}}', ' {"name": "f"}'])
def test_junk_after_the_arguments_is_text(junk: str) -> None:
    assert reading('{"name": "f", "arguments": {}' + junk) == [CallStart("f"), CallArguments("{}"), Text(junk)]


def test_a_call_starts_when_its_arguments_do() -> None:
    parser = Generic().parser(OPEN_TOOLS)
    assert parser.feed('{"name": "f", "arguments":') == []
    assert parser.feed(' {"a') == [CallStart("f"), CallArguments('{"a')]
    assert parser.feed('": "\\') == [CallArguments('": "\\')]
    assert parser.feed("") == []
    assert parser.feed('"}') == [CallArguments('"}')]
    assert parser.feed('"}') == [CallArguments('"}')]
    assert parser.feed("}") == []
    assert parser.finish() == []
