"""A process that answers lines of JSON, one at a time, each within a time or it is killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson

from serving.errors import Overloaded

log = logging.getLogger(__name__)

_MOST_WAITING = 256


class TooSlow(Exception):
    """The answer took too long, and the process was killed; `sure` where it ended itself, by SIGPROF."""

    def __init__(self, sure: bool) -> None:
        super().__init__()
        self.sure = sure


class Died(Exception):
    """The process ended, or said what is no answer, instead of answering."""


class Child:
    """Started when it is first needed, and again when it is needed after it ended.

    `command` gets this process's id as its last argument, to die with it. Its first line is
    `{"ready": true}` or `{"failed": why}`; then every line it reads is answered by one.
    """

    def __init__(self, command: Sequence[str], *, seconds: float, start_seconds: float, most_bytes: int) -> None:
        self._command = command
        self._name = " ".join(command)[:100]
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._most_bytes = most_bytes
        self._turn = asyncio.Lock()  # fair: first come, first served
        self._waiting = 0
        self._process: Process | None = None

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer; its time counts from when the process has it.

        Raises `TooSlow`, `Died`, `RuntimeError` where no process can be started, `Overloaded` where too many wait.
        """
        if self._waiting >= _MOST_WAITING:
            raise Overloaded("too many grammars wait to be compiled", retry_after=self._seconds)
        self._waiting += 1
        try:
            async with self._turn:
                process = await self._running()
                return await self._said(process, self._seconds, orjson.dumps(question) + b"\n")
        finally:
            self._waiting -= 1

    async def start(self) -> None:
        """Start it before it is needed; what fails is logged, and tried again when it is needed."""
        try:
            async with self._turn:
                await self._running()
        except RuntimeError as error:
            log.error("%s", error)

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def _running(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        began = time.monotonic()
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command, str(os.getpid()), stdin=PIPE, stdout=PIPE, limit=self._most_bytes
            )
            first = await self._said(process, self._start_seconds)
        except (OSError, TooSlow, Died) as error:
            raise RuntimeError(f"{self._name} did not start: {type(error).__name__} {error}") from error
        if "ready" not in first:
            await self.stop()
            raise RuntimeError(f"{self._name} did not start: {first.get('failed')}")
        log.info("process %d is ready after %.1f s: %s", process.pid, time.monotonic() - began, self._name)
        return process

    async def _said(self, process: Process, seconds: float, question: bytes = b"") -> dict[str, Any]:
        """The next line. However this is left without one, the process is gone: its next line would be another's."""
        assert process.stdin is not None
        assert process.stdout is not None
        answer: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(question)
                await process.stdin.drain()
                answer = orjson.loads(await process.stdout.readline())
                return answer
        except TimeoutError:
            raise TooSlow(sure=False) from None
        except (OSError, ValueError) as error:  # ValueError: no JSON, or a line that is too long
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await process.wait()  # it is ending most likely; a signal would hide why
            raise (TooSlow(sure=True) if process.returncode == -signal.SIGPROF else Died()) from error
        finally:
            if answer is None:
                await self.stop()
