"""`tools`, `tool_choice` and `response_format`, in every form that clients send."""

from __future__ import annotations

from typing import Any

import pytest

from serving.api import huggingface, openai, tool_fields
from serving.api.chat import ToolChoice
from serving.api.grammar import Json, Node, Regex
from serving.api.tools.base import Tool
from serving.errors import BadField, ToolRefused
from serving.settings import LimitSettings
from tests.api.hand import HELLO, tool

LIMITS = LimitSettings(tools=3)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER, CLOCK = Tool("weather", None, SCHEMA), Tool("clock", None, {"type": "object"})
GIVEN = (WEATHER, CLOCK)
ANY_OBJECT = Json({"type": "object"})


def listed(*functions: Any, required: bool = False) -> tuple[Tool, ...]:
    items = [{"type": "function", "function": function} for function in functions]
    return tool_fields.tools("tools", items, LIMITS, schema_required=required)


# --- tools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["parameters", "arguments"])
def test_a_tools_schema_has_two_names(key: str) -> None:
    function = {"name": "weather", "description": "Now", key: SCHEMA}
    (found,) = listed(function, required=True)
    assert (found.name, found.description, found.parameters) == ("weather", "Now", SCHEMA)


def test_of_two_schemas_parameters_wins_unless_it_is_null() -> None:
    both = {"name": "f", "parameters": SCHEMA, "arguments": {"type": "object"}}
    assert listed(both)[0].parameters == SCHEMA
    assert listed(both | {"parameters": None})[0].parameters == {"type": "object"}


def test_a_schema_is_an_object_even_where_it_does_not_say_so() -> None:
    assert listed({"name": "f", "parameters": {"properties": {}}})[0].parameters == {"type": "object", "properties": {}}
    assert listed({"name": "f"})[0].parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize("name", ["f", "a.b", "a-b_c:1", "näme", "OneOf", "auto", "none", "required", "x" * 128])
def test_names_that_a_tool_may_have(name: str) -> None:
    assert listed({"name": name})[0].name == name


