from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.tools.python_literals import to_json
from tests.api.tools.answers import keywords, values


@given(st.dictionaries(keywords, values, max_size=3))
def test_python_and_json_mean_the_same(arguments: dict[str, Any]) -> None:
    python = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    ascii_only = ", ".join(f"{key} = {value!a}" for key, value in arguments.items())
    as_json = ",".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())
    assert json.loads(to_json(python)) == json.loads(to_json(ascii_only)) == json.loads(to_json(as_json)) == arguments


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (r"'\x41\u00e9\U0001F99C\101\n\t\'\"\\'", "Aé🦜A\n\t'\"\\"),
        (
            r"'\d \
x'",
            r"\d x",
        ),
        (r'"\/ \ud83e\udd9c"', "/ 🦜"),
        (r'"\x41"', "A"),
        (r"'\ud800'", "\ud800"),
        (r"'\U99999999'", r"\U99999999"),
        ("[1, 2, ]", [1, 2]),
        ("{'a': 1, }", {"a": 1}),
        ("-1.5e5", -150000.0),
    ],
)
def test_literals(literal: str, value: Any) -> None:
    found = to_json(f"a={literal}")
    assert json.loads(found) == {"a": value}
    assert found.encode()


@pytest.mark.parametrize("arguments", ["1", "a", "a=b", "a=NaN", "a=f()", "a=(1, 2)", "a=f'x'", "a=1+1", "a=1 b=2"])
def test_what_is_no_literal_is_refused(arguments: str) -> None:
    refused(arguments)


@pytest.mark.parametrize("arguments", ["a=1_0", "a=0x1", "a={1: 2}", "a='x' 'y'", "a='", "**x", "a==1"])
def test_what_only_python_has_is_refused(arguments: str) -> None:
    refused(arguments)


@pytest.mark.parametrize("value", ["[" * 20_000 + "]" * 20_000, "9" * 5000], ids=["deep", "long"])
def test_what_python_will_not_read_is_refused(value: str) -> None:
    refused(f"a={value}")


def refused(arguments: str) -> None:
    with pytest.raises(ValueError):
        to_json(arguments)
