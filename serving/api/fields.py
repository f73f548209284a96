"""Checks of single values. Each takes the JSON path and the value, returns it clean or raises `BadField`.

`null` never reaches a check: a table of fields (see `read`) treats it as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from serving.errors import BadField, BadSyntax


@dataclass(frozen=True, slots=True)
class Check:
    """A check and the JSON schema of what it lets through, for the API's description."""

    run: Callable[[str, Any], Any]
    schema: dict[str, Any]

    def __call__(self, path: str, value: Any) -> Any:
        return self.run(path, value)


def parse(body: bytes, nesting: int) -> dict[str, Any]:
    """The body as a JSON object whose fields nest at most `nesting` levels.

    Raises `BadSyntax`, or `BadField` for text that is not Unicode and for what nests deeper.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        _explain(body, error, nesting)
    if not isinstance(value, dict):
        raise BadSyntax(f"the body must be a JSON object, not {kind(value)}")
    if body.count(b"[") + body.count(b"{") > nesting:  # else it cannot nest so deep
        for name, item in value.items():
            check_nesting(name, item, nesting)
    return value


def _explain(body: bytes, error: orjson.JSONDecodeError, nesting: int) -> NoReturn:
    """Why strict parsing failed: a lone surrogate has a place to name, other mistakes a position."""
    import json

    if "surrogate" in str(error) or "utf-8" in str(error).lower():
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            pass
        else:
            check_nesting("body", value, nesting + 1)
            find_bad_text(value, "")
    raise BadSyntax(f"the body is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}") from None


def find_bad_text(value: Any, path: str) -> None:
    """Raise `BadField` at the first string that is not Unicode text."""
    if isinstance(value, str):
        text(path, value)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            find_bad_text(item, f"{path}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            text(path or "key", key)
            find_bad_text(item, f"{path}.{key}" if path else key)


def check_nesting(path: str, value: Any, limit: int) -> None:
    """Raise `BadField` where `value` nests deeper than `limit`. Iterative: it must survive what it checks."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > limit:
            raise BadField(path, f"is nested deeper than {limit} levels")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = [item for item in below if isinstance(item, dict | list)]


def read(body: Mapping[str, Any], table: Mapping[str, Check]) -> dict[str, Any]:
    """The fields of `table` that the body has, checked. Others are ignored, as peers do."""
    return {name: check(name, body[name]) for name, check in table.items() if body.get(name) is not None}


def _text(path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadField(path, f"must be a string, not {kind(value)}")
    if "\x00" in value:
        raise BadField(path, "must not contain NUL characters")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadField(path, "is not valid Unicode: it contains a lone surrogate") from None
    return value


def _boolean(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadField(path, f"must be true or false, not {kind(value)}")
    return value


def number(low: float, high: float, *, above: bool = False) -> Check:
    """A number in [low, high], or in (low, high] where `above`."""

    def check(path: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadField(path, f"must be a number, not {kind(value)}")
        if not (low < value if above else low <= value) or value > high:
            bound = f"greater than {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
            raise BadField(path, f"must be {bound}, not {value:g}")
        return float(value)

    lower = "exclusiveMinimum" if above else "minimum"
    return Check(check, {"type": "number", lower: low, "maximum": high})


def integer(low: int, high: int) -> Check:
    def check(path: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadField(path, f"must be an integer, not {kind(value)}")
        if not low <= value <= high:
            bound = f"at least {low}" if high >= 2**31 - 1 and value < low else f"between {low} and {high}"
            raise BadField(path, f"must be {bound}, not {value}")
        return value

    return Check(check, {"type": "integer", "minimum": low, "maximum": high})


def _stops(path: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise BadField(path, f"must be a string or an array of strings, not {kind(value)}")
    if len(value) > 4:
        raise BadField(path, f"must hold at most 4 strings, not {len(value)}")
    for position, stop in enumerate(value):
        if not text(f"{path}[{position}]", stop):
            raise BadField(f"{path}[{position}]", "must not be empty")
    return tuple(value)


def _mapping(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadField(path, f"must be an object, not {kind(value)}")
    return value


def _array(path: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadField(path, f"must be an array, not {kind(value)}")
    return value


def _token_ids(path: str, value: Any) -> tuple[int, ...]:
    items = array(path, value)
    if len(items) > 1024:
        raise BadField(path, f"must hold at most 1024 token ids, not {len(items)}")
    return tuple(token_id(f"{path}[{position}]", item) for position, item in enumerate(items))


def _logit_bias(path: str, value: Any) -> dict[int, float]:
    biases = {}
    for key, bias in mapping(path, value).items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise BadField(f"{path}.{key}", "must be named by a token id")
        biases[token_id(f"{path}.{key}", int(key))] = bias_of(f"{path}.{key}", bias)
    if len(biases) > 1024:
        raise BadField(path, f"must hold at most 1024 tokens, not {len(biases)}")
    return biases


text = Check(_text, {"type": "string"})
boolean = Check(_boolean, {"type": "boolean"})
mapping = Check(_mapping, {"type": "object"})
array = Check(_array, {"type": "array", "items": {}})
token_id, bias_of = integer(0, 2**31 - 1), number(-100, 100)
token_ids = Check(_token_ids, {"type": "array", "items": token_id.schema})
logit_bias = Check(_logit_bias, {"type": "object", "additionalProperties": bias_of.schema})
_STOP = {"type": "string", "minLength": 1}
stops = Check(_stops, {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": 4}]})
"""Up to four non-empty strings; a bare string is one."""


def kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