@pytest.mark.parametrize(
    ("items", "field"),
    [
        ({}, "tools"),
        ("weather", "tools"),
        ([1], "tools[0]"),
        ([{}], "tools[0].type"),
        ([{"type": "retrieval", "function": {"name": "f"}}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "function", "function": "f"}], "tools[0].function"),
        ([{"type": "function", "function": {}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": 1}}], "tools[0].function.name"),
        ([tool("")], "tools[0].function.name"),
        ([tool("a b")], "tools[0].function.name"),
        ([tool('a"b')], "tools[0].function.name"),
        ([tool("f(x)")], "tools[0].function.name"),
        ([tool("x" * 129)], "tools[0].function.name"),
        ([tool("f", description=1)], "tools[0].function.description"),
        ([tool("f", parameters=[])], "tools[0].function.parameters"),
        ([tool("f", parameters=None, arguments="{}")], "tools[0].function.arguments"),
        ([tool("f", parameters={"type": "array"})], "tools[0].function.parameters.type"),
        ([tool("f", parameters={"type": ["object"]})], "tools[0].function.parameters.type"),
        ([tool("f"), tool("g"), tool("f")], "tools[2].function.name"),
        ([tool("f"), tool("g"), tool("h"), tool("i")], "tools"),
    ],
)
def test_what_is_wrong_with_a_tool_is_named(items: Any, field: str) -> None:
    with pytest.raises(BadField) as caught:
        tool_fields.tools("tools", items, LIMITS, schema_required=False)
    assert caught.value.field == field


def test_tools_and_shapes_have_a_largest_size() -> None:
    limits = LimitSettings(grammar_bytes=1024)
    schema = {"type": "object", "description": "x" * 1000}
    with pytest.raises(BadField, match=r"^tools: has \d+ bytes, at most 1024 are allowed"):
        tool_fields.tools("tools", [tool("f", parameters=schema)], limits, schema_required=False)
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    for shape in (tool_fields.openai_shape, tool_fields.huggingface_shape):
        with pytest.raises(BadField, match=r"^response_format: has \d+ bytes, at most 1024 are allowed"):
            shape("response_format", form, limits)


def test_only_one_dialect_asks_for_the_schema() -> None:
    with pytest.raises(BadField, match=r"^tools\[0\]\.function\.parameters: is required"):
        listed({"name": "f"}, required=True)
    body = {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert openai.parse(body, "m", LIMITS).tools
    with pytest.raises(BadField):
        huggingface.parse(body, "m", LIMITS)


def test_an_empty_list_of_tools_is_none_or_a_mistake() -> None:
    chat = huggingface.parse({"messages": HELLO, "tools": []}, "m", LIMITS)
    assert (chat.tools, chat.tool_choice) == ((), ToolChoice.NONE)
    with pytest.raises(BadField, match=r"^tools: must hold at least one"):
        openai.parse({"messages": HELLO, "tools": []}, "m", LIMITS)


# --- tool_choice --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "choice", "name"),
    [
        ({"FunctionName": "clock"}, ToolChoice.NAMED, "clock"),
        ("OneOf", ToolChoice.AUTO, None),
        ("auto", ToolChoice.AUTO, None),
        ("none", ToolChoice.NONE, None),
        ("required", ToolChoice.REQUIRED, None),
        ("clock", ToolChoice.NAMED, "clock"),
        ({"type": "function", "function": {"name": "clock"}}, ToolChoice.NAMED, "clock"),
        ({"function": {"name": "clock"}}, ToolChoice.NAMED, "clock"),
        (None, ToolChoice.AUTO, None),
    ],
)
def test_the_forms_of_a_choice_in_the_huggingface_dialect(value: Any, choice: ToolChoice, name: str | None) -> None:
    assert tool_fields.huggingface_choice("tool_choice", value, GIVEN) == (choice, name)


@pytest.mark.parametrize("value", [None, "OneOf", "auto", "none"])
def test_without_tools_none_is_chosen(value: Any) -> None:
    assert tool_fields.huggingface_choice("tool_choice", value, ()) == (ToolChoice.NONE, None)


@pytest.mark.parametrize("word", ["OneOf", "auto", "none", "required"])
def test_a_tool_that_is_called_like_a_word_needs_an_object(word: str) -> None:
    given = (Tool(word, None, SCHEMA), CLOCK)
    assert tool_fields.huggingface_choice("tool_choice", word, given)[0] is not ToolChoice.NAMED
    for value in ({"FunctionName": word}, {"function": {"name": word}}):
        assert tool_fields.huggingface_choice("tool_choice", value, given) == (ToolChoice.NAMED, word)
    value = {"type": "function", "function": {"name": word}}
    assert tool_fields.openai_choice("tool_choice", value, given) == (ToolChoice.NAMED, word)


@pytest.mark.parametrize(
    ("value", "given", "field"),
    [
        ("nope", GIVEN, "tool_choice"),
        ("Clock", GIVEN, "tool_choice"),
        ({"FunctionName": "nope"}, GIVEN, "tool_choice.FunctionName"),
        ({"FunctionName": "OneOf"}, GIVEN, "tool_choice.FunctionName"),
        ({"function": {"name": "nope"}}, GIVEN, "tool_choice.function.name"),
        ("clock", (), "tool_choice"),
        ("required", (), "tool_choice"),
        ({"FunctionName": "clock"}, (), "tool_choice.FunctionName"),
    ],
)
def test_a_tool_that_is_not_there_is_refused(value: Any, given: tuple[Tool, ...], field: str) -> None:
    with pytest.raises(ToolRefused) as caught:
        tool_fields.huggingface_choice("tool_choice", value, given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (1, "tool_choice"),
        (True, "tool_choice"),
        ([], "tool_choice"),
        ({}, "tool_choice"),
        ({"name": "clock"}, "tool_choice"),
        ({"FunctionName": None}, "tool_choice.FunctionName"),
        ({"FunctionName": 1}, "tool_choice.FunctionName"),
        ({"function": "clock"}, "tool_choice.function"),
        ({"function": {}}, "tool_choice.function.name"),
        ({"type": "tool", "function": {"name": "clock"}}, "tool_choice.type"),
    ],
)
def test_a_choice_that_has_no_known_form_is_named(value: Any, field: str) -> None:
    with pytest.raises(BadField) as caught:
        tool_fields.huggingface_choice("tool_choice", value, GIVEN)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("value", "choice", "name"),
    [
        ("auto", ToolChoice.AUTO, None),
        ("none", ToolChoice.NONE, None),
        ("required", ToolChoice.REQUIRED, None),
        ({"type": "function", "function": {"name": "clock"}}, ToolChoice.NAMED, "clock"),
        (None, ToolChoice.AUTO, None),
    ],
)
def test_the_forms_of_a_choice_in_the_openai_dialect(value: Any, choice: ToolChoice, name: str | None) -> None:
    assert tool_fields.openai_choice("tool_choice", value, GIVEN) == (choice, name)


