from __future__ import annotations

import random

from serving.core import EngineView, Request, Sampling
from serving.scheduler.ledger import Lease, Ledger, Load


def view(engine: str = "a", **state: int) -> EngineView:
    sizes = {"block_size": 16, "total_blocks": 100, "max_model_len": 512, "max_num_seqs": 4, "max_batched_tokens": 64}
    return EngineView(engine, "m", **(sizes | {"free_blocks": 100} | state))


def request(tokens: int) -> Request:
    return Request("r", "m", [1] * tokens, Sampling(max_tokens=4))


def test_a_lease_counts_from_the_moment_it_is_taken() -> None:
    ledger, engine = Ledger(), view()
    assert ledger.load(engine) == Load(live=0, free_blocks=100, prefill_tokens=0)
    lease = ledger.take(engine, request(20))
    assert ledger.load(engine) == Load(live=1, free_blocks=98, prefill_tokens=20)
    ledger.give_back(lease)
    assert ledger.load(engine) == Load(live=0, free_blocks=100, prefill_tokens=0)
    assert ledger.total == 0


def test_blocks_hold_the_prompt_and_one_token() -> None:
    ledger = Ledger()
    assert [ledger.take(view(), request(tokens)).blocks for tokens in (1, 15, 16, 31, 32)] == [1, 1, 2, 2, 3]


def test_what_the_engine_has_counted_is_not_counted_twice() -> None:
    ledger, engine = Ledger(), view(received=0)
    leases = [ledger.take(engine, request(16)) for _ in range(3)]
    leases[0].number, leases[1].number = 1, 2  # the third is not submitted yet
    assert ledger.load(engine).live == 3
    engine.received, engine.live, engine.free_blocks = 1, 1, 98
    assert ledger.load(engine) == Load(live=3, free_blocks=94, prefill_tokens=48)
    engine.received, engine.live, engine.free_blocks = 2, 2, 96
    assert ledger.load(engine) == Load(live=3, free_blocks=94, prefill_tokens=48)


def test_a_first_token_ends_the_prefill() -> None:
    ledger, engine = Ledger(), view()
    lease = ledger.take(engine, request(20))
    ledger.take(engine, request(30))
    lease.start()
    assert ledger.load(engine).prefill_tokens == 30


def test_engines_are_told_apart() -> None:
    ledger = Ledger()
    ledger.take(view("a"), request(20))
    assert ledger.load(view("b")).live == 0
    assert ledger.load(view("a")).live == 1


def test_giving_back_twice_is_once() -> None:
    ledger, engine = Ledger(), view()
    one, _ = ledger.take(engine, request(1)), ledger.take(engine, request(1))
    ledger.give_back(one)
    ledger.give_back(one)
    assert ledger.total == 1


def test_leases_sum_to_the_load() -> None:
    """Against the obvious: all leases in one list, added up anew each time."""
    rng = random.Random(1)
    ledger = Ledger()
    views = {name: view(name) for name in "abc"}
    held: list[Lease] = []
    submitted = dict.fromkeys("abc", 0)
    for _ in range(3000):
        engine = views[rng.choice("abc")]
        mine = [lease for lease in held if lease.engine == engine.engine]
        match rng.randint(0, 5):
            case 0 | 1:
                held.append(ledger.take(engine, request(rng.randint(1, 90))))
            case 2 if held:
                ledger.give_back(held.pop(rng.randrange(len(held))))
            case 3 if mine:
                lease = rng.choice(mine)
                if lease.number is None:
                    submitted[engine.engine] += 1
                    lease.number = submitted[engine.engine]
            case 4 if mine:
                rng.choice(mine).start()
            case 5:
                engine.received = rng.randint(engine.received, submitted[engine.engine])
                engine.live, engine.free_blocks = rng.randint(0, 9), rng.randint(0, 100)
        assert ledger.total == len(held)
        for name, each in views.items():
            leases = [lease for lease in held if lease.engine == name]
            unseen = [lease for lease in leases if lease.number is None or lease.number > each.received]
            assert ledger.load(each) == Load(
                each.live + len(unseen),
                each.free_blocks - sum(lease.blocks for lease in unseen),
                sum(lease.prompt_tokens for lease in leases if not lease.started),
            )
    for lease in held:
        ledger.give_back(lease)
    assert ledger._leases == {}
