"""Compiles structural tags as an engine would, in a process that may be killed: `serving.api.compiler` starts it.

    python -m serving.engine.xgrammar_check MODEL_DIRECTORY SECONDS PARENT_PROCESS

A line of JSON comes for each grammar, a line goes back; the first line says that it is ready, or why not.
xgrammar imports torch and may compile for minutes: the front does neither. A grammar that takes more than
SECONDS ends the process by SIGPROF. They are of this process's computing, so that a busy machine does not
make a grammar bad; a wall clock is its parent's business.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
from typing import Any, BinaryIO

_TRIAL_STEPS = 16
_MOST_MEMORY = 2 * 2**30  # bytes that all compiling may take, beyond what is loaded when it begins
_CACHE = 64 * 2**20
_PR_SET_PDEATHSIG = 1


def main(directory: str, seconds: float, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended first
        return
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print is no reply
    try:
        check = Check(directory)
        _bound_memory()
    except Exception as error:
        _reply(replies, {"failed": f"{type(error).__name__}: {error}"})
        return
    _reply(replies, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = {"text": check.compiled(request["tag"], request["most"])}
        except (ValueError, RuntimeError, MemoryError) as error:  # RuntimeError: what xgrammar raises
            answer = {"problem": _in_few_words(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(replies, answer)


class Check:
    """xgrammar with one model's vocabulary."""

    def __init__(self, directory: str) -> None:
        import torch
        import xgrammar
        from transformers import AutoTokenizer

        self._xgrammar: Any = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(AutoTokenizer.from_pretrained(directory))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=_CACHE)
        self._vocabulary = info.vocab_size
        self._mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
        self._bits = torch.arange(32, dtype=torch.int32)
        self.compiled('{"type": "structural_tag", "format": {"type": "any_text"}}', 1000)  # what is lazy is loaded

    def compiled(self, tag: str, most_bytes: int) -> str:
        """The tag as engines get it. Raises `ValueError` or `RuntimeError` where they could not follow it."""
        text = json.dumps(self._without_blanks(json.loads(tag)))
        if len(text) > most_bytes:
            raise ValueError(f"needs a grammar of {len(text)} bytes, at most {most_bytes} are allowed")
        self._try(self._xgrammar.GrammarMatcher(self._compiler.compile_structural_tag(text)))
        return text

    def _without_blanks(self, tag: Any) -> Any:
        """The tag with its JSON schemas as grammars: the format `json_schema` always allows white space."""
        if isinstance(tag, list):
            return [self._without_blanks(item) for item in tag]
        if not isinstance(tag, dict):
            return tag
        if tag.get("type") != "json_schema":
            return {key: self._without_blanks(value) for key, value in tag.items()}
        grammar = self._xgrammar.Grammar.from_json_schema(
            json.dumps(tag["json_schema"]), any_whitespace=False, separators=(", ", ": "), strict_mode=False
        )
        return {"type": "grammar", "grammar": str(grammar)}

    def _try(self, matcher: Any) -> None:
        """Take the first steps: some grammars compile at once and are slow to follow, or lead nowhere."""
        for step in range(_TRIAL_STEPS):
            self._mask.fill_(-1)
            matcher.fill_next_token_bitmask(self._mask)
            bits = (self._mask[0].unsqueeze(1) >> self._bits) & 1
            allowed = bits.flatten()[: self._vocabulary].nonzero().flatten()
            if not len(allowed):
                raise ValueError("allows no text that ends" if step else "allows no text at all")
            matcher.accept_token(int(allowed[(step * 7919) % len(allowed)]))
            if matcher.is_terminated():
                return


def _bound_memory() -> None:
    """What a grammar takes beyond this ends the process or is an error in it, not the machine's memory."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MOST_MEMORY, size + _MOST_MEMORY))


def _in_few_words(error: Exception) -> str:
    """xgrammar says when and where in its source it noticed."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^\[[\d:]+\] \S+?:\d+: (Check failed: )?", "", text).partition("\n")[0][:300]


def _reply(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
