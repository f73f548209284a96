from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from serving.api.text import StopStrings, TextStream
from serving.core import FinishReason, Output, TokenLogprobs
from serving.models.text import ModelText


@st.composite
def stopped_texts(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """A text in parts and stop strings, some of which are in it."""
    text = draw(st.text("ab<", max_size=20))
    stops = draw(st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3))
    start = draw(st.integers(0, len(text)))
    if taken := text[start : start + draw(st.integers(1, 5))]:
        stops.append(taken)
    if draw(st.booleans()):
        return list(text), stops
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])], stops


@given(stopped_texts())
def test_stop_strings_against_the_obvious(drawn: tuple[list[str], list[str]]) -> None:
    parts, stops = drawn
    finder, shown, so_far = StopStrings(stops), "", ""
    for part in parts:
        so_far += part
        new, stopped = finder.add(part)
        shown += new
        # The obvious: as soon as a stop string is whole, the text ends before the first one in it.
        starts = [so_far.index(stop) for stop in stops if stop in so_far]
        assert stopped == bool(starts)
        if starts:
            assert shown == so_far[: min(starts)]
            return
        held = so_far[len(shown) :]
        assert so_far.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)  # no more than may become one
    assert shown + finder.flush() == so_far


def test_half_characters_wait_for_the_other_half(text: ModelText) -> None:
    words = "naïve 🦜 日本 done"
    stream = TextStream(text, (), 0, None)
    pieces = [piece for token in text.encode(words) for piece in stream.add(Output([token]))]
    assert len(pieces) == len(text.encode(words)) == stream.completion_tokens
    assert "".join(piece.text for piece in pieces) == words
    assert any(piece.text == "" for piece in pieces)
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_special_tokens_are_not_shown_but_counted(text: ModelText) -> None:
    stream = TextStream(text, (), 0, None)
    (piece,) = stream.add(Output([2], FinishReason.STOP))
    assert (piece.text, stream.completion_tokens, stream.finish) == ("", 1, "stop")


def test_held_back_text_comes_at_the_end(text: ModelText) -> None:
    stream = TextStream(text, ("worlds",), 0, None)
    pieces = [piece for token in text.encode("hello world") for piece in stream.add(Output([token]))]
    pieces += stream.add(Output([2], FinishReason.STOP))
    assert "".join(piece.text for piece in pieces) == "hello world"


def test_stop_strings_wait_for_min_tokens(text: ModelText) -> None:
    tokens = text.encode("a b a b a b")
    stream = TextStream(text, (" b",), 3, None)
    shown = ""
    for token in tokens:
        shown += "".join(piece.text for piece in stream.add(Output([token])))
        if stream.finish:
            break
    assert shown == "a b a"
    assert stream.finish == "stop_sequence"


def test_logprobs_carry_bytes(text: ModelText) -> None:
    half = text.encode("🦜")[0]
    stream = TextStream(text, (), 0, 1)
    (piece,) = stream.add(Output([half], logprobs=[TokenLogprobs([half, half, 5], [-0.5, -0.5, float("-inf")])]))
    assert piece.logprob is not None
    assert bytes(piece.logprob.bytes) == text.token_bytes(half)
    assert piece.logprob.token == "\ufffd" or piece.logprob.token
    assert len(piece.logprob.top) == 1
    assert piece.logprob.logprob == -0.5


@given(st.text(max_size=40))
def test_token_bytes_make_the_text(text: ModelText, words: str) -> None:
    tokens = text.encode(words)
    assume(text.tokenizer.decode(tokens) == words)  # its vocabulary lacks some bytes
    assert b"".join(map(text.token_bytes, tokens)).decode() == words


@given(st.lists(st.integers(0, 267), max_size=30))
def test_bytes_that_are_no_text_end_nothing(sentencepiece: ModelText, tokens: list[int]) -> None:
    """Byte by byte a model may say what is not UTF-8; the next characters are still shown."""
    stream = TextStream(sentencepiece, (), 0, None)
    for token in tokens:
        assert isinstance(stream.add_plain(token), str)
    for word in ("hello", "▁world", "日"):
        (piece,) = stream.add(Output([sentencepiece.tokenizer.token_to_id(word)]))
        assert piece.text.endswith(word.replace("▁", " "))
    assert stream.completion_tokens == len(tokens) + 3


@given(
    st.text("ab ", max_size=12).map(lambda words: words + "🦜"), st.integers(0, 20), st.sampled_from(["a", "b a", "🦜"])
)
def test_stops_before_min_tokens_do_not_count(text: ModelText, words: str, min_tokens: int, stop: str) -> None:
    tokens = text.encode(words)
    stream = TextStream(text, (stop,), min_tokens, None)
    shown = "".join(piece.text for token in tokens for piece in ([] if stream.finish else stream.add(Output([token]))))
    if stream.finish is None:
        shown += "".join(piece.text for piece in stream.add(Output([], FinishReason.LENGTH)))
    early = text.tokenizer.decode(tokens[:min_tokens])
    assert words.startswith(shown)
    assert shown.startswith(early.rstrip("\ufffd"))
    if min_tokens == 0:
        assert shown == words.split(stop)[0]
    if stream.finish == FinishReason.STOP_SEQUENCE:
        assert stream.completion_tokens > min_tokens


def test_the_word_after_such_bytes_keeps_its_space(sentencepiece: ModelText) -> None:
    stream = TextStream(sentencepiece, (), 0, None)
    for token in (3, 131):  # NUL, and a byte that begins no character
        stream.add_plain(token)
    assert stream.add_plain(sentencepiece.tokenizer.token_to_id("▁world")) == " world"
    assert stream.add_plain(sentencepiece.tokenizer.token_to_id("▁hello")) == " hello"


def test_plain_tokens_are_like_others(text: ModelText) -> None:
    tokens = [*text.encode("naïve 🦜 日本"), 2, *text.encode("!")]
    one, other = TextStream(text, (), 0, None), TextStream(text, (), 0, None)
    assert [one.add_plain(token) for token in tokens] == [
        piece.text for token in tokens for piece in other.add(Output([token]))
    ]
    assert one.completion_tokens == other.completion_tokens
    assert one.plain
    assert not TextStream(text, ("a",), 0, None).plain
    assert not TextStream(text, (), 0, 0).plain


def test_several_tokens_in_one_output(text: ModelText) -> None:
    tokens = text.encode("one two stop three")
    stream = TextStream(text, (" stop",), 0, None)
    pieces = stream.add(Output(tokens, FinishReason.LENGTH, cached_tokens=3))
    assert "".join(piece.text for piece in pieces) == "one two"
    assert (stream.finish, stream.cached_tokens) == (FinishReason.STOP_SEQUENCE, 3)
    assert stream.completion_tokens < len(tokens)
    assert stream.first_at > 0


def test_the_least_probability_is_a_number(text: ModelText) -> None:
    stream = TextStream(text, (), 0, 2)
    (piece,) = stream.add(Output([400], logprobs=[TokenLogprobs([400, 400, 401], [-1.0, -1.0, float("-inf")])]))
    assert piece.logprob is not None
    assert [token.logprob for token in piece.logprob.top] == [-1.0, -9999.0]
    assert [bytes(token.bytes).decode() for token in piece.logprob.top] == [token.token for token in piece.logprob.top]
