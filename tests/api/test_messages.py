from __future__ import annotations

from typing import Any

import pytest

from serving.api import messages
from serving.errors import BadField


def check(*items: Any) -> list[dict[str, Any]]:
    return messages.check("messages", list(items), 3, counted_results=True)


def test_what_a_template_reads() -> None:
    assert check({"role": "user", "content": "hi", "name": "Ann", "else": 1}) == [
        {"role": "user", "content": "hi", "name": "Ann"}
    ]
    assert check({"role": "user", "content": "", "name": None}) == [{"role": "user", "content": ""}]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert check({"role": "user", "content": parts})[0]["content"] == "a\nb"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("hi", "messages[1]"),
        ({}, "messages[1].role"),
        ({"role": "", "content": "x"}, "messages[1].role"),
        ({"role": None, "content": "x"}, "messages[1].role"),
        ({"role": 1, "content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": 1}, "messages[1].content"),
        ({"role": "user", "content": "a\0b"}, "messages[1].content"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": "x", "name": 1}, "messages[1].name"),
    ],
)
def test_what_is_wrong_is_named(message: Any, field: str) -> None:
    with pytest.raises(BadField) as caught:
        check({"role": "system", "content": "fine"}, message)
    assert caught.value.field == field


@pytest.mark.parametrize("value", [None, {}, "hi", [], [{"role": "user", "content": "x"}] * 4])
def test_their_number_is_bounded(value: Any) -> None:
    with pytest.raises(BadField) as caught:
        messages.check("messages", value, 3, counted_results=True)
    assert caught.value.field == "messages"


def test_a_strange_part_is_quoted_shortly() -> None:
    with pytest.raises(BadField) as caught:
        check({"role": "user", "content": [{"type": "x" * 100_000}]})
    assert len(str(caught.value)) < 300
