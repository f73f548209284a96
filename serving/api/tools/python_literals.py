"""Keyword arguments with literal values, `a=1, b='x'`, as JSON. Nothing is evaluated."""

from __future__ import annotations

import json
import re

_TOKEN = re.compile(
    r"""
      (?P<string> "[^"\\]*(?:\\.[^"\\]*)*" | '[^'\\]*(?:\\.[^'\\]*)*' )
    | (?P<number> \d[\w.]* )
    | (?P<word> [^\W\d][\w-]* ) (?P<assigned> \s*= )?
    | (?P<trailing> ,\s* (?=[\]}]|$) )
    """,
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPE = re.compile(
    r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|[0-7]{1,3}|.)", re.DOTALL
)
_ESCAPED = dict(zip("abfnrtv\\'\"\n", "\a\b\f\n\r\t\v\\'\"", strict=False)) | {"\n": ""}
_HALF = re.compile("[\ud800-\udfff]")


def to_json(arguments: str) -> str:
    """The arguments as a JSON object. Raises `ValueError` for what is not keywords and literals.

    Strings, numbers, lists, dictionaries with strings as keys, True, False, None, and all that JSON
    has. A string in double quotes is read as JSON has it where it can be.
    """
    found = "{" + _TOKEN.sub(_token, arguments) + "}"
    try:
        json.loads(found, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return found


def _token(match: re.Match[str]) -> str:
    text = match[0]
    match match.lastgroup:
        case "string":
            return _quoted(_unquoted(text))
        case "assigned":
            return f"{_quoted(match['word'])}: "
        case "word":
            return _refuse(text) if text not in _WORDS else _WORDS[text]
        case "trailing":
            return ""
    return text


def _refuse(text: str) -> str:
    raise ValueError(f"{text} is not a literal")


def _unquoted(text: str) -> str:
    if text[0] == '"':
        try:
            return str(json.loads(text, strict=False))
        except ValueError:
            pass  # escapes that only Python knows
    return _ESCAPE.sub(_unescaped, text[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code in _ESCAPED:
        return _ESCAPED[code]
    if code[0] in "xuU" and len(code) > 1:
        return chr(int(code[1:], 16))
    return chr(int(code, 8)) if code[0] in "01234567" else match[0]


def _quoted(text: str) -> str:
    # Half of a surrogate pair stays escaped: as itself it could not be sent.
    return json.dumps(text, ensure_ascii=_HALF.search(text) is not None)
