from __future__ import annotations

import pytest

from serving.core import Request, Sampling
from serving.errors import Overloaded
from serving.scheduler.queue import Queue
from serving.settings import SchedulerSettings


def request(tokens: int = 10) -> Request:
    return Request("r", "m", [1] * tokens, Sampling(max_tokens=4))


async def test_first_come_first_served() -> None:
    queue = Queue(SchedulerSettings())
    assert queue.head() is None
    one, two, three = (queue.join(request(tokens), 1.0) for tokens in (1, 2, 3))
    assert (queue.head(), len(queue), queue.tokens) == (one, 3, 6)
    queue.leave(two)  # out of the middle
    assert (queue.head(), len(queue), queue.tokens) == (one, 2, 4)
    queue.leave(one)
    assert queue.head() is three
    for _ in range(2):  # and again does nothing
        queue.leave(one)
        queue.leave(three)
    assert (queue.head(), len(queue), queue.tokens) == (None, 0, 0)


async def test_bounded_in_requests() -> None:
    queue = Queue(SchedulerSettings(queue_requests=2))
    waiting = [queue.join(request(), 1.0) for _ in range(2)]
    with pytest.raises(Overloaded, match="full") as caught:
        queue.join(request(), 7.5)
    assert caught.value.retry_after == 7.5
    queue.leave(waiting[0])
    queue.join(request(), 1.0)


async def test_bounded_in_tokens() -> None:
    queue = Queue(SchedulerSettings(queue_tokens=50))
    queue.join(request(30), 1.0)
    queue.join(request(20), 1.0)
    with pytest.raises(Overloaded, match="prompt tokens"):
        queue.join(request(1), 1.0)
    assert queue.tokens == 50


async def test_alone_any_request_may_wait() -> None:
    queue = Queue(SchedulerSettings(queue_tokens=50))
    queue.join(request(1000), 1.0)
    with pytest.raises(Overloaded):
        queue.join(request(1), 1.0)
