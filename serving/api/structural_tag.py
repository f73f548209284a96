"""A grammar's tree as a structural tag, what vLLM's `xgrammar` backend reads.

https://xgrammar.mlc.ai/docs/structural_tag/introduction.html and xgrammar 0.2.8's `structural_tag.py`.

xgrammar has no special tokens in text: a token matches as the bytes that it is spelled with. So a tag
whose opening is a special token opens by the token and by its spelling alike.
"""

from __future__ import annotations

import json
from typing import Any

from serving.api.grammar import Json, Literal, Many, Node, OneOf, Regex, Seq, Special, Tagged, TextUnlike, closed
from serving.api.xgrammar_limits import check_schema, readable_pattern

_Format = dict[str, Any]


def structural_tag(root: Node) -> str:
    """The tree as JSON. Raises `ValueError` that says what xgrammar would not enforce, and where.

    Its `json_schema` formats allow free white space, which a structural tag cannot forbid;
    `serving.engine.xgrammar_check` writes them as grammars that do not.
    """
    return json.dumps({"type": "structural_tag", "format": _format(root)})


def _format(node: Node) -> _Format:  # noqa: PLR0911
    match node:
        case Literal(text):
            return {"type": "const_string", "value": text}
        case Special(token):
            return {"type": "token", "token": token}
        case Json(schema):
            check_schema(schema)
            return {"type": "json_schema", "json_schema": closed(schema)}
        case Regex(pattern):
            return {"type": "regex", "pattern": readable_pattern(pattern) or "()"}
        case Seq(parts):
            return _sequence([_format(part) for part in parts])
        case OneOf(options):
            return {"type": "or", "elements": [_format(option) for option in options]}
        case Many():
            return _many(node)
        case Tagged():
            return _tagged(node)
        case TextUnlike(prefixes):
            return {"type": "grammar", "grammar": _text_unlike(prefixes)}


def _sequence(elements: list[_Format]) -> _Format:
    return {"type": "sequence", "elements": elements} if elements else {"type": "const_string", "value": ""}


def _many(node: Many) -> _Format:
    item = _format(node.item)
    if node.most is None:
        tag = {"type": "tag", "begin": "", "content": item, "end": ""}
        return {"type": "tags_with_separator", "tags": [tag], "separator": node.separator, "at_least_one": True}
    if node.most == 1:
        return item
    more = _sequence([_format(Literal(node.separator)), item])
    return _sequence([item, {"type": "repeat", "min": 0, "max": node.most - 1, "content": more}])


def _tagged(node: Tagged) -> _Format:
    openings = [opening.text for opening, _ in node.tags]
    bodies = [_format(body) for _, body in node.tags]
    if node.most is None:
        return {"type": "dispatch", "rules": list(zip(openings, bodies, strict=True)), "loop": True}
    text: _Format = {"type": "any_text", "excludes": openings}
    for _ in range(node.most):  # from the last tag that may come to the first
        rules = [(opening, _sequence([body, text])) for opening, body in zip(openings, bodies, strict=True)]
        text = {"type": "dispatch", "rules": rules, "loop": False}
    return text


# xgrammar's EBNF is llama.cpp's: https://github.com/ggerganov/llama.cpp/blob/master/grammars/README.md

_BLANK, _NOTHING = " \t\r\n", '""'


def _text_unlike(prefixes: tuple[str, ...]) -> str:
    """A grammar that follows the prefixes character by character and takes every way but the last step.

    root ::= blanks ("" | [{] s1 | [^{ …] any)      `s1`: the same for what may come after `{`
    """
    rules: dict[str, str] = {}
    blanks = "".join(map(_in_class, _BLANK))

    def rule(rests: set[str]) -> str:
        """The name of the rule for what follows a text that has said all of some prefixes but these rests."""
        name = f"s{len(rules)}" if rules else "root"
        rules[name] = ""  # before those below it, which count
        firsts = sorted({rest[0] for rest in rests})
        followed = [first for first in firsts if first not in rests]  # the others would complete a prefix
        ways = [f"[{_in_class(first)}] {rule({rest[1:] for rest in rests if rest[0] == first})}" for first in followed]
        other = f"[^{blanks}{''.join(map(_in_class, firsts))}] any"
        rules[name] = f"[{blanks}]* ({' | '.join([_NOTHING, *ways, other])})"
        return name

    rule({"".join(char for char in prefix if char not in _BLANK) for prefix in prefixes})
    rules["any"] = "[\\0-\\U0010ffff]*"
    return "\n".join(f"{name} ::= {expression}" for name, expression in rules.items())


def _in_class(char: str) -> str:
    return f"\\U{ord(char):08x}"
