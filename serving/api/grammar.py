"""What a model may say, as a small tree, and the tree as the text that the engine's grammar backend reads.

A tool format builds the tree of its calls (`tools/`), `response_format` that of an answer. Below the
API a grammar is only a kind and a text (`core.Grammar`).

Rendered for llguidance, vLLM's `guidance` backend: a Lark grammar with JSON schemas inside.
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Special:
    """One special token. `text` is how it is spelled."""

    token: int
    text: str


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON value that is valid against the schema, written without needless white space."""

    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that the pattern matches whole. Syntax of Rust's `regex`."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Seq:
    """One after another."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """The item once or more, with the separator between; at most `most` times where that is set."""

    item: Node
    separator: str = ""
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Tagged:
    """Any text, in which every occurrence of a tag's opening must be followed by the tag's body.

    `tags` are pairs of opening and body; `most` bounds how many may occur, after which no opening may.
    """

    tags: tuple[tuple[Literal | Special, Node], ...]
    most: int | None = None


@dataclass(frozen=True, slots=True)
class TextUnlike:
    """Any text that does not begin with one of these, white space before and within them aside."""

    prefixes: tuple[str, ...]


Node = Literal | Special | Json | Regex | Seq | OneOf | Many | Tagged | TextUnlike


def lark(root: Node, *, specials: bool = True) -> str:
    """The tree as a Lark grammar. Without `specials` special tokens are plain text: for checks without a tokenizer."""
    writer = _Lark(specials)
    start = writer.expression(root)
    return "\n".join(["%llguidance {}", f"start: {start}", *writer.rules]) + "\n"


class _Lark:
    def __init__(self, specials: bool) -> None:
        self._specials = specials
        self.rules: list[str] = []
        self._names: dict[tuple[str, str, str], str] = {}

    def _rule(self, expression: str, *, prefix: str = "r", options: str = "") -> str:
        """The name of the rule that says this. What occurs twice in the tree is written once."""
        key = (prefix, options, expression)
        if key not in self._names:
            self._names[key] = f"{prefix}{len(self._names) + 1}"
            self.rules.append(f"{self._names[key]}{options}: {expression}")
        return self._names[key]

    def _terminal(self, expression: str) -> str:
        return self._rule(expression, prefix="T")

    def expression(self, node: Node) -> str:  # noqa: PLR0911
        match node:
            case Literal(text):
                return _quoted(text)
            case Special(token, text):
                return f"<[{token}]>" if self._specials else _quoted(text)
            case Json(schema):
                return self._rule("%json " + json.dumps(closed(schema) | {"x-guidance": _JSON_OPTIONS}))
            case Regex(pattern):
                return self._terminal(f"/{_in_slashes(pattern)}/")
            case Seq(parts):
                return " ".join(filter(None, map(self.expression, parts))) or '""'
            case OneOf(options):
                return self._rule(" | ".join(map(self.expression, options)))
            case Many():
                return self._many(node)
            case Tagged():
                return self._tagged(node)
            case TextUnlike(prefixes):
                unlike = (_BLANKS + _BLANKS.join(map(_escaped, prefix)) for prefix in prefixes)
                return self._terminal("/(.|\\n)*/" + "".join(f" & ~/{pattern}(.|\\n)*/" for pattern in unlike))

    def _many(self, node: Many) -> str:
        item = self._rule(self.expression(node.item))
        more = " ".join(filter(None, (_quoted(node.separator), item)))
        if node.most is None:
            return f"{item} ({more})*"
        return item if node.most == 1 else f"{item} ({more}){{0,{node.most - 1}}}"

    def _tagged(self, node: Tagged) -> str:
        # A tag's text before it and its opening are one lazy lexeme: text that says the opening has opened the tag.
        # Text spells no opening, not even that of a special token: parsers see only how it is spelled.
        tags = []
        unlike = "".join(f" & ~/(.|\\n)*{_escaped(opening.text)}(.|\\n)*/" for opening, _ in node.tags)
        text = self._terminal("/(.|\\n)*/" + unlike)
        for opening, body in node.tags:
            if isinstance(opening, Special) and self._specials:
                head = f"{text} {self.expression(opening)}"
            else:
                head = self._rule(f"{text} {_quoted(opening.text)}", options="[lazy]")
            tags.append(self._rule(f"{head} {self.expression(body)}"))
        count = "*" if node.most is None else f"{{0,{node.most}}}"
        return f"({' | '.join(tags)}){count} {self._rule(text)}"


# Without this a model may write blanks for ever between two tokens of JSON.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_BLANKS = "[ \\t\\r\\n]*"


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _in_slashes(pattern: str) -> str:
    """A pattern between slashes: slashes and line ends in it are escaped, what is escaped already stays."""
    out, escaped = [], False
    for char in pattern:
        if char == "/" and not escaped:
            out.append("\\")
        out.append({"\n": "n" if escaped else "\\n"}.get(char, char))
        escaped = char == "\\" and not escaped
    return "".join(out)


def _escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(char):x}}}" if not char.isalnum() else char for char in text)


_COMBINATORS = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "dependentSchemas", "not")
_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_MERGING = ('"allOf"', '"dependentSchemas"', '"if"')
_NAMED_SCHEMAS = ("properties", "$defs", "definitions", "patternProperties")
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as it is enforced: what is valid against the result is valid against the schema.

    Objects get `additionalProperties: false` where their author lists properties and says nothing of
    others, so that a model cannot wander off into properties of its own invention. A schema that
    merges objects is not closed: closing a part of a merged object would forbid the other parts.
    `format`s that grammars do not know are dropped, as JSON Schema has them for annotations.
    """
    text = json.dumps(schema)
    result: dict[str, Any] = _closed(schema, closes=not any(word in text for word in _MERGING), here=True)
    result.pop("x-guidance", None)  # options of the backend are not the caller's
    return result


def _closed(value: Any, *, closes: bool, here: bool) -> Any:
    """`closes`: objects may be closed at all; `here`: this one may."""
    if isinstance(value, list):
        return [_closed(item, closes=closes, here=here) for item in value]
    if not isinstance(value, dict):
        return value
    has_properties = isinstance(value.get("properties"), dict)
    out: dict[str, Any] = {}
    for key, item in value.items():
        if key in _NAMED_SCHEMAS and isinstance(item, dict):
            out[key] = {name: _closed(below, closes=closes, here=True) for name, below in item.items()}
        elif key in ("anyOf", "oneOf"):
            out[key] = _closed(item, closes=closes, here=not has_properties)
        elif key in ("items", "prefixItems", "additionalProperties", "allOf"):
            out[key] = _closed(item, closes=closes, here=True)
        elif not (key == "format" and item not in _FORMATS and isinstance(item, str)) and not (
            key == "uniqueItems" and item is False
        ):
            out[key] = item
    merged = any(word in value for word in _COMBINATORS)
    if closes and here and has_properties and not merged and not any(word in value for word in _OPEN):
        out["additionalProperties"] = False
    return out
