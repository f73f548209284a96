"""From a grammar's tree to the text that engines read, checked before anything is queued.

The check is the engine's own. `guidance`: llguidance reads the grammar and takes its first steps; it
refuses schema keywords that it does not know, and grammars that would cost an engine's step too much.
`xgrammar`: a child process compiles the grammar, as it may take minutes and gigabytes.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from serving.api.child import Child, Died, TooSlow
from serving.api.grammar import Node, lark
from serving.api.structural_tag import structural_tag
from serving.core import Grammar
from serving.errors import BadField


class Compiler(Protocol):
    """Makes grammars for one model's engines."""

    async def compiled(self, node: Node, field: str, most_bytes: int) -> Grammar:
        """The grammar for an engine. Raises `BadField` that says what in `field` cannot be compiled."""
        ...

    async def start(self) -> None:
        """Get ready, where that takes time."""
        ...

    async def stop(self) -> None: ...


class _Remembered:
    """Results by the text that they are for; the longest unused go when there are too many, or too much text."""

    def __init__(self, most: int = 256, most_characters: int = 32_000_000) -> None:
        self._most = most
        self._most_characters = most_characters
        self._characters = 0
        self._known: OrderedDict[str, str] = OrderedDict()

    def get(self, text: str) -> str | None:
        if text in self._known:
            self._known.move_to_end(text)
        return self._known.get(text)

    def add(self, text: str, result: str) -> None:
        if text not in self._known:
            self._known[text] = result
            self._characters += len(text) + len(result)
        while len(self._known) > self._most or self._characters > self._most_characters:
            oldest, its = self._known.popitem(last=False)
            self._characters -= len(oldest) + len(its)


def _within(text: str, field: str, most_bytes: int) -> str:
    if len(text) > most_bytes:
        raise BadField(field, f"needs a grammar of {len(text)} bytes, at most {most_bytes} are allowed")
    return text


# xgrammar

_START_SECONDS = 120.0  # it imports torch, on a machine that may be starting everything else as well
_PATIENCE = 4  # seconds that may pass for one of computing, on a machine that is busy with other things
_GROWTH = 8  # a schema written as a grammar is three or four times as long


class Xgrammar:
    """For engines whose `grammar_backend` is xgrammar. `seconds`: of computing that a grammar may take."""

    def __init__(self, model: Path, seconds: float, most_bytes: int, command: Sequence[str] | None = None) -> None:
        self._seconds = seconds
        self._child = Child(
            command or (sys.executable, "-m", "serving.engine.xgrammar_check", str(model), str(seconds)),
            seconds=seconds * _PATIENCE,
            start_seconds=_START_SECONDS,
            most_bytes=2 * _GROWTH * most_bytes,  # once more for what JSON escapes
        )
        self._known = _Remembered()  # the structural tag → what engines read
        self._problems = _Remembered()
        self._running: dict[str, asyncio.Task[str]] = {}

    async def start(self) -> None:
        await self._child.start()

    async def stop(self) -> None:
        await self._child.stop()

    async def compiled(self, node: Node, field: str, most_bytes: int) -> Grammar:
        """The grammar for an engine. Raises `BadField` that says what in `field` cannot be compiled.

        Also `Overloaded` where too many wait for the child, `RuntimeError` where it does not start.
        """
        try:
            tag = _within(structural_tag(node), field, most_bytes)
            if problem := self._problems.get(tag):
                raise ValueError(problem)
            text = self._known.get(tag) or await self._asked(tag, most_bytes)
        except ValueError as error:
            raise BadField(field, str(error)) from None
        return Grammar("structural_tag", text)

    async def _asked(self, tag: str, most_bytes: int) -> str:
        """Ask once for all who wait, and to the end though they leave: a child that is left alone has to be killed."""
        if tag not in self._running:
            task = self._running[tag] = asyncio.create_task(self._ask(tag, most_bytes))
            task.add_done_callback(lambda done: (self._running.pop(tag), done.cancelled() or done.exception()))
        return await asyncio.shield(self._running[tag])

    async def _ask(self, tag: str, most_bytes: int) -> str:
        sure = True
        try:
            answer = await self._child.ask({"tag": tag, "most": _GROWTH * most_bytes})
        except TooSlow as slow:
            answer = {"problem": f"takes more than {self._seconds:g} s to compile"}
            sure = slow.sure
        except Died:
            answer, sure = {"problem": "is too complex: compiling it takes too much memory"}, False
        if "problem" in answer:
            if sure:  # else it may be the machine
                self._problems.add(tag, answer["problem"])
            raise ValueError(answer["problem"])
        self._known.add(tag, answer["text"])
        return str(answer["text"])


# guidance

_TRIAL_STEPS = 24
_ANY_BYTE = (1 << 256) - 1
# Of what llguidance allows a step by default: an engine's step must not wait for one request's lexer.
_LIMITS = LLParserLimits(initial_lexer_fuel=500_000, step_lexer_fuel=100_000)


class Guidance:
    """For engines whose `grammar_backend` is guidance. Needs no tokenizer and no process of its own."""

    def __init__(self) -> None:
        self._known = _Remembered()  # the text of a grammar → its problem

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def compiled(self, node: Node, field: str, most_bytes: int) -> Grammar:
        """The grammar for an engine. Raises `BadField` that says what in `field` cannot be compiled."""
        text = _within(lark(node), field, most_bytes)
        plain = lark(node, specials=False)
        problem = self._known.get(plain)
        if problem is None:
            problem = await asyncio.to_thread(_problem, plain)  # a millisecond, or a second
            self._known.add(plain, problem)
        if problem:
            raise BadField(field, problem)
        return Grammar("grammar", text)


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
