"""The link, both ends, over real sockets and a core that a test plays by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from serving.core import FinishReason, Output, Request, Sampling
from serving.engine import host as host_module
from serving.engine import messages
from serving.engine.host import CoreFacts, CoreState, Host
from serving.engine.link import EngineLink
from serving.errors import EngineLost, EngineRefused

SECRET = b"secret"


class HandCore:
    """An engine core whose steps a test makes."""

    facts = CoreFacts(block_size=16, total_blocks=100, max_model_len=512, max_num_seqs=8, max_batched_tokens=256)

    def __init__(self) -> None:
        self.state = CoreState()
        self.requests: dict[str, messages.Submit] = {}
        self.aborted: list[str] = []
        self.step: Callable[..., None]
        self.die: Callable[[], None]

    def submit(self, request_id: str, request: messages.Submit, prompt: list[int]) -> None:
        if prompt == [666]:
            raise ValueError("not that one")
        self.requests[request_id] = request

    def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    def listen(self, on_step: Any, on_death: Any) -> None:
        self.step, self.die = on_step, on_death


class Bench:
    def __init__(self) -> None:
        self.core = HandCore()
        self.dead = False
        self.host = Host(
            self.core,
            engine="e",
            model="m",
            secret=SECRET,
            send_limit=200_000,
            on_death=lambda: setattr(self, "dead", True),
        )
        self.links: list[EngineLink] = []
        self.lost: list[EngineLink] = []

    async def start(self) -> None:
        self.port = await self.host.start("127.0.0.1")

    async def link(self, secret: bytes = SECRET) -> EngineLink:
        link = await EngineLink.connect(
            "127.0.0.1", self.port, 2, front="f", secret=secret, on_report=lambda _: None, on_lost=self.lost.append
        )
        self.links.append(link)
        return link


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.start()
    yield bench
    for link in bench.links:
        link.abort()
    await bench.host.stop()


def request(*prompt: int) -> Request:
    return Request("r", "m", list(prompt or (1, 2, 3)), Sampling(max_tokens=4))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(3):
        while not condition():
            await asyncio.sleep(0.002)


async def test_tokens_reach_the_front_that_asked(bench: Bench) -> None:
    one, two = await bench.link(), await bench.link()
    async with one.generate(request(1)) as first, two.generate(request(2)) as second:
        await until(lambda: len(bench.core.requests) == 2)
        names = {message.prompt[0]: name for name, message in bench.core.requests.items()}
        bench.core.step([], [(names[1], Output([10], cached_tokens=0)), (names[2], Output([20], cached_tokens=0))])
        bench.core.step([(names[1], 11), (names[2], 21)], [])
        bench.core.step(
            [], [(names[1], Output([12], FinishReason.LENGTH)), (names[2], Output([22], FinishReason.STOP))]
        )
        for stream, tokens, finish in ((first, [10, 11, 12], "length"), (second, [20, 21, 22], "stop")):
            outputs = [output async for batch in stream for output in batch]
            assert [token for output in outputs for token in output.tokens] == tokens
            assert outputs[-1].finish == finish
    assert bench.core.aborted == []
    assert bench.host.live == 0


async def test_leaving_early_aborts(bench: Bench) -> None:
    link = await bench.link()
    async with link.generate(request()):
        await until(lambda: bench.host.live == 1)
    await until(lambda: bench.core.aborted)
    assert bench.core.aborted == list(bench.core.requests)
    assert bench.host.live == 0


async def test_reports_are_numbered_and_whole(bench: Bench) -> None:
    link = await bench.link()
    assert link.view is not None
    assert (link.view.total_blocks, link.view.max_model_len) == (100, 512)
    await until(lambda: link.view and link.view.reports == 1)
    bench.core.state.free_blocks = 42
    bench.core.step([], [])
    await until(lambda: link.view and link.view.reports == 2)
    assert link.view.free_blocks == 42


async def test_an_idle_engine_reports(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "HEARTBEAT_SECONDS", 0.02)
    other = Bench()
    await other.start()
    link = await other.link()
    await until(lambda: link.view and link.view.reports >= 3)
    link.abort()
    await other.host.stop()


async def test_what_the_core_will_not_run_is_refused(bench: Bench) -> None:
    link = await bench.link()
    with pytest.raises(EngineRefused, match="not that one"):
        async with link.generate(request(666)) as stream:
            await anext(stream)
    assert bench.host.live == 0


async def test_a_lost_engine_fails_its_requests(bench: Bench) -> None:
    link = await bench.link()
    with pytest.raises(EngineLost):
        async with link.generate(request()) as stream:
            await until(lambda: bench.host.live == 1)
            await bench.host.stop()
            await anext(stream)
    assert bench.lost == [link]
    with pytest.raises(EngineLost):
        async with link.generate(request()):
            pass


async def test_a_front_that_leaves_frees_its_requests(bench: Bench) -> None:
    leaving, staying = await bench.link(), await bench.link()
    async with staying.generate(request(1)):
        with pytest.raises(EngineLost):
            async with leaving.generate(request(2)) as stream:
                await until(lambda: bench.host.live == 2)
                leaving.abort()
                await anext(stream)
        await until(lambda: bench.host.live == 1)


async def test_a_wrong_secret_is_not_let_in(bench: Bench) -> None:
    with pytest.raises(EngineLost):
        await bench.link(secret=b"guess")
    assert bench.host.gauges()["fronts"] == 0


async def test_malformed_messages_drop_that_peer_only(bench: Bench) -> None:
    good, rng = await bench.link(), random.Random(0)
    good_frame = messages.encode(messages.Submit(1, b"\1\0\0\0", Sampling(max_tokens=1), "t"))
    garbage = [
        b"\xff\xff\xff\xff",  # a frame of 4 GiB
        b"\x03\x00\x00\x00abc",
        len(good_frame).to_bytes(4, "little") + good_frame,  # before the hello
        *(len(noise).to_bytes(4, "little") + noise for noise in (rng.randbytes(rng.randint(1, 60)) for _ in range(50))),
    ]
    for noise in garbage:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        writer.write(noise)
        async with asyncio.timeout(2):
            await reader.read()  # the challenge, then the end
        writer.close()
    trusted = await bench.link()
    trusted.transport.write(b"\x03\x00\x00\x00abc")  # type: ignore[union-attr]
    await until(lambda: trusted.transport is None)
    async with good.generate(request()):
        await until(lambda: bench.host.live == 1)


async def test_frames_may_be_cut_anywhere(bench: Bench) -> None:
    link = await bench.link()
    frame = messages.encode(messages.Submit(7, b"\1\0\0\0", Sampling(max_tokens=1), "t"))
    for byte in len(frame).to_bytes(4, "little") + frame:
        link.transport.write(bytes([byte]))  # type: ignore[union-attr]
        await asyncio.sleep(0)
    await until(lambda: bench.host.live == 1)


async def test_a_front_that_does_not_read_is_cut_off(bench: Bench) -> None:
    deaf, good = await bench.link(), await bench.link()
    deaf.transport.pause_reading()  # type: ignore[union-attr]
    async with good.generate(request(1)) as stream:
        await until(lambda: bench.host.live == 1)
        deaf_frame = messages.Submit(5, b"\2\0\0\0", Sampling(max_tokens=1), "t")
        deaf.send(deaf_frame)
        await until(lambda: bench.host.live == 2)
        mine, theirs = bench.core.requests
        async with asyncio.timeout(20):
            while bench.host.gauges()["fronts"] == 2:
                bench.core.step([(mine, 1)], [(theirs, Output([1] * 50_000))])
                await asyncio.sleep(0)
        assert bench.host.live == 1
        bench.core.step([], [(mine, Output([2], FinishReason.STOP))])
        outputs = [output async for batch in stream for output in batch]
        assert outputs[-1].finish == "stop"


async def test_a_stuck_core_is_noticed(bench: Bench) -> None:
    link = await bench.link()
    bench.host._stall_seconds = 0.02
    assert bench.host.stalled_for() == 0
    async with link.generate(request()):
        await until(lambda: bench.host.live == 1)
        await until(lambda: bench.host.stalled_for() > 0)
        bench.core.step([], [])
        assert bench.host.stalled_for() == 0


async def test_a_late_reader_gets_everything_in_order(bench: Bench) -> None:
    link = await bench.link()
    async with link.generate(request()) as stream:
        await until(lambda: bench.core.requests)
        (name,) = bench.core.requests
        for token in range(50):
            bench.core.step([(name, token)], [])
        await until(lambda: link.view and link.view.reports == 51)
        batch = await anext(stream)
        assert [output.tokens for output in batch] == [[token] for token in range(50)]
