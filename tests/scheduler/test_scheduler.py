"""The scheduler over a pool that a test plays by hand."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serving.core import EngineView, FinishReason, Output, Request, Sampling
from serving.engine.base import TokenStream
from serving.errors import DeadlineExceeded, EngineLost, ModelLoading, Overloaded
from serving.scheduler.scheduler import Scheduler
from serving.settings import SchedulerSettings


class HandLink:
    """An engine that takes everything and says what a test says."""

    def __init__(self, engine: str, **facts: int) -> None:
        sizes = {
            "block_size": 16,
            "total_blocks": 100,
            "max_model_len": 512,
            "max_num_seqs": 4,
            "max_batched_tokens": 64,
        }
        sizes |= facts
        self.view = EngineView(engine, "m", free_blocks=sizes["total_blocks"], **sizes)
        self.streams: list[tuple[Request, TokenStream]] = []
        self.submitted = 0
        self.lost = False

    @asynccontextmanager
    async def generate(self, request: Request) -> AsyncIterator[TokenStream]:
        if self.lost:
            raise EngineLost("closed")
        self.submitted += 1
        stream = TokenStream()
        self.streams.append((request, stream))
        try:
            yield stream
        finally:
            self.streams.remove((request, stream))


class HandPool:
    def __init__(self, *links: HandLink) -> None:
        self.links = {link.view.engine: link for link in links}
        self.on_change: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        return bool(self.links)

    def views(self) -> list[EngineView]:
        return [link.view for link in self.links.values()]

    def join(self, link: HandLink) -> None:
        self.links[link.view.engine] = link
        self.on_change()

    def lose(self, engine: str) -> None:
        link = self.links.pop(engine)
        link.lost = True
        for _, stream in link.streams:
            stream.fail(EngineLost("broke"))
        self.on_change()

    def report(self) -> None:
        """Every engine reports what it really holds."""
        for link in self.links.values():
            view = link.view
            view.received = link.submitted
            view.live = len(link.streams)
            view.free_blocks = view.total_blocks - sum(view.blocks_for(len(r.prompt) + 1) for r, _ in link.streams)
        self.on_change()


def request(tokens: int = 10, seconds: float = 60.0) -> Request:
    return Request("r", "m", [1] * tokens, Sampling(max_tokens=4), deadline=time.monotonic() + seconds)


class Runner:
    """Requests as tasks; a started one waits until it is told to finish."""

    def __init__(self, *links: HandLink, **settings: int) -> None:
        self.pool = HandPool(*links)
        self.scheduler = Scheduler(SchedulerSettings(**settings), self.pool)  # type: ignore[arg-type]
        self.started: list[Request] = []

    def ask(self, what: Request) -> asyncio.Task[None]:
        async def run() -> None:
            async with self.scheduler.generate(what) as stream:
                self.started.append(what)
                async for _ in stream:
                    pass

        return asyncio.create_task(run())

    def finish(self, what: Request) -> None:
        for link in self.pool.links.values():
            for known, stream in list(link.streams):
                if known is what:
                    stream.feed(Output([2], FinishReason.STOP))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_least_loaded_first() -> None:
    a, b = HandLink("a"), HandLink("b")
    runner = Runner(a, b)
    tasks = [runner.ask(request()) for _ in range(4)]
    await settle()
    assert (len(a.streams), len(b.streams)) == (2, 2)
    for known in list(runner.started):
        runner.finish(known)
    await asyncio.gather(*tasks)
    assert runner.scheduler.running == 0


async def test_an_engine_gets_no_more_than_its_next_steps_need() -> None:
    link = HandLink("a", max_num_seqs=100, max_batched_tokens=64)
    runner = Runner(link, steps_ahead=2)
    tasks = [runner.ask(request(40)) for _ in range(10)]
    await settle()
    assert len(link.streams) == 4  # the fourth begins below two steps of 64 tokens
    assert runner.scheduler.queued == 6
    link.streams[0][1].feed(Output([1], cached_tokens=0))  # one is prefilled: room for one more
    runner.pool.report()
    await settle()
    assert len(link.streams) == 5
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (runner.scheduler.running, runner.scheduler.queued) == (0, 0)


async def test_pages_and_seats_are_respected() -> None:
    small = HandLink("a", total_blocks=4, max_batched_tokens=10_000)
    runner = Runner(small)
    tasks = [runner.ask(request(20)) for _ in range(3)]  # two blocks each
    await settle()
    assert len(small.streams) == 2
    seats = HandLink("b", max_num_seqs=2, max_batched_tokens=10_000)
    other = Runner(seats)
    tasks += [other.ask(request()) for _ in range(3)]
    await settle()
    assert len(seats.streams) == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_a_report_has_counted_is_not_counted_twice() -> None:
    link = HandLink("a", max_num_seqs=2)
    runner = Runner(link)
    tasks = [runner.ask(request())]
    await settle()
    runner.pool.report()
    tasks += [runner.ask(request()) for _ in range(2)]
    await settle()
    assert (len(link.streams), runner.scheduler.queued) == (2, 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_first_come_first_served() -> None:
    link = HandLink("a", max_num_seqs=1)
    runner = Runner(link)
    wanted = [request() for _ in range(4)]
    tasks = [runner.ask(one) for one in wanted]
    for one in wanted:
        await settle()
        runner.finish(one)
        await settle()
        runner.pool.report()
    await asyncio.gather(*tasks)
    assert runner.started == wanted


async def test_the_queue_is_bounded() -> None:
    runner = Runner(HandLink("a", max_num_seqs=1), queue_requests=2, queue_tokens=50)
    tasks = [runner.ask(request()) for _ in range(3)]
    await settle()
    with pytest.raises(Overloaded) as caught:
        await runner.ask(request())
    assert caught.value.retry_after >= 1
    tasks.pop().cancel()
    await settle()
    with pytest.raises(Overloaded, match="prompt tokens"):
        await runner.ask(request(45))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert runner.scheduler.queued == 0


async def test_nobody_there() -> None:
    with pytest.raises(ModelLoading):
        await Runner().ask(request())


async def test_the_last_engine_leaves_while_requests_wait() -> None:
    runner = Runner(HandLink("a", max_num_seqs=1))
    running, waiting = runner.ask(request()), runner.ask(request())
    await settle()
    runner.pool.links.clear()
    runner.pool.on_change()
    with pytest.raises(ModelLoading):
        await waiting
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("seats", [0, 1], ids=["queued", "running"])
async def test_deadlines_hold_queued_and_running(seats: int) -> None:
    link = HandLink("a", max_num_seqs=1 + seats)
    runner = Runner(link)
    first = runner.ask(request())
    await settle()
    with pytest.raises(DeadlineExceeded):
        await runner.ask(request(seconds=0.05))
    await settle()
    assert (runner.scheduler.queued, len(link.streams)) == (0, 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert runner.scheduler.running == 0


async def test_a_deadline_that_has_passed() -> None:
    link = HandLink("a")
    runner = Runner(link)
    with pytest.raises(DeadlineExceeded):
        await runner.ask(request(seconds=-1))
    assert (runner.scheduler.running, runner.scheduler.queued, len(link.streams)) == (0, 0, 0)


@pytest.mark.parametrize("kept", [1, 2], ids=["alone", "with another behind"])
async def test_cancelled_in_the_moment_of_its_turn(kept: int) -> None:
    link = HandLink("a", max_num_seqs=1)
    runner = Runner(link)
    wanted = [request() for _ in range(kept + 1)]
    tasks = [runner.ask(one) for one in wanted]
    await settle()
    runner.pool.report()
    runner.finish(wanted[0])
    await tasks[0]
    assert runner.scheduler.running == 0
    runner.pool.report()  # the second has its turn now, and has not run since
    assert (runner.scheduler.running, len(link.streams)) == (1, 0)
    tasks[1].cancel()
    await settle()
    assert tasks[1].cancelled()
    assert runner.started == [wanted[0], *wanted[2:]]  # nobody had to wait for another report
    for one in wanted:
        runner.finish(one)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (runner.scheduler.running, len(link.streams)) == (0, 0)


async def test_cancelled_while_it_waits() -> None:
    runner = Runner(HandLink("a", max_num_seqs=1))
    tasks = [runner.ask(request()) for _ in range(3)]
    await settle()
    assert runner.scheduler.queued == 2
    tasks[1].cancel()
    await settle()
    assert (runner.scheduler.queued, runner.scheduler.running) == (1, 1)
    assert runner.scheduler._queue.tokens == 10
    tasks[0].cancel()
    await settle()
    assert (runner.scheduler.queued, runner.scheduler.running) == (0, 1)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_cancelled_in_the_moment_the_last_engine_leaves() -> None:
    runner = Runner(HandLink("a", max_num_seqs=1))
    tasks = [runner.ask(request()) for _ in range(3)]
    await settle()
    tasks[1].cancel()
    runner.pool.lose("a")
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in done] == [EngineLost, asyncio.CancelledError, ModelLoading]
    assert (runner.scheduler.running, runner.scheduler.queued) == (0, 0)


async def test_an_engine_that_is_lost_gives_everything_back() -> None:
    a, b = HandLink("a", max_num_seqs=2), HandLink("b", max_num_seqs=2)
    runner = Runner(a, b)
    tasks = [runner.ask(request()) for _ in range(5)]
    await settle()
    assert (len(a.streams), len(b.streams), runner.scheduler.queued) == (2, 2, 1)
    runner.pool.lose("a")
    await settle()
    assert [isinstance(task.exception(), EngineLost) for task in tasks if task.done()] == [True, True]
    assert (runner.scheduler.running, runner.scheduler.queued, runner.scheduler.engines) == (2, 1, 1)
    again = HandLink("a", max_num_seqs=2)
    runner.pool.join(again)
    await settle()
    assert len(again.streams) == 1  # what waited went to it at once
    for one in runner.started:
        runner.finish(one)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert runner.scheduler.running == 0


async def test_lost_in_the_moment_of_a_turn() -> None:
    link = HandLink("a", max_num_seqs=1)
    runner = Runner(link)
    tasks = [runner.ask(request()) for _ in range(2)]
    await settle()
    runner.pool.report()
    runner.finish(runner.started[0])
    await tasks[0]
    runner.pool.report()
    runner.pool.lose("a")
    with pytest.raises(EngineLost):
        await tasks[1]
    assert runner.scheduler.running == 0


async def test_the_context_is_what_every_engine_has() -> None:
    runner = Runner(HandLink("a", max_model_len=512), HandLink("b", max_model_len=256))
    assert runner.scheduler.max_model_len == 256
    assert Runner().scheduler.max_model_len == 0


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_leaks_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    links = [HandLink(name, total_blocks=rng.randint(8, 40), max_num_seqs=rng.randint(1, 5)) for name in "abc"]
    runner = Runner(*links, queue_requests=30)
    tasks: list[asyncio.Task[Any]] = []
    for _ in range(300):
        match rng.randint(0, 5):
            case 0 | 1:
                tasks.append(runner.ask(request(rng.randint(1, 90), seconds=rng.choice([0.001, 60]))))
            case 2 if tasks:
                rng.choice(tasks).cancel()
            case 3 if runner.started:
                runner.finish(rng.choice(runner.started))
            case 4:
                runner.pool.report()
            case 5 if rng.random() < 0.2:
                name = rng.choice("abc")
                if name in runner.pool.links:
                    runner.pool.lose(name)
                else:
                    links.append(HandLink(name, total_blocks=rng.randint(8, 40), max_num_seqs=rng.randint(1, 5)))
                    runner.pool.join(links[-1])
        if rng.random() < 0.7:
            await asyncio.sleep(0)
        assert runner.scheduler.running >= sum(len(link.streams) for link in links)
        for link in links:
            assert len(link.streams) <= max(1, link.view.max_num_seqs)
    for _ in range(500):
        for one in list(runner.started):
            runner.finish(one)
        runner.pool.report()
        await asyncio.sleep(0)
        if all(task.done() for task in tasks):
            break
    assert all(task.done() for task in tasks)
    assert (runner.scheduler.running, runner.scheduler.queued) == (0, 0)
    for task in tasks:
        if not task.cancelled():
            assert isinstance(task.exception(), DeadlineExceeded | Overloaded | EngineLost | ModelLoading | None)


async def test_a_burst_is_one_decision() -> None:
    """What arrives in one turn of the loop is sent in one go: an idle engine's next step takes it whole."""
    link = HandLink("a")
    runner = Runner(link)
    decisions = []
    dispatch = runner.scheduler.dispatch
    runner.scheduler.dispatch = lambda: (decisions.append(runner.scheduler.queued), dispatch())  # type: ignore[method-assign, assignment]
    tasks = [runner.ask(request()) for _ in range(5)]
    await settle()
    assert decisions[0] == 5
    assert runner.scheduler.running == 4
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_while_an_engine_runs_requests_gather() -> None:
    """A moment, or until the next report: what came together is placed together."""
    link = HandLink("a")
    link.view.running = 1
    runner = Runner(link, gather_seconds=0.05)
    first = runner.ask(request())
    await settle()
    assert (runner.scheduler.queued, link.submitted) == (1, 0)
    second = runner.ask(request())
    await settle()
    runner.scheduler.dispatch()  # a report
    await settle()
    assert (runner.scheduler.queued, link.submitted) == (0, 2)
    third = runner.ask(request())
    await asyncio.sleep(0.1)
    assert link.submitted == 3
    for task in (first, second, third):
        task.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)
