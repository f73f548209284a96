"""The waiting room of one model: bounded in requests and in prompt tokens, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from serving.core import Request
from serving.engine.link import EngineLink
from serving.errors import Overloaded
from serving.scheduler.ledger import Lease
from serving.settings import SchedulerSettings


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue. `turn` is set when it has its engine."""

    request: Request
    turn: asyncio.Future[tuple[EngineLink, Lease]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Queue:
    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._waiting: deque[Waiting] = deque()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, request: Request, retry_after: float) -> Waiting:
        """Raises `Overloaded` when the queue is full."""
        if reason := self.refuses(request):
            raise Overloaded(f"Model is overloaded: {reason}", retry_after)
        waiting = Waiting(request)
        self._waiting.append(waiting)
        self.tokens += len(request.prompt)
        return waiting

    def refuses(self, request: Request) -> str:
        """Why there is no room for it; empty where there is."""
        if len(self._waiting) >= self._settings.queue_requests:
            return "the queue is full"
        if self._waiting and self.tokens + len(request.prompt) > self._settings.queue_tokens:
            return "too many prompt tokens are queued"
        return ""

    def head(self) -> Waiting | None:
        return self._waiting[0] if self._waiting else None

    def leave(self, waiting: Waiting) -> None:
        """Take it out, wherever it stands. Does nothing when it is out already."""
        if self._waiting and self._waiting[0] is waiting:
            self._waiting.popleft()
        elif waiting in self._waiting:
            self._waiting.remove(waiting)
        else:
            return
        self.tokens -= len(waiting.request.prompt)
