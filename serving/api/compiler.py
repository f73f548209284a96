"""From a grammar's tree to the text that engines read, checked before anything is queued.

The check is the engine's own: llguidance reads the grammar and takes its first steps. It refuses
schema keywords that it does not know, and grammars that would cost an engine's step too much.
"""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from serving.api.grammar import Node, lark
from serving.core import Grammar
from serving.errors import BadField

_REMEMBERED = 256  # grammars whose check is known
_TRIAL_STEPS = 24
_ANY_BYTE = (1 << 256) - 1
# Of what llguidance allows a step by default: an engine's step must not wait for one request's lexer.
_LIMITS = LLParserLimits(initial_lexer_fuel=500_000, step_lexer_fuel=100_000)


async def compiled(node: Node, field: str, most_bytes: int) -> Grammar:
    """The grammar for an engine. Raises `BadField` that says what in `field` cannot be compiled."""
    text = lark(node)
    if len(text) > most_bytes:
        raise BadField(field, f"needs a grammar of {len(text)} bytes, at most {most_bytes} are allowed")
    plain = lark(node, specials=False)
    problem = _known.get(plain)
    if problem is None:
        problem = _known[plain] = await asyncio.to_thread(_problem, plain)  # a millisecond, or a second
        if len(_known) > _REMEMBERED:
            del _known[next(iter(_known))]
    if problem:
        raise BadField(field, problem)
    return Grammar("grammar", text)


_known: dict[str, str] = {}  # the text of a grammar → its problem


def _problem(text: str) -> str:
    """Why an engine could not follow this grammar; empty where it can."""
    grammar = LLMatcher.grammar_from_lark(text)
    if error := LLMatcher.validate_grammar(grammar, limits=_LIMITS):
        return _in_few_words(error)
    tokenizer = _bytes_tokenizer()
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    for step in range(_TRIAL_STEPS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little") & _ANY_BYTE
        if matcher.is_error():
            return f"is too complex: {_in_few_words(matcher.get_error())}"
        if matcher.is_stopped():
            return "" if step else "allows no text at all"
        allowed = [byte for byte in range(256) if mask >> byte & 1]
        if not allowed:
            return ""
        matcher.consume_token(int(allowed[(step * 7) % len(allowed)]))
    return ""


class _Bytes:
    """A tokenizer whose tokens are the bytes: enough to walk a grammar, and no model's vocabulary to load."""

    eos_token_id = 256
    bos_token_id = None
    tokens = [bytes([byte]) for byte in range(256)] + [b"<eos>"]
    special_token_ids = [256]  # noqa: RUF012

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@lru_cache(maxsize=1)
def _bytes_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))


def _in_few_words(error: str) -> str:
    """llguidance adds its source and state to what is wrong."""
    if "oneOf constraints are not supported" in error:
        return "oneOf: its options may overlap, which cannot be enforced; use anyOf, or tell them apart by a const"
    if found := re.search(r"regex parse error:\n(.*?)\n\s*\d+ \|", error, re.DOTALL):
        return f"is not a regular expression that can be enforced: {' '.join(found[1].split())}"
    first = error.partition("\n")[0]
    return re.sub(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?", "", first)
