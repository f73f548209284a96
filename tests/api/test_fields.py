"""Checks of single values, and what arbitrary bodies make of a whole parse."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api import fields, huggingface, openai
from serving.api.chat import Chat
from serving.errors import BadField, BadSyntax
from serving.settings import LimitSettings

LIMITS = LimitSettings()


@pytest.mark.parametrize(
    ("check", "value", "clean"),
    [
        (fields.text, "é", "é"),
        (fields.boolean, False, False),
        (fields.number(0, 2), 0, 0.0),
        (fields.number(0, 2), 2, 2.0),
        (fields.number(0, 1, above=True), 1, 1.0),
        (fields.integer(1, 3), 1, 1),
        (fields.integer(1, 3), 3, 3),
        (fields.stops, "a", ("a",)),
        (fields.stops, ["a", "b", "c", "d"], ("a", "b", "c", "d")),
        (fields.stops, [], ()),
        (fields.mapping, {}, {}),
        (fields.array, [], []),
    ],
)
def test_what_passes(check: fields.Check, value: Any, clean: Any) -> None:
    assert check("path", value) == clean
    assert type(check("path", value)) is type(clean)


@pytest.mark.parametrize(
    ("check", "value", "says"),
    [
        (fields.text, 1, "path: must be a string, not a number"),
        (fields.text, None, "path: must be a string, not null"),
        (fields.text, "a\0", "path: must not contain NUL characters"),
        (fields.text, "a\ud800", "path: is not valid Unicode: it contains a lone surrogate"),
        (fields.boolean, 1, "path: must be true or false, not a number"),
        (fields.boolean, "true", "path: must be true or false, not a string"),
        (fields.number(0, 2), True, "path: must be a number, not a boolean"),
        (fields.number(0, 2), "1", "path: must be a number, not a string"),
        (fields.number(0, 2), -0.1, "path: must be between 0 and 2, not -0.1"),
        (fields.number(0, 2), 2.5, "path: must be between 0 and 2, not 2.5"),
        (fields.number(0, 1, above=True), 0, "path: must be greater than 0 and at most 1, not 0"),
        (fields.integer(1, 9), 1.0, "path: must be an integer, not a number"),
        (fields.integer(1, 9), True, "path: must be an integer, not a boolean"),
        (fields.integer(1, 9), 0, "path: must be between 1 and 9, not 0"),
        (fields.integer(1, 2**31 - 1), 0, "path: must be at least 1, not 0"),
        (fields.integer(1, 2**31 - 1), 2**31, "path: must be between 1 and 2147483647, not 2147483648"),
        (fields.stops, {}, "path: must be a string or an array of strings, not an object"),
        (fields.stops, list("abcde"), "path: must hold at most 4 strings, not 5"),
        (fields.stops, ["a", ""], "path[1]: must not be empty"),
        (fields.stops, "", "path[0]: must not be empty"),
        (fields.stops, ["a", []], "path[1]: must be a string, not an array"),
        (fields.mapping, [], "path: must be an object, not an array"),
        (fields.array, {}, "path: must be an array, not an object"),
    ],
)
def test_what_does_not(check: fields.Check, value: Any, says: str) -> None:
    with pytest.raises(BadField) as caught:
        check("path", value)
    assert str(caught.value) == says
    assert says.startswith(f"{caught.value.field}: ")


def test_null_is_absent_and_strangers_are_ignored() -> None:
    table = {"a": fields.boolean, "b": fields.boolean, "c": fields.boolean}
    assert fields.read({"a": True, "b": None, "d": object()}, table) == {"a": True}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"a": [{"b": "\\ud800"}]}', "a[0].b"),
        (b'{"a": {"\\udfff": 1}}', "a"),
        (b'{"\\udfff": 1}', "key"),
        (b'{"a": "\xed\xa0\x80"}', "a"),
    ],
)
def test_text_that_is_not_unicode_is_found(body: bytes, field: str) -> None:
    with pytest.raises(BadField, match="surrogate") as caught:
        fields.parse(body, 64)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{}x", b'{"a": 1e999}', b'{"a": NaN}', b"\xff", '{"a": 1}'.encode("utf-16"), b'"a"', b"1", b"null"],
)
def test_what_is_not_a_json_object(body: bytes) -> None:
    with pytest.raises(BadSyntax):
        fields.parse(body, 64)


def nested(levels: int, inside: str = "") -> bytes:
    return f'{{"a": {"[" * levels}{inside}{"]" * levels}}}'.encode()


def test_nesting_is_bounded() -> None:
    assert fields.parse(nested(64), 64) == json.loads(nested(64))
    with pytest.raises(BadField, match="nested deeper than 64 levels") as caught:
        fields.parse(nested(65), 64)
    assert caught.value.field == "a"
    wide = b'{"a": [%b]}' % b",".join([b"[]"] * 1000)
    assert len(fields.parse(wide, 2)["a"]) == 1000


@pytest.mark.parametrize("levels", [65, 900, 985, 990, 995, 1000, 1020, 1025, 5_000, 100_000])
@pytest.mark.parametrize("inside", ["", '"\\ud800"'])
def test_no_nesting_is_too_deep_to_be_refused(levels: int, inside: str) -> None:
    for body in (nested(levels, inside), nested(levels, inside)[: levels // 2], nested(1, inside) + b"[" * levels):
        with pytest.raises((BadField, BadSyntax)):
            fields.parse(body, 64)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", ""]) | VALUES,
            "content": st.text() | st.lists(st.fixed_dictionaries({"type": st.just("text") | VALUES, "text": VALUES})),
            "name": VALUES,
        },
    ),
    max_size=3,
)
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just("m"),
    "messages": MESSAGES,
    "stop": st.lists(st.text(max_size=3), max_size=5),
    "stream": st.booleans(),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(-1, 21),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | VALUES}),
}
NAMES = sorted({*openai.FIELDS, *huggingface.FIELDS, "messages"})
BODIES = st.fixed_dictionaries({}, optional={name: PLAUSIBLE.get(name, VALUES) | VALUES for name in NAMES})


@given(BODIES, st.sampled_from(["m", None]))
def test_any_body_gives_a_chat_or_names_a_field(body: dict[str, Any], model: str | None) -> None:
    try:
        parsed = fields.parse(json.dumps(body).encode(), 64)
    except BadSyntax:
        return
    for dialect in (openai, huggingface):
        try:
            chat = dialect.parse(parsed, model, LIMITS)
        except BadField as error:
            assert error.field
            assert error.field.split(".")[0].split("[")[0] in {*NAMES, "stream_options"}
        else:
            assert isinstance(chat, Chat)
            assert chat.messages


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_an_object_or_are_refused(body: bytes) -> None:
    try:
        assert fields.parse(body, 64) == orjson.loads(body)
    except (BadField, BadSyntax) as error:
        assert str(error)
