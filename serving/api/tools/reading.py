"""What the parsers of all formats share: which of the text read is shown, and as what."""

from __future__ import annotations

import re
from collections.abc import Sequence

from serving.api.tools.base import CallArguments, CallStart, Event, Text, Tool
from serving.api.tools.source import NotACall, Source, Steps

NOT_BARE = re.compile(r"[^\w.:-]")


class Reading(Source):
    """A parser. A format says in `calls` what calls look like, as if all the text were there."""

    # What begins calls wherever it stands; its first character occurs in it once. Empty: calls stand at the start.
    opening = ""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()
        self._names = frozenset(tool.name for tool in tools)
        self._called = False
        self._between = True  # nothing but white space since the start, or since a call
        self._ending = False  # a call has its arguments, what encloses it is not closed
        self._events: list[Event] = []
        self._steps = self._answer()

    def feed(self, text: str) -> list[Event]:
        self.add(text)
        events = self._events = []
        next(self._steps)
        return events

    def finish(self) -> list[Event]:
        self._steps.close()
        rest = "".join(self.held) + self.text[self.mark :]
        if not rest or (self._called and (self._ending or rest.isspace())):
            return []
        return [Text(rest)]

    def calls(self) -> Steps[None]:
        """Reads what follows the opening. Raises `NotACall` where that is no call."""
        raise NotImplementedError

    def undecided(self) -> None:
        """A call may begin here: if the answer ends before it does, what is held is text."""
        self._ending = False

    def bare_name(self) -> Steps[str]:
        """Reads a tool's name that stands without quotes. Raises `NotACall` if no tool has it."""
        while not (found := NOT_BARE.search(self.text, self.at)):
            if not any(name.startswith(self.text[self.at :]) for name in self._names):
                raise NotACall
            yield
        name = self.text[self.at : found.start()]
        self.known(name)
        self.at = found.start()
        return name

    def known(self, name: str) -> None:
        """Raises `NotACall` if no tool has this name."""
        if name not in self._names:
            raise NotACall

    def start(self, name: str) -> None:
        """A call begins; what is held was its envelope."""
        self.drop()
        self._called = True
        self._events.append(CallStart(name))

    def arguments(self, fragment: str) -> None:
        self.mark = self.at
        self._events.append(CallArguments(fragment))

    def whole(self) -> None:
        """The call has all its arguments; what is read from here on closes its envelope."""
        self.drop()
        self._between = self._ending = True

    def _answer(self) -> Steps[None]:
        if not self.opening:
            yield from self._attempt()
        while True:
            yield from self._find_opening()
            yield from self._attempt()

    def _attempt(self) -> Steps[None]:
        try:
            yield from self.calls()
        except NotACall:
            held = "".join(self.held) + self.text[self.mark : self.at]
            self._between = self._between and (not held or held.isspace())
            self._show(self.at)
        self._ending = False

    def _find_opening(self) -> Steps[None]:
        opening = self.opening
        while not opening or (start := self.text.find(opening, self.at)) < 0:
            end = len(self.text)
            if opening and (last := self.text.rfind(opening[0], max(self.at, end - len(opening)))) >= 0:
                end = last if opening.startswith(self.text[last:]) else end
            self._show(end)
            yield
        self._show(start)
        self.at += len(opening)

    def _show(self, end: int) -> None:
        """Text up to here belongs to no call. White space between calls waits for what comes after it."""
        piece = self.text[self.mark : end]
        self.at = end
        if self._between and (not piece or piece.isspace()):
            return
        if shown := "".join(self.held) + piece:
            self._events.append(Text(shown))
        self.held.clear()
        self.mark, self._between = end, False
