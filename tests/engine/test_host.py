"""The host: whom it lets in, what it believes, what it counts. The other ends are played byte by byte."""

from __future__ import annotations

import asyncio
import random
from array import array
from types import SimpleNamespace

import msgspec
import pytest

from serving.core import FinishReason, Output, Sampling
from serving.engine import host as host_module
from serving.engine import messages
from serving.engine.link import HELLO_BYTES, MAX_FRAME, proof
from tests.engine.bench import SECRET, Bench, framed, request, submit, until

# the handshake


async def test_the_handshake(bench: Bench) -> None:
    peer, other = await bench.peer(), await bench.peer()
    assert peer.challenge.version == messages.VERSION
    assert len(peer.challenge.nonce) == 32
    assert peer.challenge.nonce != other.challenge.nonce
    assert bench.host.gauges()["fronts"] == 0
    peer.send(messages.Hello("f", proof(SECRET, peer.challenge.nonce)))
    assert await peer.read(messages.Welcome) == messages.Welcome("e", "m", 16, 100, 512, 8, 256, "cpu")
    assert (await peer.read(messages.Step)).report == messages.Report(1, 0, 0, 100, 0, 0, 0.0)
    assert bench.host.gauges()["fronts"] == 1


async def test_who_does_not_prove_the_secret_learns_nothing(bench: Bench) -> None:
    good, other = await bench.link(), await bench.peer()
    for hello in (
        lambda nonce: messages.Hello("f", proof(b"guess", nonce)),
        lambda nonce: messages.Hello("f", proof(SECRET, other.challenge.nonce)),  # for another connection
        lambda nonce: messages.Hello("f", b""),
        lambda nonce: messages.Hello("f", proof(SECRET, nonce), messages.VERSION + 1),
        lambda nonce: submit(1),
        lambda nonce: messages.Abort([0]),
        lambda nonce: messages.AskReport(),
    ):
        peer = await bench.peer()
        peer.send(hello(peer.challenge.nonce))
        assert await peer.dropped() == b""
    assert bench.core.requests == {}
    await bench.still_serves(good)


async def test_who_says_nothing_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "HELLO_SECONDS", 0.05)
    silent, halfway = await bench.peer(), await bench.peer()
    halfway.write(b"\x40\x00\x00\x00half a hell")
    trusted = await bench.trusted_peer()
    assert await silent.dropped() == await halfway.dropped() == b""
    trusted.send(messages.AskReport())
    await trusted.read(messages.Step)


async def test_a_stranger_may_not_send_much(bench: Bench) -> None:
    peer = await bench.peer()
    peer.write((HELLO_BYTES + 1).to_bytes(4, "little"))  # the length alone is enough
    assert await peer.dropped() == b""
    trusted = await bench.trusted_peer()
    trusted.send(submit(1, *range(HELLO_BYTES)))
    await until(lambda: bench.host.live == 1)
    trusted.write((MAX_FRAME + 1).to_bytes(4, "little"))
    await trusted.dropped()
    await until(lambda: bench.host.live == 0)


# what it believes


def _hello_twice() -> bytes:
    return framed(messages.encode(messages.Hello("f", b"")))


