"""The `messages` array: the part of a request that both dialects share almost whole."""

from __future__ import annotations

from typing import Any

from serving.api import fields
from serving.errors import BadField


def check(path: str, value: Any, limit: int) -> list[dict[str, Any]]:
    """Messages as a chat template reads them. Raises `BadField` naming the message and its key."""
    items = fields.array(path, value)
    if not items:
        raise BadField(path, "must hold at least one message")
    if len(items) > limit:
        raise BadField(path, f"must hold at most {limit} messages, not {len(items)}")
    return [_message(f"{path}[{position}]", item) for position, item in enumerate(items)]


def _message(path: str, value: Any) -> dict[str, Any]:
    message = fields.mapping(path, value)
    role = message.get("role")
    if role is None:
        raise BadField(f"{path}.role", "is required")
    if not fields.text(f"{path}.role", role):
        raise BadField(f"{path}.role", "must not be empty")
    clean: dict[str, Any] = {"role": role, "content": _content(f"{path}.content", message.get("content"))}
    if message.get("name") is not None:
        clean["name"] = fields.text(f"{path}.name", message["name"])
    if clean["content"] is None:
        raise BadField(f"{path}.content", "is required")
    return clean


def _content(path: str, value: Any) -> str | None:
    """A string, or text parts joined as vLLM joins them: with newlines."""
    if value is None or isinstance(value, str):
        return None if value is None else fields.text(path, value)
    if not isinstance(value, list):
        raise BadField(path, "must be a string or an array of parts")
    texts = []
    for position, part in enumerate(value):
        where = f"{path}[{position}]"
        kind = fields.mapping(where, part).get("type")
        if kind != "text":
            raise BadField(f"{where}.type", f"must be 'text': this model takes no other parts, such as {kind!r:.50}")
        texts.append(fields.text(f"{where}.text", part.get("text")))
    return "\n".join(texts)
