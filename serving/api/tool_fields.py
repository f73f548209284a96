"""`tools`, `tool_choice` and `response_format`: fields that both dialects have, each with forms of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from serving.api import fields
from serving.api.chat import ToolChoice
from serving.api.grammar import Json, Node, Regex
from serving.api.tools.base import Tool
from serving.errors import BadField, ToolRefused
from serving.settings import LimitSettings

_COUNTS = {"minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"}

Choice = tuple[ToolChoice, str | None]

# What could not be told from the syntax around it in any tool format.
_NAME = re.compile(r"[^\s\"'\\<>{}\[\]()]{1,128}")


def tools(path: str, value: Any, limits: LimitSettings, *, schema_required: bool) -> tuple[Tool, ...]:
    """Functions. The schema of a function's arguments may be called `parameters` or `arguments`.

    Raises `BadField`.
    """
    items = fields.array(path, value)
    if len(items) > limits.tools:
        raise BadField(path, f"must hold at most {limits.tools} tools, not {len(items)}")
    _check_size(path, items, limits)
    found = [_tool(f"{path}[{position}]", item, schema_required) for position, item in enumerate(items)]
    names: set[str] = set()
    for position, tool in enumerate(found):
        if tool.name in names:
            raise BadField(f"{path}[{position}].function.name", f"{tool.name!r} is the name of an earlier tool")
        names.add(tool.name)
    return tuple(found)


def _check_size(path: str, value: Any, limits: LimitSettings) -> None:
    """Before anything is made of a schema: the event loop must not wait for one request, nor memory be filled by it."""
    if (size := len(orjson.dumps(value))) > limits.grammar_bytes:
        raise BadField(path, f"has {size} bytes, at most {limits.grammar_bytes} are allowed")
    # A grammar writes out what is counted: a few bytes of schema become gigabytes.
    counted, level = 0, [value]
    while level:
        item = level.pop()
        if isinstance(item, list):
            level += item
        elif isinstance(item, dict):
            level += item.values()
            for key in _COUNTS & item.keys():
                if isinstance(item[key], int | float):
                    counted += item[key]
                    if counted > limits.grammar_items:
                        raise BadField(path, f"{key}: more than {limits.grammar_items} items or properties in all")


def _tool(path: str, value: Any, schema_required: bool) -> Tool:
    tool = fields.mapping(path, value)
    if tool.get("type") != "function":
        raise BadField(f"{path}.type", "must be 'function'")
    function = fields.mapping(f"{path}.function", tool.get("function"))
    name = fields.text(f"{path}.function.name", function.get("name"))
    if not _NAME.fullmatch(name):
        raise BadField(f"{path}.function.name", "must be 1 to 128 characters without blanks, quotes or brackets")
    description = function.get("description")
    if description is not None:
        fields.text(f"{path}.function.description", description)
    key = next((key for key in ("parameters", "arguments") if function.get(key) is not None), "parameters")
    parameters = _parameters(f"{path}.function.{key}", function.get(key), schema_required)
    return Tool(name, description, parameters, key)


def _parameters(path: str, value: Any, required: bool) -> dict[str, Any]:
    if value is None:
        if required:
            raise BadField(path, "is required: the JSON schema of the function's arguments")
        return {"type": "object", "properties": {}}
    schema: dict[str, Any] = fields.mapping(path, value)
    if schema.get("type", "object") != "object":
        raise BadField(f"{path}.type", "must be 'object': arguments are named")
    return {"type": "object"} | schema


def openai_choice(path: str, value: Any, given: tuple[Tool, ...]) -> Choice:
    """auto, none, required or {"type": "function", "function": {"name"}}."""
    if value is None:
        return (ToolChoice.AUTO if given else ToolChoice.NONE), None
    if value == "none":
        return ToolChoice.NONE, None
    if not given:
        raise ToolRefused(f"{path}: is only allowed when tools are given", path)
    if value in ("auto", "required"):
        return ToolChoice(value), None
    if isinstance(value, dict):
        if value.get("type") != "function":
            raise BadField(f"{path}.type", "must be 'function'")
        function = fields.mapping(f"{path}.function", value.get("function"))
        return _named(f"{path}.function.name", function.get("name"), given)
    raise BadField(path, "must be 'auto', 'none', 'required' or an object that names a function")


def huggingface_choice(path: str, value: Any, given: tuple[Tool, ...]) -> Choice:
    """{"FunctionName": f}, "OneOf", "auto", "none", "required", "f", and OpenAI's object with or without its type."""
    if value is None or value in ("OneOf", "auto"):
        return (ToolChoice.AUTO if given else ToolChoice.NONE), None
    if value == "none":
        return ToolChoice.NONE, None
    if value == "required":
        if not given:
            raise ToolRefused(f"{path}: no tools are given", path)
        return ToolChoice.REQUIRED, None
    if isinstance(value, str):
        return _named(path, value, given)
    if isinstance(value, dict):
        if "FunctionName" in value:
            return _named(f"{path}.FunctionName", value["FunctionName"], given)
        if "function" in value:
            if value.get("type", "function") != "function":
                raise BadField(f"{path}.type", "must be 'function'")
            function = fields.mapping(f"{path}.function", value["function"])
            return _named(f"{path}.function.name", function.get("name"), given)
    raise BadField(path, "must be 'OneOf', 'auto', 'none', 'required', a function's name or an object that names one")


