"""Admit, wait for a turn, choose an engine and reserve its pages in one step. The only async file here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from serving.core import Request
from serving.engine.base import TokenStream
from serving.engine.link import EngineLink
from serving.errors import DeadlineExceeded, ModelLoading
from serving.pool.pool import Pool
from serving.scheduler import placement
from serving.scheduler.ledger import Lease, Ledger
from serving.scheduler.queue import Queue
from serving.settings import SchedulerSettings


class Scheduler:
    """Feeds the engines of one model from one queue."""

    def __init__(self, settings: SchedulerSettings, pool: Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._queue = Queue(settings)
        self._ledger = Ledger()
        self._dispatching = False  # soon
        self._seconds_per_request = 1.0  # smoothed time between two requests that end
        self._last_end = time.monotonic()
        pool.on_change = self.dispatch

    @property
    def ready(self) -> bool:
        return self._pool.ready

    @property
    def max_model_len(self) -> int:
        """Context in tokens that every engine of the model has; 0 while there is none."""
        return min((view.max_model_len for view in self._pool.views()), default=0)

    @property
    def device(self) -> str:
        """What the model's engines compute on; empty while there is none."""
        return next((view.device for view in self._pool.views()), "")

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that hold a lease."""
        return self._ledger.total

    @property
    def engines(self) -> int:
        return len(self._pool.links)

    @asynccontextmanager
    async def generate(self, request: Request) -> AsyncGenerator[TokenStream]:
        """Wait for a turn and run `request`; leaving the context gives everything back.

        Raises `ModelLoading` when no engine is there, `Overloaded` when the queue is full and
        `DeadlineExceeded` when its time is up, queued or running.
        """
        try:
            async with asyncio.timeout_at(_loop_time(request.deadline)) as limit:
                link, lease = await self._turn(request)
                request.started = time.monotonic()
                try:
                    async with link.generate(request) as stream:
                        lease.number = link.submitted
                        stream.on_first_output = lease.start
                        yield stream
                finally:
                    self._ledger.give_back(lease)
                    self._ended()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the request's deadline has passed", self._retry_after()) from error

    async def _turn(self, request: Request) -> tuple[EngineLink, Lease]:
        if not self._pool.ready:
            raise ModelLoading(f"Model {request.model} is currently loading", retry_after=5.0)
        if self._dispatching and self._queue.refuses(request):
            self.dispatch()  # who is about to leave the queue takes nobody's place
        waiting = self._queue.join(request, self._retry_after())
        try:
            self._dispatch_soon()
            return await waiting.turn
        except BaseException:
            if waiting.turn.done() and not waiting.turn.cancelled() and waiting.turn.exception() is None:
                _, lease = waiting.turn.result()  # its turn came in the moment it left
                self._ledger.give_back(lease)
                self.dispatch()
            raise
        finally:
            self._queue.leave(waiting)

    def _dispatch_soon(self) -> None:
        """Dispatch once for all that this turn of the loop brings: a burst reaches an idle engine as one batch.

        While engines run, what comes would wait for a step to end anyway; gathering it for a moment keeps
        requests that came together in one step, where else some would hold up the others' decode.
        """
        if not self._dispatching:
            self._dispatching = True
            loop = asyncio.get_running_loop()
            if any(view.running for view in self._pool.views()):
                loop.call_later(self._settings.gather_seconds, self.dispatch)
            else:
                loop.call_soon(self.dispatch)

    def dispatch(self) -> None:
        """Give every engine what it has room for. Runs after each report; never awaits, so nobody herds."""
        self._dispatching = False
        while waiting := self._queue.head():
            if waiting.turn.done():  # cancelled, and not yet out of the queue
                self._queue.leave(waiting)
                continue
            if not self._pool.ready:
                waiting.turn.set_exception(ModelLoading("the last engine of the model went away", retry_after=5.0))
                self._queue.leave(waiting)
                continue
            view = placement.choose(self._pool.views(), self._ledger, waiting.request, self._settings.steps_ahead)
            if view is None:
                return
            lease = self._ledger.take(view, waiting.request)
            self._queue.leave(waiting)
            waiting.turn.set_result((self._pool.links[view.engine], lease))

    def _ended(self) -> None:
        now = time.monotonic()
        self._seconds_per_request += 0.1 * (min(now - self._last_end, 60.0) - self._seconds_per_request)
        self._last_end = now
        self.dispatch()

    def _retry_after(self) -> float:
        """Seconds until the queue will have moved up by its own length, at the pace of late."""
        return max(1.0, len(self._queue) * self._seconds_per_request)


def _loop_time(deadline: float) -> float | None:
    """A deadline on `time.monotonic()`'s clock on the running loop's."""
    if deadline == float("inf"):
        return None
    return asyncio.get_running_loop().time() + deadline - time.monotonic()
