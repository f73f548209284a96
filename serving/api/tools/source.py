"""Text that comes in pieces, read top down by generators that wait wherever the text at hand ends.

text    .....|.............|......
           mark            at
      given out    held     not read yet      (`held`: what is held of earlier pieces)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]

JSON = {"": re.compile(r'["{}\[\]]'), '"': re.compile(r'["\\]')}
PYTHON = {"": re.compile(r'["\'{}\[\]()]'), '"': JSON['"'], "'": re.compile(r"['\\]")}
_SOLID = re.compile(r"[^ \t\r\n]")


class NotACall(Exception):
    """What was read cannot become a call: what is held is text, and so is all up to the next opening."""


class Source:
    """Words to read with. Each goes on from where the one before it stopped."""

    def __init__(self) -> None:
        self.text, self.at, self.mark = "", 0, 0
        self.held: list[str] = []

    def add(self, text: str) -> None:
        if self.mark < self.at:
            self.held.append(self.text[self.mark : self.at])
        self.text = self.text[self.at :] + text
        self.at = self.mark = 0

    def drop(self) -> None:
        """Nobody is shown what is held."""
        self.held.clear()
        self.mark = self.at

    def peek(self) -> Steps[str]:
        """The next character that is not white space; it stays unread."""
        while not (found := _SOLID.search(self.text, self.at)):
            self.at = len(self.text)
            yield
        self.at = found.start()
        return found[0]

    def one_of(self, characters: str) -> Steps[str]:
        """Reads one of these characters, after white space. Raises `NotACall` if another comes."""
        char = yield from self.peek()
        if char not in characters:
            raise NotACall
        self.at += 1
        return char

    def literal(self, expected: str) -> Steps[None]:
        """Reads exactly this. Raises `NotACall` if anything else comes."""
        while (found := self.text[self.at : self.at + len(expected)]) != expected:
            if not expected.startswith(found):
                raise NotACall
            yield
        self.at += len(expected)

    def value(self, sink: Callable[[str], object], marks: dict[str, re.Pattern[str]] = JSON) -> Steps[None]:
        """Reads one string or bracketed value and hands it to `sink` in pieces.

        Of brackets only the depth is watched: a value that is not well-formed ends all the same.
        """
        depth, quote, at = 0, "", self.at
        while True:
            while match := marks[quote].search(self.text, at):
                at = match.end()
                char = match[0]
                if char == "\\":
                    at += 1
                    continue
                if quote:
                    quote = ""
                elif char in "\"'":
                    quote = char
                else:
                    depth += 1 if char in "{[(" else -1
                if not (depth or quote):
                    start, self.at = self.at, at
                    sink(self.text[start:at])
                    return
            start, self.at = self.at, len(self.text)
            if start < self.at:
                sink(self.text[start:])
            after_escape = max(0, at - self.at)
            yield
            at = after_escape
