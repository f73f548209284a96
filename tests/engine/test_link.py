"""The link, both ends, over real sockets and a core that a test plays by hand."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from serving.core import FinishReason, Output, Sampling
from serving.engine import host as host_module
from serving.engine import messages
from serving.engine.base import TokenStream
from serving.engine.link import EngineLink
from serving.errors import EngineLost, EngineRefused
from tests.engine.bench import SECRET, Bench, Peer, framed, request, until


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


# a front before an engine that does not keep to the rules


WELCOME = messages.Welcome("e", "m", 16, 100, 512, 8, 256)


def report(number: int) -> messages.Report:
    return messages.Report(number, 0, 0, 100, 0, 0, 0.0)


@asynccontextmanager
async def engine(play: Callable[[Peer], None]) -> AsyncGenerator[tuple[int, list[Peer]]]:
    """A listener that answers each connection as `play` says; its port and the connections."""
    peers: list[Peer] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(peer := Peer(reader, writer))
        play(peer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], peers
    finally:
        server.close()
        for peer in peers:
            await peer.close()
        await asyncio.sleep(0)


async def connect(port: int, lost: list[EngineLink] | None = None, timeout: float = 2) -> EngineLink:
    on_lost = (lost if lost is not None else []).append
    return await EngineLink.connect(
        "127.0.0.1", port, timeout, front="f", secret=SECRET, on_report=lambda _: None, on_lost=on_lost
    )


def polite(peer: Peer) -> None:
    peer.send(messages.Challenge(b"n" * 32))
    peer.send(WELCOME)
    peer.send(messages.Step(report(1)))


async def test_an_engine_of_another_version_is_left_alone() -> None:
    async with engine(lambda peer: peer.send(messages.Challenge(b"n" * 32, messages.VERSION + 1))) as (port, peers):
        with pytest.raises(EngineLost):
            await connect(port)
        assert await peers[0].dropped() == b""  # not even a hello


async def test_an_engine_that_says_nothing_is_given_up() -> None:
    async with engine(lambda peer: None) as (port, peers):
        with pytest.raises(EngineLost):
            await connect(port, timeout=0.05)
        assert await peers[0].dropped() == b""


async def test_nobody_listens() -> None:
    async with engine(polite) as (port, _):
        pass
    with pytest.raises(EngineLost, match=str(port)):
        await connect(port)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        framed(b"\x00garbage"),
        framed(messages.encode(messages.Abort([1]))),  # the wrong way round
        framed(messages.encode(messages.Step(report(2), [0], [1, 2]))),  # columns of unequal length
        framed(messages.encode(messages.Step(report(2), [0, 0], [1]))),
        framed(messages.encode(messages.Challenge(b"n" * 32, messages.VERSION + 1))),
        framed(b"\x91" * 3000 + b"\x00"),  # deeper than a parser likes
    ],
    ids=["too long", "noise", "wrong way", "short slots", "short tokens", "version", "deep"],
)
async def test_a_malformed_frame_loses_the_engine(said: bytes) -> None:
    lost: list[EngineLink] = []
    async with engine(polite) as (port, peers):
        link = await connect(port, lost)
        with pytest.raises(EngineLost):
            async with link.generate(request()) as stream:
                peers[0].write(said)
                async for _ in stream:
                    pass
        await until(lambda: lost)
        assert lost == [link]


async def test_a_step_before_the_welcome_loses_the_engine() -> None:
    async with engine(lambda peer: peer.send(messages.Step(report(1)))) as (port, _):
        with pytest.raises(EngineLost):
            await connect(port)


async def test_the_front_reads_frames_cut_at_any_byte() -> None:
    """The whole conversation, cut in two at every place, each cut on a connection of its own."""
    spoken = b"".join(
        framed(messages.encode(message))
        for message in (
            messages.Challenge(b"n" * 32),
            WELCOME,
            messages.Step(report(1)),
            messages.Step(report(2), output_slots=[0], outputs=[Output([5], cached_tokens=0)]),
            messages.Step(report(3), [0], [6]),
            messages.Step(report(4), output_slots=[0], outputs=[Output([7], FinishReason.STOP)]),
        )
    )
    first = spoken.index(framed(messages.encode(messages.Step(report(1)))))  # until then there is no request

    async def say(peer: Peer, cut: int) -> None:
        for part in (spoken[: min(cut, first)], spoken[min(cut, first) : first]):
            peer.write(part)
            await peer.writer.drain()
            await asyncio.sleep(0.001)

    async with engine(lambda peer: None) as (port, peers):
        for cut in range(len(spoken)):
            connecting = asyncio.create_task(connect(port))
            await until(lambda: len(peers) == cut + 1)  # noqa: B023
            peer = peers[cut]
            await say(peer, cut)
            link = await connecting
            async with link.generate(request()) as stream:
                peer.write(spoken[first : max(first, cut)])
                await asyncio.sleep(0.001)
                peer.write(spoken[max(first, cut) :])
                assert [output.tokens async for batch in stream for output in batch] == [[5], [6], [7]]
            assert link.view is not None
            assert link.view.reports == 4
            link.abort()


async def test_noise_never_hangs_a_front() -> None:
    """Good frames with bytes changed: each stream ends, with what came or with `EngineLost`."""
    rng = random.Random(1)
    async with engine(polite) as (port, peers):
        for number in itertools.count():
            if number == 150:
                break
            link = await connect(port)
            good = framed(messages.encode(messages.Step(report(2), [0], [3], [0], [Output([4], FinishReason.STOP)])))
            noise = bytearray(good * 2)
            for _ in range(rng.randint(1, 6)):
                noise[rng.randrange(len(noise))] = rng.randrange(256)
            try:
                async with asyncio.timeout(3), link.generate(request()) as stream:
                    peers[number].write(bytes(noise))
                    peers[number].writer.close()
                    async for _ in stream:
                        pass
            except EngineLost:
                pass
            link.abort()


async def test_only_what_still_runs_is_aborted(bench: Bench) -> None:
    link = await bench.link()
    with pytest.raises(EngineRefused):
        async with link.generate(request(666)) as stream:
            await anext(stream)
    async with link.generate(request(1)) as stream:
        await until(lambda: bench.core.requests)
        bench.core.step([], [(bench.core.named(1), Output([1], FinishReason.STOP))])
        await anext(stream)
    async with link.generate(request(2)):
        await until(lambda: len(bench.core.requests) == 2)
    await until(lambda: bench.core.aborted)
    assert bench.core.aborted == [bench.core.named(2)]


async def test_a_finished_request_stays_finished_when_the_link_breaks(bench: Bench) -> None:
    link = await bench.link()
    async with link.generate(request()) as stream:
        await until(lambda: bench.core.requests)
        (name,) = bench.core.requests
        bench.core.step([], [(name, Output([1], FinishReason.STOP))])
        await until(lambda: stream.ended)
        link.abort()
        await until(lambda: bench.lost)
        assert [output.tokens async for batch in stream for output in batch] == [[1]]


async def test_what_came_before_the_link_broke_is_still_read(bench: Bench) -> None:
    link = await bench.link()
    async with link.generate(request()) as stream:
        await until(lambda: bench.core.requests)
        (name,) = bench.core.requests
        bench.core.step([(name, 1)], [])
        await until(lambda: link.view and link.view.reports == 2)
        link.abort()
        await until(lambda: bench.lost)
        assert [output.tokens for output in await anext(stream)] == [[1]]
        with pytest.raises(EngineLost):
            await anext(stream)


async def test_a_reader_that_is_cancelled_loses_nothing(bench: Bench) -> None:
    link = await bench.link()
    async with link.generate(request()) as stream:
        await until(lambda: bench.core.requests)
        (name,) = bench.core.requests
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(stream)
        bench.core.step([(name, 1)], [])
        assert [output.tokens for output in await anext(stream)] == [[1]]


async def test_the_view_is_current_when_a_report_is_told() -> None:
    seen: list[tuple[int, int]] = []

    def on_report(link: EngineLink) -> None:
        assert link.view is not None
        seen.append((link.view.reports, link.view.free_blocks))

    async with engine(polite) as (port, peers):
        link = await EngineLink.connect(
            "127.0.0.1", port, 2, front="f", secret=SECRET, on_report=on_report, on_lost=lambda _: None
        )
        peers[0].send(messages.Step(messages.Report(2, 3, 4, 55, 6, 7, 0.5)))
        await until(lambda: len(seen) == 2)
        assert seen == [(1, 100), (2, 55)]
        assert link.view is not None
        assert (link.view.running, link.view.waiting, link.view.live, link.view.received) == (3, 4, 6, 7)
        link.abort()


async def test_prompt_and_sampling_arrive_whole(bench: Bench) -> None:
    link = await bench.link()
    asked = request(0, 1, 2**31 - 1)
    asked.sampling = Sampling(
        max_tokens=9, temperature=0.25, seed=2**63 - 1, min_tokens=2, logprobs=0, stop_token_ids=(4, 5)
    )
    asked.tenant, asked.priority = "who", -3
    async with link.generate(asked):
        await until(lambda: bench.core.requests)
    (message,) = bench.core.requests.values()
    assert memoryview(message.prompt).cast("i").tolist() == asked.prompt
    assert (message.sampling, message.tenant, message.priority) == (asked.sampling, "who", -3)


# the stream by itself


def test_a_token_taken_at_once_is_not_queued_and_nothing_overtakes() -> None:
    taken: list[int] = []
    take = True

    def on_token(token: int) -> bool:
        if take:
            taken.append(token)
        return take

    stream = TokenStream()
    stream.on_token = on_token
    stream.feed_token(1)
    take = False
    stream.feed_token(2)  # not taken: queued
    take = True
    stream.feed_token(3)  # behind one that waits: queued too
    assert taken == [1]
    assert [output.tokens for output in stream._outputs] == [[2], [3]]


def test_the_first_output_is_told_once() -> None:
    told: list[int] = []
    stream = TokenStream()
    stream.on_first_output = lambda: told.append(1)
    stream.feed(Output([1]))
    stream.feed(Output([2]))
    assert told == [1]


async def test_a_reader_that_fails_on_a_token_fails_alone() -> None:
    def broken(token: int) -> bool:
        raise ZeroDivisionError

    stream = TokenStream()
    stream.on_token = broken
    stream.feed_token(1)
    with pytest.raises(ZeroDivisionError):
        await anext(stream)
    assert not stream.ended  # so that leaving it aborts it
