"""The `messages` array: the part of a request that both dialects share almost whole."""

from __future__ import annotations

from typing import Any

import orjson

from serving.api import fields
from serving.errors import BadField

_NESTING = 64  # levels of arguments that come as text, where nobody has counted them yet
_DIGITS = 15  # of ids that count: what every client reads as an integer


def check(path: str, value: Any, limit: int, *, counted_results: bool) -> list[dict[str, Any]]:
    """Messages as a chat template reads them. `counted_results`: a result may name its call by an integer.

    Raises `BadField` naming the message and its key.
    """
    items = fields.array(path, value)
    if not items:
        raise BadField(path, "must hold at least one message")
    if len(items) > limit:
        raise BadField(path, f"must hold at most {limit} messages, not {len(items)}")
    return [_message(f"{path}[{position}]", item, counted_results) for position, item in enumerate(items)]


def highest_call_id(messages: list[dict[str, Any]]) -> int:
    """The highest of the integer ids that the conversation's calls have; -1 where there is none."""
    ids = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    return max((int(id_) for id_ in ids if id_.isascii() and id_.isdecimal() and len(id_) <= _DIGITS), default=-1)


def _message(path: str, value: Any, counted_results: bool) -> dict[str, Any]:
    message = fields.mapping(path, value)
    role = message.get("role")
    if role is None:
        raise BadField(f"{path}.role", "is required")
    if not fields.text(f"{path}.role", role):
        raise BadField(f"{path}.role", "must not be empty")
    clean: dict[str, Any] = {"role": role, "content": _content(f"{path}.content", message.get("content"))}
    if message.get("name") is not None:
        clean["name"] = fields.text(f"{path}.name", message["name"])
    if message.get("tool_calls") is not None and (calls := _calls(f"{path}.tool_calls", message["tool_calls"])):
        clean["tool_calls"] = calls
    if message.get("tool_call_id") is not None:
        read = _id if counted_results else fields.text
        clean["tool_call_id"] = read(f"{path}.tool_call_id", message["tool_call_id"])
    if clean["content"] is None:
        if "tool_calls" not in clean:
            raise BadField(f"{path}.content", "is required")
        clean["content"] = ""
    return clean


def _content(path: str, value: Any) -> str | None:
    """A string, or text parts joined as vLLM joins them: with newlines."""
    if value is None or isinstance(value, str):
        return None if value is None else fields.text(path, value)
    if not isinstance(value, list):
        raise BadField(path, f"must be a string or an array of parts, not {fields.kind(value)}")
    texts = []
    for position, part in enumerate(value):
        where = f"{path}[{position}]"
        kind = fields.mapping(where, part).get("type")
        if kind != "text":
            raise BadField(f"{where}.type", f"must be 'text': this model takes no other parts, such as {kind!r:.50}")
        texts.append(fields.text(f"{where}.text", part.get("text")))
    return "\n".join(texts)


def _calls(path: str, value: Any) -> list[dict[str, Any]]:
    return [_call(f"{path}[{position}]", item) for position, item in enumerate(fields.array(path, value))]


def _call(path: str, value: Any) -> dict[str, Any]:
    call = fields.mapping(path, value)
    if call.get("type") != "function":
        raise BadField(f"{path}.type", "must be 'function'")
    function = fields.mapping(f"{path}.function", call.get("function"))
    name = fields.text(f"{path}.function.name", function.get("name"))
    if function.get("description") is not None:
        fields.text(f"{path}.function.description", function["description"])
    arguments = _arguments(f"{path}.function.arguments", function.get("arguments"))
    id_ = _id(f"{path}.id", call.get("id"))
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(path: str, value: Any) -> dict[str, Any]:
    """An object, or the JSON text of one. Templates get the object."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value or "{}")
        except orjson.JSONDecodeError as error:
            raise BadField(path, f"must be an object or the JSON text of one: {error.msg}") from None
        fields.check_nesting(path, value, _NESTING)
    if not isinstance(value, dict):
        raise BadField(path, f"must be an object or the JSON text of one, not {fields.kind(value)}")
    return value


def _id(path: str, value: Any) -> str:
    """Clients of one dialect count their calls, those of the other name them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadField(path, f"must be a string or an integer, not {fields.kind(value)}")
    return str(fields.text(path, value))


def schema() -> dict[str, Any]:
    """JSON schema of one message, for the API's description."""
    part = {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    }
    identifier = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    function = {
        "type": "object",
        "required": ["name", "arguments"],
        "properties": {
            "name": {"type": "string"},
            "arguments": {
                "anyOf": [{"type": "object"}, {"type": "string", "description": "the JSON text of an object"}]
            },
            "description": {"type": "string"},
        },
    }
    call = {
        "type": "object",
        "required": ["id", "type", "function"],
        "properties": {"id": identifier, "type": {"const": "function"}, "function": function},
    }
    return {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string", "minLength": 1, "examples": ["user"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": part}, {"type": "null"}]},
            "name": {"type": "string"},
            "tool_calls": {"type": "array", "items": call},
            "tool_call_id": identifier,
        },
    }
