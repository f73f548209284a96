"""Telling what a model thought from what it said, by its family's markers."""

from __future__ import annotations


class Thinking:
    """Splits a growing text into thought and said parts. The markers themselves are neither.

    Only a thought at the very beginning counts: a marker later on is what the model talks about. A
    prompt may have opened the thought already (`inside`).
    """

    def __init__(self, opening: str, closing: str, *, inside: bool) -> None:
        self._opening, self._closing = opening, closing
        self._inside = inside
        self._over = False
        self._saying = False  # something else than an empty line has been said
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """(thought, said), as far as they can be told by now."""
        if self._over:
            return "", self._said(text)
        text, self._held = self._held + text, ""
        if not self._inside:
            begun = text.lstrip()
            if len(begun) < len(self._opening) and self._opening.startswith(begun):
                self._held = text
                return "", ""
            if not begun.startswith(self._opening):
                self._over = self._saying = True
                return "", text
            self._inside, text = True, begun[len(self._opening) :]
        thought, closing, said = text.partition(self._closing)
        if closing:
            self._over = True
            return thought, self._said(said)
        keep = _suffix_like(text, self._closing)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def _said(self, text: str) -> str:
        """Empty lines between thought and answer are neither."""
        if not self._saying:
            text = text.lstrip("\n")
            self._saying = bool(text)
        return text

    def finish(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return (held, "") if self._inside and not self._over else ("", held)


def _suffix_like(text: str, marker: str) -> int:
    """Characters at the end of `text` that may become `marker`."""
    return next(
        (length for length in range(min(len(marker) - 1, len(text)), 0, -1) if marker.startswith(text[-length:])), 0
    )
