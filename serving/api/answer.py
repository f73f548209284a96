"""One choice of an answer, from engine outputs to what a dialect encodes: text, thoughts, calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from serving.api.dialect import Call, Delta, Message, Reasoning
from serving.api.reasoning import Thinking
from serving.api.text import Logprob, TextStream
from serving.api.tools.base import CallArguments, CallStart, Event, Parser, Text
from serving.core import FinishReason, Output
from serving.errors import EngineFault


@dataclass(frozen=True, slots=True)
class Part:
    """A delta, and the log probabilities of the tokens that it is made of, where the caller wants them."""

    delta: Delta
    logprobs: list[Logprob] | None


class Choice:
    """Reads the outputs of one request.

    A plain answer has one part for each token, empty ones too (half a character). Where a parser or a
    family's think markers stand between, parts are what they let through.
    """

    def __init__(
        self,
        text: TextStream,
        parser: Parser | None = None,
        thinking: Thinking | None = None,
        *,
        only_calls: bool = False,
    ) -> None:
        """`only_calls`: the grammar allows nothing else, so text is a call that was cut off before it had a name."""
        self.text = text
        self._only_calls = only_calls
        self._parser = parser
        self._thinking = thinking
        self.wants_logprobs = text.wants_logprobs
        self.pending: list[Logprob] = []  # of tokens that no part has carried yet

    @property
    def plain(self) -> bool:
        """Tokens may go straight from the engine's frame to the socket."""
        return self._parser is None and self._thinking is None and self.text.plain

    @property
    def finish(self) -> FinishReason | None:
        return self.text.finish

    def read(self, outputs: Iterable[Output]) -> list[Part]:
        """Raises `EngineFault` where the engine gave up."""
        parts: list[Part] = []
        for output in outputs:
            for piece in self.text.add(output):
                if piece.logprob is not None:
                    self.pending.append(piece.logprob)
                if self._parser is None and self._thinking is None:
                    parts.append(self._part(Text(piece.text)))
                elif piece.text:
                    parts += map(self._part, self._deltas(piece.text))
            if self.finish is not None:  # a stop string: the engine may have said more by now
                break
        if self.finish in (FinishReason.ABORT, FinishReason.ERROR):
            raise EngineFault("the engine could not finish this request")
        if self.finish is not None:
            parts += map(self._part, self._rest())
        return parts

    def take_pending(self) -> list[Logprob] | None:
        pending, self.pending = self.pending, []
        return pending if self.wants_logprobs else None

    def _part(self, delta: Delta) -> Part:
        return Part(delta, self.take_pending())

    def _deltas(self, text: str) -> list[Delta]:
        deltas: list[Delta] = []
        if self._thinking is not None:
            thought, text = self._thinking.feed(text)
            if thought:
                deltas.append(Reasoning(thought))
        return deltas + self._said(text)

    def _said(self, text: str) -> list[Delta]:
        if not text:
            return []
        return [Text(text)] if self._parser is None else self._wanted(self._parser.feed(text))

    def _wanted(self, events: list[Event]) -> list[Delta]:
        return [event for event in events if not (self._only_calls and isinstance(event, Text))]

    def _rest(self) -> list[Delta]:
        deltas: list[Delta] = []
        if self._thinking is not None:
            thought, said = self._thinking.finish()
            if thought:
                deltas.append(Reasoning(thought))
            deltas += self._said(said)
        if self._parser is not None:
            deltas += self._wanted(self._parser.finish())
        return deltas

    def message(self, parts: list[Part]) -> Message:
        """The whole choice, of all the parts that were read."""
        assert self.finish is not None
        calls: list[tuple[str, list[str]]] = []
        texts, thoughts, logprobs = [], [], []
        for part in parts:
            logprobs += part.logprobs or []
            match part.delta:
                case Text(text):
                    texts.append(text)
                case Reasoning(text):
                    thoughts.append(text)
                case CallStart(name):
                    calls.append((name, []))
                case CallArguments(fragment):
                    calls[-1][1].append(fragment)
        logprobs += self.take_pending() or []
        return Message(
            "".join(texts),
            "".join(thoughts),
            [Call(name, "".join(fragments)) for name, fragments in calls],
            logprobs if self.wants_logprobs else None,
            self.finish,
        )