def _named(path: str, name: Any, given: tuple[Tool, ...]) -> Choice:
    fields.text(path, name)
    if not given:
        raise ToolRefused(f"{path}: no tools are given, so none is called {name!r:.150}", path)
    if all(tool.name != name for tool in given):
        raise ToolRefused(f"{path}: no tool is called {name!r:.150}", path)
    return ToolChoice.NAMED, name


def openai_shape(path: str, value: Any, limits: LimitSettings) -> Node | None:
    """text, json_object or json_schema. https://platform.openai.com/docs/guides/structured-outputs"""
    form = fields.mapping(path, value)
    _check_size(path, form, limits)
    match form.get("type"):
        case "text":
            return None
        case "json_object":
            return _object_shape(path, form)
        case "json_schema":
            wrapper = fields.mapping(f"{path}.json_schema", form.get("json_schema"))
            return Json(fields.mapping(f"{path}.json_schema.schema", wrapper.get("schema")))
    raise BadField(f"{path}.type", "must be 'text', 'json_object' or 'json_schema'")


def huggingface_shape(path: str, value: Any, limits: LimitSettings) -> Node | None:
    """TGI's json and regex with their `value`, OpenAI's forms, and what clients make of mixing the two."""
    form = fields.mapping(path, value)
    _check_size(path, form, limits)
    match form.get("type"):
        case "text":
            return None
        case "json" | "json_object":
            return _object_shape(path, form)
        case "regex":
            return Regex(fields.text(f"{path}.value", form.get("value")))
        case "json_schema":
            return Json(_wrapped_schema(path, form))
    raise BadField(f"{path}.type", "must be 'text', 'json', 'json_object', 'json_schema' or 'regex'")


def _object_shape(path: str, form: Mapping[str, Any]) -> Node:
    """Any object, or one of the schema that some clients send along, as `value` or as `schema`."""
    key = next((key for key in ("value", "schema") if form.get(key) is not None), None)
    return Json({"type": "object"} if key is None else fields.mapping(f"{path}.{key}", form[key]))


def _wrapped_schema(path: str, form: Mapping[str, Any]) -> dict[str, Any]:
    key = "json_schema" if form.get("json_schema") is not None else "value"
    wrapper = fields.mapping(f"{path}.{key}", form.get(key))
    schema: dict[str, Any] = fields.mapping(f"{path}.{key}.schema", wrapper.get("schema"))
    return schema


_FUNCTION = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
        "description": {"type": "string"},
        "parameters": {"type": "object", "description": "JSON schema of the arguments; may be called `arguments`"},
        "arguments": {"type": "object"},
    },
}
TOOLS_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type", "function"],
        "properties": {"type": {"const": "function"}, "function": _FUNCTION},
    },
}
_BY_NAME = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
OPENAI_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["auto", "none", "required"]},
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {"type": {"const": "function"}, "function": _BY_NAME},
        },
    ]
}
HUGGINGFACE_CHOICE_SCHEMA = {
    "anyOf": [
        {"type": "string", "description": "OneOf, auto, none, required, or a function's name"},
        {"type": "object", "required": ["FunctionName"], "properties": {"FunctionName": {"type": "string"}}},
        {
            "type": "object",
            "required": ["function"],
            "properties": {"type": {"const": "function"}, "function": _BY_NAME},
        },
    ]
}
_SCHEMA_IN = {"type": "object", "required": ["schema"], "properties": {"schema": {"type": "object"}}}
_JSON_SCHEMA = {
    "type": "object",
    "required": ["type", "json_schema"],
    "properties": {"type": {"const": "json_schema"}, "json_schema": _SCHEMA_IN},
}
_PLAIN = {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}}
OPENAI_SHAPE_SCHEMA = {"anyOf": [_PLAIN, _JSON_SCHEMA]}
HUGGINGFACE_SHAPE_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["text", "json", "json_object"]}, "value": {"type": "object"}},
        },
        {
            "type": "object",
            "required": ["type", "value"],
            "properties": {"type": {"const": "regex"}, "value": {"type": "string"}},
        },
        _JSON_SCHEMA,
        {
            "type": "object",
            "required": ["type", "value"],
            "properties": {"type": {"const": "json_schema"}, "value": _SCHEMA_IN},
        },
    ]
}
