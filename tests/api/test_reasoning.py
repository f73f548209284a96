"""Thought and said, told apart however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.reasoning import Thinking
from tests.api.hand import cut

OPEN, CLOSE = "<think>", "</think>"


def split(pieces: list[str], *, inside: bool = False) -> tuple[str, str]:
    thinking = Thinking(OPEN, CLOSE, inside=inside)
    parts = [thinking.feed(piece) for piece in pieces] + [thinking.finish()]
    return "".join(thought for thought, _ in parts), "".join(said for _, said in parts)


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>hm</think>Yes.", "hm", "Yes."),
        (" \n<think>hm</think>\n\nYes.", "hm", "Yes."),  # blanks around the markers are nobody's words
        ("<think>\nhm\n</think>\n\n", "\nhm\n", ""),
        ("<think></think>Yes.", "", "Yes."),
        ("<think>hm", "hm", ""),  # cut off before it said anything
        ("<think>hm</thin", "hm</thin", ""),
        ("<think>a<think>b</think>c</think>d", "a<think>b", "c</think>d"),  # only the first closing counts
        ("Yes <think>not a thought</think>.", "", "Yes <think>not a thought</think>."),
        ("<thin", "", "<thin"),
        ("<thinking>hm</think>", "", "<thinking>hm</think>"),
        ("  Yes.\n", "", "  Yes.\n"),
        ("</think>Yes.", "", "</think>Yes."),
        ("\n\n", "", "\n\n"),
        ("", "", ""),
    ],
)
def test_a_thought_at_the_beginning_is_told_from_what_is_said(text: str, thought: str, said: str) -> None:
    assert split([text]) == (thought, said)
    assert split(list(text)) == (thought, said)


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("hm</think>\nYes.", "hm", "Yes."),
        ("hm", "hm", ""),
        ("</think>Yes.", "", "Yes."),
        ("hm </thi", "hm </thi", ""),
        ("<think>hm</think>Yes.", "<think>hm", "Yes."),
        ("", "", ""),
    ],
)
def test_a_thought_that_the_prompt_has_opened_goes_on(text: str, thought: str, said: str) -> None:
    assert split([text], inside=True) == (thought, said)
    assert split(list(text), inside=True) == (thought, said)


WORDS = st.lists(st.sampled_from([OPEN, CLOSE, "<think", "</", ">", "<", "\n", " ", "hm"]), max_size=6).map("".join)
STARTS, ENDS = st.sampled_from([OPEN, "", "\n"]), st.sampled_from([CLOSE, CLOSE + "\n\n", ""])
TEXTS = st.tuples(STARTS, WORDS, ENDS, WORDS).map("".join)


def plainly(text: str, *, inside: bool) -> tuple[str, str]:
    """What is told apart when all of the text is there."""
    if not inside:
        if not text.lstrip().startswith(OPEN):
            return "", text
        text = text.lstrip().removeprefix(OPEN)
    thought, _, said = text.partition(CLOSE)
    return thought, said.lstrip("\n")


@given(TEXTS, st.lists(st.integers(0, 200), max_size=12), st.booleans())
def test_any_cut_gives_the_same(text: str, places: list[int], inside: bool) -> None:
    assert split(cut(text, places), inside=inside) == plainly(text, inside=inside)


def test_what_cannot_become_a_marker_is_shown_at_once() -> None:
    thinking = Thinking(OPEN, CLOSE, inside=False)
    assert thinking.feed("<th") == ("", "")
    assert thinking.feed("ink>ab</") == ("ab", "")
    assert thinking.feed("b>c") == ("</b>c", "")
    assert thinking.feed("</think>d") == ("", "d")
    assert thinking.feed("</think>") == ("", "</think>")
    assert thinking.finish() == ("", "")
