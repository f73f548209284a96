"""`response_format`: its forms and what they make of the text (PROTOCOL section 1)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.conformance.wire import DIALECTS, PLACE, ROOM, Api, Dialect, Json, obj, refused, tool, valid

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
both = pytest.mark.parametrize("dialect", DIALECTS)
streamed_or_not = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])

OPENAI: Json = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
HUGGINGFACE: dict[str, Json] = {
    "json": {"type": "json", "value": PLACE},
    "json_object": {"type": "json_object", "value": PLACE},
    "json_schema in value": {"type": "json_schema", "value": {"name": "place", "schema": PLACE}},
    "json_schema in value without a name": {"type": "json_schema", "value": {"schema": PLACE}},
    "json_schema in json_schema": OPENAI,
}


@pytest.mark.parametrize("form", HUGGINGFACE)
@streamed_or_not
def test_huggingface_schema(api: Api, form: str, streamed: bool) -> None:
    said = api.ask("huggingface", streamed, response_format=HUGGINGFACE[form], max_tokens=ROOM)
    assert said.finish_reason == "stop"
    valid(json.loads(said.content or ""), PLACE)


@pytest.mark.parametrize("strict", [..., True, False, None])
@streamed_or_not
def test_openai_schema(api: Api, strict: Any, streamed: bool) -> None:
    inner = OPENAI["json_schema"] | ({} if strict is ... else {"strict": strict})
    said = api.ask("openai", streamed, response_format=OPENAI | {"json_schema": inner}, max_tokens=ROOM)
    assert said.finish_reason == "stop"
    valid(json.loads(said.content or ""), PLACE)


@pytest.mark.parametrize("pattern", ["[a-c]{3}", "yes|no", r"\d{4}-\d{2}", "(foo|bar){1,2}", "é{2}", r"a\.b"])
@streamed_or_not
def test_huggingface_regex(api: Api, pattern: str, streamed: bool) -> None:
    said = api.ask("huggingface", streamed, response_format={"type": "regex", "value": pattern}, max_tokens=60)
    assert said.finish_reason == "stop"
    assert re.fullmatch(pattern, said.content or "")


@streamed_or_not
def test_openai_json_object(api: Api, streamed: bool) -> None:
    said = api.ask("openai", streamed, response_format={"type": "json_object"}, max_tokens=ROOM)
    assert (said.content or "").lstrip().startswith("{")
    if said.finish_reason == "stop":
        assert isinstance(json.loads(said.content or ""), dict)


@both
@pytest.mark.parametrize("n", range(4))
def test_each_seed_keeps_to_the_schema(api: Api, dialect: Dialect, n: int) -> None:
    schema = obj(a={"type": "array", "items": {"enum": list("abc")}, "maxItems": 3}, b={"type": "boolean"})
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    valid(json.loads(api.ask(dialect, False, response_format=form, seed=n, max_tokens=ROOM).content or ""), schema)


@both
def test_text_is_no_grammar(api: Api, dialect: Dialect) -> None:
    bare, text = (
        api.ask(dialect, False, temperature=0, max_tokens=10, **fields).content
        for fields in ({}, {"response_format": {"type": "text"}})
    )
    assert bare == text


@both
def test_a_text_cut_short(api: Api, dialect: Dialect) -> None:
    assert api.ask(dialect, False, response_format=OPENAI, max_tokens=3).finish_reason == "length"


@pytest.mark.parametrize(
    "form",
    [
        {"type": "regex"},
        {"type": "regex", "value": 5},
        {"type": "regex", "value": None},
        {"type": "regex", "value": {}},
        {"type": "json", "value": 5},
        {"type": "json", "value": "text"},
        {"type": "json", "value": []},
        {"type": "json_object", "value": 5},
        {"type": "json_schema"},
        {"type": "json_schema", "value": 5},
        {"type": "json_schema", "value": {"schema": 5}},
        {"type": "json_schema", "json_schema": 5},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": "text"}},
        {"value": PLACE},
        {"type": 5},
    ],
    ids=repr,
)
def test_huggingface_form_of_another_shape(api: Api, form: Json) -> None:
    refused(api.chat("huggingface", response_format=form), "huggingface", names="response_format")


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": None},
        {"type": "json_schema", "json_schema": 5},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": 5}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": []}},
        {"type": 5},
        {"type": "yaml"},
    ],
    ids=repr,
)
def test_openai_form_of_another_shape(api: Api, form: Json) -> None:
    refused(api.chat("openai", response_format=form), "openai", names="response_format")


@pytest.mark.parametrize("form", [HUGGINGFACE["json"], OPENAI, {"type": "regex", "value": "[a-c]"}], ids=repr)
def test_huggingface_format_beside_tools(api: Api, form: Json) -> None:
    answer = api.chat("huggingface", response_format=form, tools=[tool("f")])
    refused(answer, "huggingface", "tool_error")