@pytest.mark.parametrize(
    "said",
    [
        framed(b""),
        framed(b"\xc1"),
        framed(b"\x00garbage"),
        framed(b"\x91" * 3000 + b"\x00"),
        b"\xff\xff\xff\xff",
        _hello_twice(),
        framed(messages.encode(submit(1))),  # the slot is in use
        framed(messages.encode(messages.Rejected(1, "no"))),  # the wrong way round
        framed(msgspec.msgpack.encode([3, 2, b"\1\0\0", [4], "t", 0])),  # three quarters of a token
        framed(msgspec.msgpack.encode([3, "2", b"\1\0\0\0", [4], "t", 0])),
        framed(msgspec.msgpack.encode([3, 2, b"\1\0\0\0", ["4"], "t", 0])),
        framed(msgspec.msgpack.encode([3, 2])),
        framed(msgspec.msgpack.encode([4, [None]])),
        framed(msgspec.msgpack.encode([99])),
        framed(msgspec.msgpack.encode({"slot": 1})),
    ],
)
async def test_malformed_messages_drop_that_peer_and_its_requests_only(bench: Bench, said: bytes) -> None:
    good, bad = await bench.link(), await bench.trusted_peer()
    async with good.generate(request(8)):
        bad.send(submit(1, 9))
        await until(lambda: bench.host.live == 2)
        bad.write(said)
        await bad.dropped()
        await until(lambda: bench.host.live == 1)
        assert bench.core.aborted == [bench.core.named(9)]
        await bench.still_serves(good)


async def test_noise_from_strangers(bench: Bench) -> None:
    good, rng = await bench.link(), random.Random(0)
    for _ in range(60):
        peer, noise = await bench.peer(), rng.randbytes(rng.randint(1, 60))
        peer.write(framed(noise) if rng.random() < 0.7 else b"\x00\x00\x00\x7f" + noise)
        assert await peer.dropped() == b""
    await bench.still_serves(good)


async def test_changed_bytes_from_fronts(bench: Bench) -> None:
    """Good messages with bytes changed, cut where it pleases: whatever happens to that front, the others go on."""
    good, rng = await bench.link(), random.Random(2)
    for number in range(150):
        peer = await bench.trusted_peer()
        talk = bytearray(
            b"".join(
                framed(messages.encode(message))
                for message in (submit(1), submit(2, 7, 7), messages.Abort([1]), messages.AskReport(), submit(3))
            )
        )
        for _ in range(rng.randint(0, 4)):
            talk[rng.randrange(len(talk))] = rng.randrange(256)
        at = 0
        while at < len(talk):
            upto = at + rng.randint(1, 40)
            peer.write(bytes(talk[at:upto]))
            await asyncio.sleep(0)
            at = upto
        if number % 10 == 0:
            await bench.still_serves(good)
        peer.writer.close()
    await until(lambda: bench.host.gauges()["fronts"] == 1)
    assert bench.host.live == 0
    assert sorted(bench.core.aborted) == sorted(bench.core.requests)
    await bench.still_serves(good)


async def test_a_front_that_breaks_off_in_a_frame(bench: Bench) -> None:
    good, bad = await bench.link(), await bench.trusted_peer()
    bad.send(submit(1, 9))
    bad.write(framed(messages.encode(submit(2)))[:-1])
    await until(lambda: bench.host.live == 1)
    bad.writer.close()
    await until(lambda: bench.host.live == 0)
    assert len(bench.core.requests) == 1
    await bench.still_serves(good)


async def test_the_host_reads_frames_cut_at_any_byte(bench: Bench) -> None:
    """The hello and three messages, cut in two at every place, each cut on a connection of its own."""
    spoken = [submit(1, 5), submit(2, *range(100)), messages.Abort([1])]
    length = len(framed(messages.encode(messages.Hello("peer", b"p" * 32))))
    total = length + sum(len(framed(messages.encode(message))) for message in spoken)
    for cut in range(total):
        peer = await bench.peer()
        said = b"".join(
            framed(messages.encode(message))
            for message in (messages.Hello("peer", proof(SECRET, peer.challenge.nonce)), *spoken)
        )
        assert len(said) == total
        bench.core.requests.clear()
        bench.core.aborted.clear()
        peer.write(said[:cut])
        await asyncio.sleep(0.001)
        peer.write(said[cut:])
        await until(lambda: bench.core.aborted)
        (first, kept) = bench.core.requests
        assert bench.core.aborted == [first]
        assert array("i", bench.core.requests[kept].prompt).tolist() == list(range(100))
        await peer.close()
        await until(lambda: bench.host.live == 0)


