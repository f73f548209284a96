"""Small words that several formats use."""

from __future__ import annotations

import json
from collections.abc import Mapping

from serving.api.grammar import Literal, Special


def marker(text: str, tokens: Mapping[str, int]) -> Literal | Special:
    """A marker in a grammar: the special token if the model has it, else how it is spelled."""
    return Special(tokens[text], text) if text in tokens else Literal(text)


def result(name: str | None, content: str) -> str:
    """A tool's result as a plain sentence."""
    return f"The result of calling {name or 'the function'} is: {content}"


def quoted(text: str) -> str:
    """As a string in JSON."""
    return json.dumps(text, ensure_ascii=False)
