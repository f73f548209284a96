"""From token ids to the text a caller sees: detokenising, stop strings, log probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from serving.core import FinishReason, Output, TokenLogprobs
from serving.models.text import ModelText


@dataclass(slots=True)
class TokenText:
    """A token as the caller sees it in `logprobs`."""

    token: str
    logprob: float
    bytes: list[int]


@dataclass(slots=True)
class Logprob(TokenText):
    top: list[TokenText]


@dataclass(slots=True)
class Piece:
    """One token's worth of answer. `text` may be empty: half a character, or held back for a stop string."""

    text: str
    logprob: Logprob | None = None


class TextStream:
    """Turns the outputs of one request into pieces, one for each token.

    After the last output `finish` says why it ended and `completion_tokens` how many were generated.
    """

    def __init__(
        self,
        model: ModelText,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        logprobs: int | None = None,
        *,
        hidden: frozenset[int] | None = None,
    ) -> None:
        """`hidden`: the special tokens that are not shown. Default: all of them."""
        self._model = model
        self._hidden = hidden
        self._step = self._decoder()
        self._stops = StopStrings(stop) if stop else None
        self._min_tokens = min_tokens
        self._logprobs = logprobs
        self.finish: FinishReason | None = None
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.first_at = 0.0  # when the first token came, on `time.monotonic()`'s clock

    @property
    def wants_logprobs(self) -> bool:
        return self._logprobs is not None

    @property
    def plain(self) -> bool:
        """Nothing is asked of a token but its text: `add_plain` will do."""
        return self._stops is None and self._logprobs is None and self._hidden is None

    def _decoder(self) -> Callable[[Tokenizer, int], str | None]:
        return DecodeStream(skip_special_tokens=self._hidden is None).step

    def add_plain(self, token: int) -> str:
        self.completion_tokens += 1
        try:
            return self._step(self._model.tokenizer, token) or ""
        except Exception:  # tokenizers has no class of its own for it
            return self._start_anew(token)

    def _start_anew(self, token: int) -> str:
        """A model may spell, byte by byte, what is not UTF-8; the decoder then contradicts what it has given out."""
        self._step = self._decoder()
        shown = self._step(self._model.tokenizer, token)  # as at the start of a text: without its leading space
        return self._model.token_bytes(token).decode(errors="replace") if shown else ""

    def add(self, output: Output) -> list[Piece]:
        if output.cached_tokens is not None:
            self.cached_tokens = output.cached_tokens
        if not self.first_at:
            self.first_at = time.monotonic()
        pieces = []
        hidden = self._hidden
        if hidden is not None and output.finish is FinishReason.STOP and output.tokens:
            hidden |= {output.tokens[-1]}  # what ended the answer is no part of it
        for position, token in enumerate(output.tokens):
            if hidden is not None and token in hidden:
                self.completion_tokens += 1
                text, stopped = "", False
            else:
                text, stopped = self.add_plain(token), False
            if self._stops is not None and self.completion_tokens > self._min_tokens:
                text, stopped = self._stops.add(text)
            logprob = self._logprob(output.logprobs[position]) if output.logprobs is not None else None
            pieces.append(Piece(text, logprob))
            if stopped:
                self.finish = FinishReason.STOP_SEQUENCE
                return pieces
        if output.finish is not None:
            self.finish = output.finish
            if self._stops is not None and (held := self._stops.flush()):
                pieces.append(Piece(held))
        return pieces

    def _logprob(self, found: TokenLogprobs) -> Logprob:
        chosen, *best = [
            self._token(token, value) for token, value in zip(found.token_ids, found.logprobs, strict=True)
        ]
        return Logprob(chosen.token, chosen.logprob, chosen.bytes, best[: self._logprobs])

    def _token(self, token: int, logprob: float) -> TokenText:
        raw = self._model.token_bytes(token)
        return TokenText(raw.decode(errors="replace"), max(logprob, -9999.0), list(raw))


class StopStrings:
    """Finds the first stop string in a growing text, holding back only what may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops))
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string ended it."""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = self._suffix_that_may_grow(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _suffix_that_may_grow(self, text: str) -> int:
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            suffix = text[-length:]
            if any(stop.startswith(suffix) for stop in self._stops):
                return length
        return 0