async def test_many_messages_in_one_piece(bench: Bench) -> None:
    peer = await bench.trusted_peer()
    peer.write(b"".join(framed(messages.encode(submit(slot, slot))) for slot in range(500)))
    await until(lambda: bench.host.live == 500)
    assert [array("i", message.prompt)[0] for message in bench.core.requests.values()] == list(range(500))


# requests and reports


async def test_two_fronts_may_use_the_same_slot(bench: Bench) -> None:
    one, two = await bench.trusted_peer(), await bench.trusted_peer()
    one.send(submit(1, 11))
    two.send(submit(1, 22))
    await until(lambda: bench.host.live == 2)
    bench.core.step([(bench.core.named(11), 5), (bench.core.named(22), 6)], [])
    assert (await one.read(messages.Step)).tokens == [5]
    assert (await two.read(messages.Step)).tokens == [6]
    one.send(messages.Abort([1]))
    await until(lambda: bench.host.live == 1)
    assert bench.core.aborted == [bench.core.named(11)]
    one.send(submit(1, 33))  # a slot that is free again may be used again
    await until(lambda: bench.host.live == 2)


async def test_one_step_is_one_frame_for_each_front(bench: Bench) -> None:
    peer, idle = await bench.trusted_peer(), await bench.trusted_peer()
    for slot in range(3):
        peer.send(submit(slot, slot))
    await until(lambda: bench.host.live == 3)
    named = bench.core.named
    bench.core.step([(named(0), 7), (named(1), 8)], [(named(2), Output([9], FinishReason.STOP))])
    step = await peer.read(messages.Step)
    assert (step.slots, step.tokens) == ([0, 1], [7, 8])
    assert (step.output_slots, step.outputs) == ([2], [Output([9], FinishReason.STOP)])
    assert step.report.live == 2
    quiet = await idle.read(messages.Step)
    assert (quiet.slots, quiet.output_slots, quiet.report.live) == ([], [], 2)  # the state is everybody's


async def test_what_was_in_flight_when_it_was_aborted_goes_nowhere(bench: Bench) -> None:
    peer = await bench.trusted_peer()
    peer.send(submit(1, 9))
    await until(lambda: bench.host.live == 1)
    peer.send(messages.Abort([1, 1, 77]))  # twice, and one that never was
    await until(lambda: bench.host.live == 0)
    name = bench.core.named(9)
    bench.core.step([(name, 5)], [(name, Output([6], FinishReason.ABORT)), ("never was", Output([1]))])
    step = await peer.read(messages.Step)
    assert (step.slots, step.output_slots) == ([], [])
    assert bench.core.aborted == [name]
    peer.send(messages.Abort([1]))  # after the end
    peer.send(messages.AskReport())
    await peer.read(messages.Step)
    assert bench.core.aborted == [name]


async def test_reports_have_no_gaps_on_any_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, questions and heartbeats mixed; each front's numbers are its own."""
    monkeypatch.setattr(host_module, "HEARTBEAT_SECONDS", 0.01)
    bench, rng = Bench(), random.Random(3)
    await bench.start()
    peers, numbers = [], []
    for _ in range(3):
        peers.append(await bench.trusted_peer())
        numbers.append(1)
        for _ in range(30):
            match rng.choice(["step", "ask", "wait"]):
                case "step":
                    bench.core.step([], [])
                case "ask":
                    rng.choice(peers).send(messages.AskReport())
                case "wait":
                    await asyncio.sleep(0.005)
        for place, peer in enumerate(peers):
            for _ in range(10):
                step = await peer.read(messages.Step)
                numbers[place] += 1
                assert step.report.number == numbers[place]
    await bench.stop()


