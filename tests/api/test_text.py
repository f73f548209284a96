from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.api.text import StopStrings, TextStream
from serving.core import FinishReason, Output, TokenLogprobs
from serving.models import embedded
from serving.models.text import ModelText


@pytest.fixture(scope="module")
def model() -> ModelText:
    return ModelText(embedded.prepare())


letters = st.text("ab<", max_size=30)


@given(text=letters, stops=st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4), data=st.data())
def test_stop_strings_against_the_obvious(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    finder, shown, stopped = StopStrings(stops), "", False
    for part in parts:
        new, stopped = finder.add(part)
        shown += new
        if stopped:
            break
    if not stopped:
        shown += finder.flush()
    # The obvious: the first moment at which a stop string is complete decides, and its earliest start.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


def test_half_characters_wait_for_the_other_half(model: ModelText) -> None:
    words = "naïve 🦜 日本 done"
    stream = TextStream(model, (), 0, None)
    pieces = [piece for token in model.encode(words) for piece in stream.add(Output([token]))]
    assert len(pieces) == len(model.encode(words)) == stream.completion_tokens
    assert "".join(piece.text for piece in pieces) == words
    assert any(piece.text == "" for piece in pieces)
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_special_tokens_are_not_shown_but_counted(model: ModelText) -> None:
    stream = TextStream(model, (), 0, None)
    (piece,) = stream.add(Output([2], FinishReason.STOP))
    assert (piece.text, stream.completion_tokens, stream.finish) == ("", 1, "stop")


def test_held_back_text_comes_at_the_end(model: ModelText) -> None:
    stream = TextStream(model, ("worlds",), 0, None)
    pieces = [piece for token in model.encode("hello world") for piece in stream.add(Output([token]))]
    pieces += stream.add(Output([2], FinishReason.STOP))
    assert "".join(piece.text for piece in pieces) == "hello world"


def test_stop_strings_wait_for_min_tokens(model: ModelText) -> None:
    tokens = model.encode("a b a b a b")
    stream = TextStream(model, (" b",), 3, None)
    shown = ""
    for token in tokens:
        shown += "".join(piece.text for piece in stream.add(Output([token])))
        if stream.finish:
            break
    assert shown == "a b a"
    assert stream.finish == "stop_sequence"


def test_logprobs_carry_bytes(model: ModelText) -> None:
    half = model.encode("🦜")[0]
    stream = TextStream(model, (), 0, 1)
    (piece,) = stream.add(Output([half], logprobs=[TokenLogprobs([half, half, 5], [-0.5, -0.5, float("-inf")])]))
    assert piece.logprob is not None
    assert bytes(piece.logprob.bytes) == model.token_bytes(half)
    assert piece.logprob.token == "\ufffd" or piece.logprob.token
    assert len(piece.logprob.top) == 1
    assert piece.logprob.logprob == -0.5


@given(st.text(max_size=40))
@settings(deadline=None)
def test_token_bytes_make_the_text(words: str) -> None:
    model = _model()
    assume(model.tokenizer.decode(model.encode(words)) == words)  # its vocabulary lacks some bytes
    assert b"".join(model.token_bytes(token) for token in model.encode(words)).decode() == words


_MODELS: list[ModelText] = []


def _model() -> ModelText:
    if not _MODELS:
        _MODELS.append(ModelText(embedded.prepare()))
    return _MODELS[0]
