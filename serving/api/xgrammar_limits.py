"""What xgrammar 0.2.8 would not enforce, or would read in another way, without a word.

It converts schemas and patterns leniently: keywords that it does not know, and constraints beside one
that it has read first, are passed over (`json_schema_converter.cc`; vLLM looks for some of them in
`has_xgrammar_unsupported_json_features`, but not in structural tags). Here they are refused, so that
what is valid for the grammar is valid for the schema. What xgrammar itself refuses is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

_OF_TYPE = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
}
_TYPED = set[str]().union(*_OF_TYPE.values())
_ALONE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")  # beside one of these all else is passed over
_NEVER = (
    *("not", "if", "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef"),
    *("patternProperties", "propertyNames", "unevaluatedProperties"),
    *("additionalItems", "unevaluatedItems", "uniqueItems", "contains"),
)
_FORMATS = (
    *("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid"),
    *("uri", "uri-reference", "uri-template", "json-pointer", "relative-json-pointer"),
)
_SHARED = ("$defs", "definitions")


def check_schema(schema: Any) -> None:
    """Raises `ValueError` that names the place and the keyword that xgrammar would not enforce."""
    _Schema(schema).check()


class _Schema:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._checked: set[int] = set()
        self._targets: list[tuple[str, Any]] = []

    def check(self) -> None:
        self._check(self._root, "")
        for place, target in self._targets:
            if isinstance(target, dict) and id(target) not in self._checked:
                raise _refused(place, "$ref: points at what is not a schema")

    def _check(self, schema: Any, place: str) -> None:
        if not isinstance(schema, dict):
            return
        self._checked.add(id(schema))
        if never := next((key for key in _NEVER if schema.get(key, False) is not False), None):
            raise _refused(place, f"{never}: xgrammar cannot enforce it")
        if any(key in schema for key in _ALONE):
            self._check_alone(schema, place)
        else:
            self._check_typed(schema, place)
        for where, below in _below(schema):
            self._check(below, f"{place}.{where}" if place else where)

    def _check_alone(self, schema: dict[str, Any], place: str) -> None:
        key, *others = [key for key in _ALONE if key in schema] + [key for key in schema if key in _TYPED]
        if others:
            raise _refused(place, f"{others[0]}: xgrammar cannot enforce it beside {key}")
        if key == "$ref":
            self._targets.append((place, self._target(schema["$ref"], place)))
        if key == "allOf" and isinstance(schema[key], list) and len(schema[key]) > 1:
            raise _refused(place, "allOf: xgrammar cannot enforce several at once")
        if key == "oneOf" and isinstance(schema[key], list):
            for one, other in combinations(schema[key], 2):
                if not self._apart(one, other):
                    raise _refused(
                        place, "oneOf: its options may overlap; use anyOf, or tell them apart by a required const"
                    )
        if "type" in schema:
            found = self._types({name: value for name, value in schema.items() if name != "type"})
            if not found <= _expanded(schema["type"]):
                raise _refused(place, f"type: xgrammar cannot enforce it beside {key}, whose values may have others")

    def _check_typed(self, schema: dict[str, Any], place: str) -> None:
        types = _expanded(schema["type"]) if "type" in schema else set[str]()
        typed = [key for key in schema if key in _TYPED]
        if typed and not types:
            types = {kind for kind, sign in (("object", "properties"), ("array", "items")) if sign in schema}
            if len(types) != 1 or (odd := [key for key in typed if key not in _OF_TYPE[min(types)]]):
                raise _refused(place, f"{typed[0] if len(types) != 1 else odd[0]}: needs a type beside it")
        if "string" in types:
            _check_string(schema, place)
        if "number" in types and "multipleOf" in schema:
            raise _refused(place, "multipleOf: xgrammar can enforce it for integers only")
        if "object" in types:
            listed = schema.get("properties", {})
            if unlisted := [key for key in schema.get("required", ()) if key not in listed]:
                raise _refused(place, f"required: {unlisted[0]!r} is not among the properties")

    def _target(self, ref: Any, place: str) -> Any:
        found = self._root
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise _refused(place, f"$ref: {ref!r} is not in this schema")
        for part in ref.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise _refused(place, f"$ref: {ref!r} is not in this schema")
        return found

    def _resolved(self, schema: Any) -> Any:
        for _ in range(16):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = self._target(schema["$ref"], "")
        return True  # round in circles: nothing is known of it

    def _types(self, schema: Any, depth: int = 0) -> set[str]:
        """The types that a value may have, as far as the schema says; all of them where it does not."""
        schema = self._resolved(schema)
        if not isinstance(schema, dict) or depth > 16:
            return set(_ALL_TYPES)
        if "const" in schema:
            return {_type_of(schema["const"])}
        if isinstance(schema.get("enum"), list):
            return set(map(_type_of, schema["enum"]))
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(key), list):
                return set[str]().union(*(self._types(option, depth + 1) for option in schema[key]))
        if "type" in schema:
            return _expanded(schema["type"])
        return {"object"} if "properties" in schema else set(_ALL_TYPES)

    def _apart(self, one: Any, other: Any) -> bool:
        """Whether no value is valid against both: their types differ, or a required constant."""
        one, other = self._resolved(one), self._resolved(other)
        mine, theirs = self._types(one), self._types(other)
        if not mine & theirs:
            return True
        if (first := _constants(one)) and (second := _constants(other)):
            return not first & second
        if not (isinstance(one, dict) and isinstance(other, dict) and mine == theirs == {"object"}):
            return False
        return any(
            not first & second
            for key in {*one.get("required", ())} & {*other.get("required", ())}
            if (first := self._constants_at(one, key)) and (second := self._constants_at(other, key))
        )

    def _constants_at(self, schema: dict[str, Any], key: str) -> set[str | None] | None:
        return _constants(self._resolved(schema.get("properties", {}).get(key)))


def _below(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in (*_SHARED, "properties") and isinstance(value, dict):
            yield from ((f"{key}.{name}", below) for name, below in value.items())
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
            yield from ((f"{key}[{number}]", below) for number, below in enumerate(value))
        elif key in ("items", "additionalProperties"):
            yield key, value


def _check_string(schema: dict[str, Any], place: str) -> None:
    shaped = [key for key in ("pattern", "format") if key in schema]
    others = [*shaped[1:], *(key for key in ("minLength", "maxLength") if key in schema)]
    if shaped and others:
        raise _refused(place, f"{others[0]}: xgrammar cannot enforce it beside {shaped[0]}")
    if "format" in schema and schema["format"] not in _FORMATS:
        raise _refused(place, f"format: xgrammar does not know {schema['format']!r}")
    if isinstance(pattern := schema.get("pattern"), str):
        try:
            readable_pattern(pattern, in_json=True)
        except ValueError as error:
            raise _refused(place, f"pattern: {error}") from None


_ALL_TYPES = ("string", "number", "integer", "array", "object", "boolean", "null")
_TYPE_OF = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def _type_of(value: Any) -> str:
    return _TYPE_OF.get(type(value), "null")


def _expanded(types: Any) -> set[str]:
    found = {kind for kind in (types if isinstance(types, list) else [types]) if isinstance(kind, str)}
    return found | {"integer"} if "number" in found else found


def _constants(schema: Any) -> set[str | None] | None:
    """The values that the schema lists, as text; None where it lists none."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return {repr(schema["const"])}
    return set(map(repr, schema["enum"])) if isinstance(schema.get("enum"), list) else None