async def test_a_report_counts_what_this_front_sent_and_what_everybody_runs(bench: Bench) -> None:
    one, two = await bench.trusted_peer(), await bench.trusted_peer()
    one.send(submit(1))
    one.send(submit(2, 666))  # refused, and counted all the same: its front waits to see it counted
    two.send(submit(1))
    await until(lambda: bench.host.live == 2)
    assert (await one.read(messages.Rejected)) == messages.Rejected(2, "not that one")
    bench.core.state.running, bench.core.state.waiting, bench.core.state.free_blocks = 1, 1, 90
    bench.core.step([], [])
    mine, theirs = (await one.read(messages.Step)).report, (await two.read(messages.Step)).report
    assert (mine.received, theirs.received) == (2, 1)
    assert mine.live == theirs.live == 2
    assert (mine.running, mine.waiting, mine.free_blocks) == (1, 1, 90)
    gauges = bench.host.gauges()
    assert (gauges["running"], gauges["free_blocks"], gauges["total_blocks"], gauges["fronts"]) == (1, 90, 100, 2)


async def test_a_stuck_core_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that the test moves: only time with work and no step counts, beyond three of the longest steps."""
    now = 0.0
    monkeypatch.setattr(host_module, "time", SimpleNamespace(monotonic=lambda: now))
    bench.core.step([], [])  # the host's clock is this one from now on
    peer = await bench.trusted_peer()
    now += 1000.0
    assert bench.host.stalled_for() == 0  # nothing to do
    peer.send(submit(1, 9))
    await until(lambda: bench.host.live == 1)
    now += 59.0
    assert bench.host.stalled_for() == 0
    now += 2.0
    assert bench.host.stalled_for() == pytest.approx(1.0)
    bench.core.step([(bench.core.named(9), 1)], [])  # it was only slow: 61 s
    assert bench.host.stalled_for() == 0
    now += 180.0
    assert bench.host.stalled_for() == 0
    now += 4.0
    assert bench.host.stalled_for() == pytest.approx(1.0)
    peer.send(messages.Abort([1]))
    await until(lambda: bench.host.live == 0)
    assert bench.host.stalled_for() == 0


async def test_a_submission_in_a_busy_time_does_not_reset_the_stall_clock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(host_module, "time", SimpleNamespace(monotonic=lambda: now))
    bench.core.step([], [])  # the host's clock is this one from now on
    peer = await bench.trusted_peer()
    peer.send(submit(1))
    await until(lambda: bench.host.live == 1)
    now += 50.0
    peer.send(submit(2))
    await until(lambda: bench.host.live == 2)
    now += 20.0
    assert bench.host.stalled_for() == pytest.approx(10.0)


async def test_the_idle_time_before_a_step_is_not_a_long_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of a request that was aborted may come late; the pause until then is nobody's step."""
    now = 0.0
    monkeypatch.setattr(host_module, "time", SimpleNamespace(monotonic=lambda: now))
    bench.core.step([], [])  # the host's clock is this one from now on
    peer = await bench.trusted_peer()
    now += 1000.0
    bench.core.step([], [])
    peer.send(submit(1))
    await until(lambda: bench.host.live == 1)
    now += 61.0
    assert bench.host.stalled_for() == pytest.approx(1.0)


async def test_the_core_s_death_is_told(bench: Bench) -> None:
    assert not bench.dead
    bench.core.die()
    assert bench.dead


async def test_stopping_with_requests_inside(bench: Bench) -> None:
    peer = await bench.trusted_peer()
    peer.send(submit(1, 9))
    await until(lambda: bench.host.live == 1)
    await bench.host.stop()
    await peer.dropped()
    assert bench.core.aborted == [bench.core.named(9)]
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", bench.port)


async def test_sampling_of_the_wrong_kind_never_reaches_the_core(bench: Bench) -> None:
    peer = await bench.trusted_peer()
    fields = msgspec.to_builtins(Sampling(max_tokens=4, temperature=0.5))
    fields[1] = "hot"
    peer.write(framed(msgspec.msgpack.encode([3, 1, b"\1\0\0\0", fields, "t", 0])))
    await peer.dropped()
    assert bench.core.requests == {}
