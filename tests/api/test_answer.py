"""From outputs to what a dialect encodes: nothing lost, nothing twice, streamed or whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.answer import Choice, Part
from serving.api.dialect import Call, Message, Reasoning
from serving.api.reasoning import Thinking
from serving.api.text import TextStream
from serving.api.tools import registry
from serving.api.tools.base import CallArguments, CallStart, Text, Tool
from serving.core import FinishReason, Output
from serving.errors import EngineFault
from serving.models.text import ModelText
from tests.api.hand import END, likely

TOOLS = (Tool("weather", None, {"type": "object"}), Tool("clock", None, {"type": "object"}))
FORMATS = ("json_tags", "llama3_json", "mistral", "pythonic", "generic")
ARGUMENTS = '{"city": "Köln 日本", "days": 3}'
CALLED = {name: registry.find(name).write([("weather", ARGUMENTS), ("clock", "{}")]) for name in FORMATS}
ANSWERS = [
    ("plain", "Grüße 🦜 to\n  all.", None),
    *((name, CALLED[name], name) for name in FORMATS),
    ("text before a call", f"I see. {CALLED['json_tags']}", "json_tags"),
    ("no call after all", '{"name": "stranger", "arguments": {}} <tool_call> {', "json_tags"),
    ("a call cut off", CALLED["generic"][:48], "generic"),
    ("blanks", "  \n", "generic"),
]
ALL = pytest.mark.parametrize(("words", "form"), [case[1:] for case in ANSWERS], ids=[case[0] for case in ANSWERS])


def choice_of(
    text: ModelText,
    form: str | None = None,
    *,
    stop: tuple[str, ...] = (),
    logprobs: int | None = None,
    think: str | None = None,
    only_calls: bool = False,
) -> Choice:
    thinking = None if think is None else Thinking("<think>", "</think>", inside=think == "inside")
    parser = None if form is None else registry.find(form).parser(TOOLS)
    return Choice(TextStream(text, stop, 0, logprobs), parser, thinking, only_calls=only_calls)


def outputs_of(text: ModelText, words: str, finish: FinishReason = FinishReason.STOP, scored: int = 2) -> list[Output]:
    tokens = [*text.encode(words), END]
    outputs = [Output([token], logprobs=[likely(token, place, scored)]) for place, token in enumerate(tokens)]
    outputs[0].cached_tokens = 0
    outputs[-1].finish = finish
    return outputs


def read(choice: Choice, outputs: list[Output], reads: Iterable[int] = ()) -> list[Part]:
    """All parts, where each read takes what came since the last: so many outputs."""
    parts: list[Part] = []
    for size in (*reads, *[1] * len(outputs)):
        if outputs and choice.finish is None:
            parts += choice.read(outputs[:size])
            outputs = outputs[size:]
    return parts


def told(parts: list[Part]) -> list[str | tuple[str, str]]:
    """What a client of the stream puts together: adjacent pieces of the same kind joined."""
    out: list[Any] = []
    for part in parts:
        match part.delta:
            case CallStart(name):
                out.append(["call", name])
                out.append(["arguments", ""])
                continue
            case Text(piece):
                kind = "text"
            case Reasoning(piece):
                kind = "thought"
            case CallArguments(piece):
                kind = "arguments"
        if out and out[-1][0] == kind:
            out[-1][1] += piece
        elif piece:
            out.append([kind, piece])
    return [tuple(one) for one in out]


def joined(parts: list[Part], kind: type) -> str:
    return "".join(part.delta.text for part in parts if isinstance(part.delta, kind))  # type: ignore[attr-defined]


def calls(parts: list[Part]) -> list[Call]:
    found: list[Call] = []
    for part in parts:
        if isinstance(part.delta, CallStart):
            found.append(Call(part.delta.name, ""))
        elif isinstance(part.delta, CallArguments):
            found[-1].arguments += part.delta.fragment
    return found


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_plain_answer_has_a_part_for_each_token(text: ModelText) -> None:
    outputs = outputs_of(text, "naïve 🦜 日本", scored=0)
    parts = read(choice_of(text), outputs)
    assert len(parts) == len(outputs)
    assert any(part.delta == Text("") for part in parts[:-1])  # half a character
    assert joined(parts, Text) == "naïve 🦜 日本"


@pytest.mark.parametrize("form", FORMATS)
def test_calls_are_told_from_text(text: ModelText, form: str) -> None:
    choice = choice_of(text, form)
    message = choice.message(read(choice, outputs_of(text, CALLED[form])))
    assert [call.name for call in message.calls] == ["weather", "clock"]
    assert [json.loads(call.arguments) for call in message.calls] == [json.loads(ARGUMENTS), {}]
    assert (message.text, message.reasoning) == ("", "")
    assert message.finish is FinishReason.STOP


@ALL
def test_a_whole_answer_is_its_stream_put_together(text: ModelText, words: str, form: str | None) -> None:
    choice = choice_of(text, form, logprobs=2)
    parts = read(choice, outputs_of(text, words))
    logprobs = [one for part in parts for one in part.logprobs or []] + choice.pending
    expected = Message(joined(parts, Text), "", calls(parts), logprobs, FinishReason.STOP)
    assert choice.message(parts) == expected
    if not expected.calls:
        assert expected.text == words


@ALL
@pytest.mark.parametrize("think", [None, "outside"])
def test_every_tokens_logprob_is_carried_once(text: ModelText, words: str, form: str | None, think: str | None) -> None:
    """Whatever is held back, by the parser, for a thought, or because it is half a character."""
    outputs = outputs_of(text, words)
    choice = choice_of(text, form, logprobs=2, think=think)
    parts = read(choice, outputs)
    streamed = [one.logprob for part in parts for one in part.logprobs or []]
    streamed += [one.logprob for one in choice.take_pending() or []]
    assert streamed == [output.logprobs[0].logprobs[0] for output in outputs if output.logprobs]
    assert choice.take_pending() == []
    whole = choice_of(text, form, logprobs=2, think=think)
    message = whole.message(read(whole, outputs))
    assert [one.logprob for one in message.logprobs or []] == streamed
    assert all(len(one.top) == 2 for one in message.logprobs or [])


@ALL
def test_nobody_who_does_not_ask_gets_logprobs(text: ModelText, words: str, form: str | None) -> None:
    choice = choice_of(text, form)
    parts = read(choice, outputs_of(text, words))
    assert all(part.logprobs is None for part in parts)
    assert choice.take_pending() is None
    assert choice.message(parts).logprobs is None


@given(st.sampled_from(ANSWERS), st.lists(st.integers(1, 9), max_size=40))
def test_how_much_comes_at_once_does_not_matter(text: ModelText, case: Any, reads: list[int]) -> None:
    _, words, form = case
    choices = [choice_of(text, form, logprobs=1) for _ in range(2)]
    slowly, at_once = (
        read(one, outputs_of(text, words), sizes) for one, sizes in zip(choices, (reads, [999]), strict=True)
    )
    assert told(slowly) == told(at_once)
    assert choices[0].message(slowly) == choices[1].message(at_once)


# --- thoughts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("think", ["outside", "inside"])
@pytest.mark.parametrize("form", ["json_tags", "generic"])
def test_a_thought_comes_before_the_calls(text: ModelText, think: str, form: str) -> None:
    words = ("<think>" if think == "outside" else "") + f"A call? {CALLED[form]}</think>{CALLED[form]}"
    choice = choice_of(text, form, think=think, logprobs=0)
    parts = read(choice, outputs_of(text, words, scored=0))
    assert [kind for kind, _ in told(parts)] == ["thought", "call", "arguments", "call", "arguments"]
    message = choice.message(parts)
    assert message.reasoning == f"A call? {CALLED[form]}"  # calls that are only thought of are not made
    assert [call.name for call in message.calls] == ["weather", "clock"]
    assert message.text == ""
    assert len(message.logprobs or []) == len(text.encode(words)) + 1


@pytest.mark.parametrize("form", FORMATS)
def test_where_only_calls_are_allowed_what_was_cut_off_before_its_name_is_no_text(text: ModelText, form: str) -> None:
    for length in range(1, len(CALLED[form])):
        choice = choice_of(text, form, only_calls=True, logprobs=0)
        outputs = outputs_of(text, CALLED[form][:length], FinishReason.LENGTH, scored=0)
        parts = read(choice, outputs)
        message = choice.message(parts)
        assert message.text == joined(parts, Text) == ""
        assert len(message.logprobs or []) == len(outputs)  # nor are their tokens forgotten
        assert [call.name for call in message.calls] == ["weather", "clock"][: len(message.calls)]


def test_a_thought_that_never_ends_is_all_there_is(text: ModelText) -> None:
    choice = choice_of(text, "json_tags", think="inside")
    message = choice.message(read(choice, outputs_of(text, "hm </thi", FinishReason.LENGTH)))
    assert (message.reasoning, message.text, message.calls) == ("hm </thi", "", [])
    assert message.finish is FinishReason.LENGTH


def test_an_answer_without_a_thought_is_said_whole(text: ModelText) -> None:
    for words in ("<thin", "Yes <think>hm</think>.", "<"):
        choice = choice_of(text, think="outside")
        assert choice.message(read(choice, outputs_of(text, words))).text == words


# --- ends ---------------------------------------------------------------------------------------------------------


def test_a_stop_string_ends_text_before_its_calls(text: ModelText) -> None:
    choice = choice_of(text, "json_tags", stop=("HALT",))
    parts = read(choice, outputs_of(text, f"I see. HALT {CALLED['json_tags']}"), [3, 99])
    message = choice.message(parts)
    assert (message.text, message.calls, message.finish) == ("I see. ", [], FinishReason.STOP_SEQUENCE)


def test_a_stop_string_in_a_call_cuts_it_off(text: ModelText) -> None:
    choice = choice_of(text, "json_tags", stop=("days",), logprobs=0)
    message = choice.message(read(choice, outputs_of(text, CALLED["json_tags"], scored=0), [99]))
    assert [call.name for call in message.calls] == ["weather"]
    assert message.calls[0].arguments == '{"city": "Köln 日本", "'
    assert message.finish is FinishReason.STOP_SEQUENCE
    assert message.logprobs is not None
    assert len(message.logprobs) == choice.text.completion_tokens < len(text.encode(CALLED["json_tags"]))


def test_what_a_stop_string_and_a_parser_both_hold_back_comes_out_in_the_end(text: ModelText) -> None:
    choice = choice_of(text, "json_tags", stop=("call> never",))
    words = "See <tool_call"
    assert choice.message(read(choice, outputs_of(text, words))).text == words


def test_nothing_is_read_after_a_stop_string(text: ModelText) -> None:
    choice = choice_of(text, stop=(" two",))
    parts = choice.read(outputs_of(text, "one two three four", FinishReason.LENGTH))
    assert joined(parts, Text) == "one"
    assert (choice.finish, choice.text.completion_tokens) == (FinishReason.STOP_SEQUENCE, 2)


@pytest.mark.parametrize("finish", [FinishReason.ABORT, FinishReason.ERROR])
@pytest.mark.parametrize("form", [None, "generic"])
def test_an_engine_that_gives_up_is_a_fault_even_with_text_at_hand(
    text: ModelText, finish: FinishReason, form: str | None
) -> None:
    choice = choice_of(text, form)
    with pytest.raises(EngineFault):
        choice.read(outputs_of(text, "some words", finish))


def test_an_engine_that_gives_up_after_a_stop_string_is_no_fault(text: ModelText) -> None:
    choice = choice_of(text, stop=("words",))
    assert joined(choice.read(outputs_of(text, "some words", FinishReason.ABORT)), Text) == "some "


def test_only_plain_answers_may_go_straight_to_the_socket(text: ModelText) -> None:
    assert choice_of(text).plain
    for other in (
        choice_of(text, "generic"),
        choice_of(text, think="outside"),
        choice_of(text, stop=("a",)),
        choice_of(text, logprobs=0),
    ):
        assert not other.plain
