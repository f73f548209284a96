from __future__ import annotations

import pytest

from serving.core import EngineView, Request, Sampling
from serving.scheduler import placement
from serving.scheduler.ledger import Ledger, Load


def view(engine: str = "a", **state: int) -> EngineView:
    sizes = {"block_size": 16, "total_blocks": 100, "max_model_len": 512, "max_num_seqs": 4, "max_batched_tokens": 64}
    return EngineView(engine, "m", **(sizes | {"free_blocks": 100} | state))


def request(tokens: int = 10) -> Request:
    return Request("r", "m", [1] * tokens, Sampling(max_tokens=4))


@pytest.mark.parametrize(
    ("load", "tokens", "room"),
    [
        (Load(0, 0, 0), 500, True),  # nothing to do: always
        (Load(3, 100, 0), 10, True),
        (Load(4, 100, 0), 10, False),  # no seat
        (Load(1, 2, 0), 31, True),
        (Load(1, 2, 0), 32, False),  # no page for the first token
        (Load(1, 100, 127), 10, True),
        (Load(1, 100, 128), 10, False),  # two steps of prompts are there already
    ],
)
def test_who_has_room(load: Load, tokens: int, room: bool) -> None:
    assert placement.has_room(view(), load, request(tokens), steps_ahead=2) is room


def test_nobody_there_and_nobody_free() -> None:
    assert placement.choose([], Ledger(), request(), 2) is None
    assert placement.choose([view(live=4)], Ledger(), request(), 2) is None


def test_the_least_share_of_the_batch() -> None:
    small, large = view("small", live=1, max_num_seqs=4), view("large", live=3, max_num_seqs=100)
    assert placement.choose([small, large], Ledger(), request(), 2) is large


def test_prompts_to_prefill_weigh_as_batches() -> None:
    ledger, busy, free = Ledger(), view("busy", live=1), view("free", live=2)
    ledger.take(busy, request(64)).number = 0
    assert placement.choose([busy, free], ledger, request(), 2) is free


def test_pages_decide_among_equals() -> None:
    full, empty = view("full", live=1, free_blocks=10), view("empty", live=1, free_blocks=90)
    assert placement.choose([full, empty], Ledger(), request(), 2) is empty


def test_the_full_are_passed_over() -> None:
    full, busy = view("full", live=1, free_blocks=0), view("busy", live=3)
    assert placement.choose([full, busy], Ledger(), request(), 2) is busy