def _refused(place: str, why: str) -> ValueError:
    return ValueError(f"{place}: {why}" if place else why)


# patterns

_CHARACTER = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]{1,6}\}|.)|."
_PIECE = re.compile(rf"\[\^?(?:\\.|[^\\\]])+\]|{_CHARACTER}", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:[dDwWsStnrfv]|[xu].+|[^0-9a-zA-Z])", re.DOTALL)
_NOT_IN_JSON = ('"', *map(chr, range(32)), *(f"\\{char}" for char in 'tnrfvxu"\\'))


def readable_pattern(pattern: str, *, in_json: bool = False) -> str:
    """The pattern for xgrammar, which reads ECMAScript's syntax, matches whole texts and ignores anchors.

    Raises `ValueError` for what it would take for something else. `in_json`: the pattern of a JSON
    string, where xgrammar writes a quote, a backslash or a control character without escaping it.
    """
    out, depth = [], 0
    pieces = _PIECE.findall(pattern)
    for before, piece, after in zip(["|", *pieces], pieces, [*pieces[1:], "|"], strict=False):
        if piece in ("^", "$"):
            if depth or (before if piece == "^" else after) != "|":
                raise ValueError(f"xgrammar cannot enforce {piece!r} but at the ends")
            continue
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if piece[0] == "[":
            _check_set(piece)
        elif piece[0] == "\\" and not _ESCAPE.fullmatch(piece):
            raise ValueError(f"xgrammar does not know {piece!r}")
        if in_json and piece.startswith(_NOT_IN_JSON):
            raise ValueError(f"xgrammar cannot write {piece!r} in a JSON string")
        out.append("[^\\n]" if piece == "." else piece)
    return "".join(out)


def _check_set(piece: str) -> None:
    """In Rust sets may stand in sets and be subtracted; xgrammar takes all of it for characters."""
    inside = re.findall(_CHARACTER, piece[1:-1], re.DOTALL)
    plain = "".join(each for each in inside if each[0] != "\\")
    if piece in ("[", "[^]") or "[" in plain or any(sign in plain for sign in ("&&", "--", "~~")):
        raise ValueError(f"xgrammar does not know sets like {piece!r}")
    if unknown := [each for each in inside if each[0] == "\\" and not _ESCAPE.fullmatch(each)]:
        raise ValueError(f"xgrammar does not know {unknown[0]!r}")