@pytest.mark.parametrize(
    ("value", "given", "error", "field"),
    [
        ("OneOf", GIVEN, BadField, "tool_choice"),
        ("clock", GIVEN, BadField, "tool_choice"),
        ({"FunctionName": "clock"}, GIVEN, BadField, "tool_choice.type"),
        ({"function": {"name": "clock"}}, GIVEN, BadField, "tool_choice.type"),
        ({"type": "function"}, GIVEN, BadField, "tool_choice.function"),
        ({"type": "function", "function": {}}, GIVEN, BadField, "tool_choice.function.name"),
        ({"type": "function", "function": {"name": "nope"}}, GIVEN, ToolRefused, "tool_choice.function.name"),
        ("auto", (), ToolRefused, "tool_choice"),
        ("required", (), ToolRefused, "tool_choice"),
        (3, GIVEN, BadField, "tool_choice"),
    ],
)
def test_other_forms_are_not_openais(value: Any, given: tuple[Tool, ...], error: type, field: str) -> None:
    with pytest.raises(error) as caught:
        tool_fields.openai_choice("tool_choice", value, given)
    assert caught.value.field == field


def test_only_the_named_tool_may_be_called() -> None:
    body = {"messages": HELLO, "tools": [tool("weather"), tool("clock")], "tool_choice": "clock"}
    chat = huggingface.parse(body, "m", LIMITS)
    assert [one.name for one in chat.callable_tools] == ["clock"]
    assert [one.name for one in chat.tools] == ["weather", "clock"]
    assert huggingface.parse(body | {"tool_choice": "none"}, "m", LIMITS).callable_tools == ()
    assert len(huggingface.parse(body | {"tool_choice": "OneOf"}, "m", LIMITS).callable_tools) == 2


# --- response_format ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ({"type": "text"}, None),
        ({"type": "json"}, ANY_OBJECT),
        ({"type": "json", "value": SCHEMA}, Json(SCHEMA)),
        ({"type": "json_object"}, ANY_OBJECT),
        ({"type": "json_object", "value": SCHEMA}, Json(SCHEMA)),  # what huggingface_hub 2 makes of json_schema
        ({"type": "json_object", "value": None}, ANY_OBJECT),
        ({"type": "regex", "value": "[a-c]+"}, Regex("[a-c]+")),
        ({"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}, Json(SCHEMA)),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, Json(SCHEMA)),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, Json({})),
    ],
)
def test_the_shapes_of_the_huggingface_dialect(value: Any, shape: Node | None) -> None:
    assert tool_fields.huggingface_shape("response_format", value, LIMITS) == shape


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, ANY_OBJECT),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}, Json(SCHEMA)),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": False}}, Json(SCHEMA)),
    ],
)
def test_the_shapes_of_the_openai_dialect(value: Any, shape: Node | None) -> None:
    assert tool_fields.openai_shape("response_format", value, LIMITS) == shape


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("json", ""),
        ([], ""),
        ({}, ".type"),
        ({"type": None}, ".type"),
        ({"type": "xml"}, ".type"),
        ({"type": ["text"]}, ".type"),
        ({"type": "json_schema"}, None),
        ({"type": "json_schema", "json_schema": []}, ".json_schema"),
        ({"type": "json_schema", "json_schema": {}}, ".json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": "x"}}, ".json_schema.schema"),
    ],
)
def test_what_is_wrong_with_a_shape_is_named_in_both(value: Any, field: str | None) -> None:
    for shape in (tool_fields.openai_shape, tool_fields.huggingface_shape):
        with pytest.raises(BadField) as caught:
            shape("response_format", value, LIMITS)
        if field is not None:
            assert caught.value.field == f"response_format{field}"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"type": "json", "value": "x"}, "response_format.value"),
        ({"type": "json_object", "value": []}, "response_format.value"),
        ({"type": "regex"}, "response_format.value"),
        ({"type": "regex", "value": {}}, "response_format.value"),
        ({"type": "json_schema", "value": {"type": "object"}}, "response_format.value.schema"),
    ],
)
def test_what_is_wrong_with_a_value_is_named(value: Any, field: str) -> None:
    with pytest.raises(BadField) as caught:
        tool_fields.huggingface_shape("response_format", value, LIMITS)
    assert caught.value.field == field


@pytest.mark.parametrize("form", ["json", "regex"])
def test_what_only_one_dialect_has_is_refused_in_the_other(form: str) -> None:
    with pytest.raises(BadField, match=r"^response_format\.type: "):
        tool_fields.openai_shape("response_format", {"type": form, "value": "x"}, LIMITS)


def test_tools_and_a_shape_go_together_in_one_dialect_only() -> None:
    body = {"messages": HELLO, "tools": [tool("f")], "response_format": {"type": "json_object"}}
    chat = openai.parse(body, "m", LIMITS)
    assert chat.tools
    assert chat.shape == ANY_OBJECT
    with pytest.raises(ToolRefused) as caught:
        huggingface.parse(body, "m", LIMITS)
    assert caught.value.field == "response_format"
    assert huggingface.parse(body | {"response_format": {"type": "text"}}, "m", LIMITS).tools
    assert huggingface.parse(body | {"tools": []}, "m", LIMITS).shape == ANY_OBJECT
