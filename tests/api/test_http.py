"""Reading a body, noticing that the client is gone, answering once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serving.api import http
from serving.api.edge import DIRECT, RAW_SEND
from serving.api.http import ClientGone, Reply, heartbeat, read_body, seconds_header, until_disconnect
from serving.errors import BadField, BadSyntax, TooLarge
from serving.settings import LimitSettings

LIMITS = LimitSettings(body_bytes=2000, body_seconds=0.05)
DISCONNECT = {"type": "http.disconnect"}


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Client:
    """Sends these messages and then nothing more, until it is told to go."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.left = list(messages)
        self.gone = asyncio.Event()

    async def receive(self) -> Any:
        if self.left:
            return self.left.pop(0)
        await self.gone.wait()
        return DISCONNECT


# --- the body -----------------------------------------------------------------------------------------------------


async def test_a_body_in_parts() -> None:
    client = Client(part(b"a"), part(b""), {"type": "http.request", "more_body": True}, part(b"b", more=False))
    assert await read_body(client.receive, {}, LIMITS) == b"ab"


async def test_a_body_of_the_largest_size() -> None:
    client = Client(part(b"a" * 1000), part(b"b" * 1000, more=False))
    assert len(await read_body(client.receive, {b"content-length": "2000"}, LIMITS)) == 2000


async def test_too_large_by_its_header_is_not_read() -> None:
    client = Client(part(b"a", more=False))
    with pytest.raises(TooLarge, match="2001 bytes"):
        await read_body(client.receive, {b"content-length": "2001"}, LIMITS)
    assert client.left


@pytest.mark.parametrize(
    "declared", [{}, {b"content-length": "5"}, {b"content-length": "-1"}, {b"content-length": "x"}]
)
async def test_too_large_in_truth(declared: dict[bytes, str]) -> None:
    client = Client(part(b"a" * 1500), part(b"a" * 501), part(b"", more=False))
    with pytest.raises(TooLarge):
        await read_body(client.receive, declared, LIMITS)
    assert len(client.left) == 1  # and no more was read


async def test_too_slow() -> None:
    with pytest.raises(BadSyntax, match=r"within 0\.05 seconds"):
        await read_body(Client(part(b"a")).receive, {}, LIMITS)


async def test_gone_while_reading() -> None:
    with pytest.raises(ClientGone):
        await read_body(Client(part(b"a"), DISCONNECT).receive, {}, LIMITS)


# --- the client ---------------------------------------------------------------------------------------------------


async def test_gone_while_running() -> None:
    client, cleaned = Client(part(b"late")), False
    asyncio.get_running_loop().call_later(0.01, client.gone.set)
    with pytest.raises(ClientGone):
        async with until_disconnect(client.receive):
            try:
                await asyncio.sleep(5)
            finally:
                cleaned = True
    assert cleaned
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # and it can go on


async def test_a_client_that_stays() -> None:
    client = Client()
    async with until_disconnect(client.receive):
        pass
    client.gone.set()
    await asyncio.sleep(0.01)  # what would cancel us has been called off


async def test_other_cancellations_are_not_the_clients() -> None:
    async def run() -> None:
        async with until_disconnect(Client().receive):
            await asyncio.sleep(5)

    task = asyncio.create_task(run())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        async with until_disconnect(Client().receive):
            raise ZeroDivisionError


async def test_gone_and_out_of_time_at_once() -> None:
    client = Client()
    loop = asyncio.get_running_loop()
    with pytest.raises((ClientGone, TimeoutError)):
        async with until_disconnect(client.receive), asyncio.timeout(0.01):
            loop.call_at(loop.time() + 0.01, client.gone.set)
            await asyncio.sleep(5)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


# --- the answer ---------------------------------------------------------------------------------------------------


async def test_an_answer_in_parts_goes_past_the_layers_between() -> None:
    layers: list[Any] = []
    server: list[Any] = []

    async def send(message: Any) -> None:
        layers.append(message)

    async def raw(message: Any) -> None:
        server.append(message)

    reply = Reply({"extensions": {RAW_SEND: raw}}, send, [(b"x-request-id", b"1")])
    assert not reply.started
    await reply.start(200, [(b"a", b"b")])
    assert reply.started
    await reply.write(b"1")
    await reply.finish(b"2")
    assert layers == [
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b"), (b"x-request-id", b"1")]},
        {"type": "http.response.body", "body": b"2", "more_body": False},
    ]
    assert server == [{"type": "http.response.body", "body": b"1", "more_body": True}]


async def test_a_whole_answer_says_its_length() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Reply({}, send, []).whole(404, b"four")
    start, body = sent
    assert start["status"] == 404
    assert start["headers"] == [(b"content-type", b"application/json"), (b"content-length", b"4")]
    assert body["body"] == b"four"


# --- silence ------------------------------------------------------------------------------------------------------

SILENCE = 15.0  # seconds after which a stream counts as silent
BEAT = {"type": "http.response.body", "body": b":\n\n", "more_body": True}
OPENED = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b"), (b"x-request-id", b"1")]}


class Clock:
    """Sleep ends when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._asked = 0.0
        self._sleeper: asyncio.Future[None] | None = None

    async def sleep(self, seconds: float) -> None:
        self._asked, self._sleeper = seconds, asyncio.get_running_loop().create_future()
        await self._sleeper

    async def tick(self) -> None:
        """Let the next sleeper wake, at its time."""
        while self._sleeper is None:
            await asyncio.sleep(0)
        sleeper, self._sleeper = self._sleeper, None
        self.seconds += self._asked
        if not sleeper.done():
            sleeper.set_result(None)
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(http, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": clock.sleep}))
    return clock


class Stream:
    """A reply, and what the server was given to send."""

    def __init__(self, **extensions: Any) -> None:
        self.sent: list[Any] = []
        self.reply = Reply({"extensions": extensions}, self._send, [(b"x-request-id", b"1")])

    async def _send(self, message: Any) -> None:
        await asyncio.sleep(0)
        self.sent.append(message)

    def beating(self) -> Any:
        return heartbeat(self.reply, SILENCE, lambda: [(b"a", b"b")])


async def test_a_silent_stream_says_so_each_time_that_it_has_been_silent_for_long(clock: Clock) -> None:
    stream = Stream()
    async with stream.beating():
        await stream.reply.start(200, [(b"a", b"b")])
        await stream.reply.write(b"token")
        for beats in range(1, 4):
            began = clock.seconds
            while stream.sent.count(BEAT) < beats:
                await clock.tick()
            assert SILENCE <= clock.seconds - began < SILENCE * 1.5
    assert stream.sent.count(OPENED) == 1


async def test_a_stream_that_has_not_begun_is_started(clock: Clock) -> None:
    stream = Stream()
    async with stream.beating():
        while not stream.sent:
            await clock.tick()
        assert stream.reply.started
        await stream.reply.start(500, [])  # comes too late to say anything else
        await stream.reply.write(b"token")
    assert stream.sent[:2] == [OPENED, BEAT]
    assert [message["type"] for message in stream.sent].count("http.response.start") == 1


@pytest.mark.parametrize("straight", [False, True], ids=["through the layers", "straight to the socket"])
async def test_a_stream_that_flows_is_not_interrupted(clock: Clock, straight: bool) -> None:
    writer = SimpleNamespace(writes=0)
    stream = Stream(**{DIRECT: writer})

    async def write() -> None:
        if straight:
            writer.writes += 1
        else:
            await stream.reply.write(b"token")

    async with stream.beating():
        await stream.reply.start(200, [])
        while clock.seconds < 10 * SILENCE:
            await write()
            await clock.tick()
            await clock.tick()
        assert BEAT not in stream.sent
        while BEAT not in stream.sent:  # and when it stops flowing
            await clock.tick()
        assert clock.seconds < 11.5 * SILENCE


async def test_nothing_is_said_after_the_end(clock: Clock) -> None:
    stream = Stream()
    async with stream.beating():
        await stream.reply.start(200, [])
        await clock.tick()
        await stream.reply.finish(b"done")
    sent = list(stream.sent)
    for _ in range(5):
        await clock.tick() if clock._sleeper is not None else await asyncio.sleep(0)
    assert stream.sent == sent
    assert len(asyncio.all_tasks()) == 1  # nobody watches any more


async def test_errors_and_cancellations_pass_a_heartbeat() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Stream().beating():
            raise ZeroDivisionError
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), Stream().beating():
            await asyncio.sleep(5)


# --- seconds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "seconds"), [(None, 600), ("5", 5), ("0.5", 0.5), ("1e9", 600), (" 7 ", 7)])
def test_seconds(value: str | None, seconds: float) -> None:
    headers = {} if value is None else {b"x-request-timeout": value}
    assert seconds_header(headers, "x-request-timeout", 600) == seconds


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "nan", "inf", "-inf", "1,5", "0x10", "5s", "1e999"])
def test_seconds_that_are_none(value: str) -> None:
    with pytest.raises(BadField) as caught:
        seconds_header({b"x-request-timeout": value}, "x-request-timeout", 600)
    assert caught.value.field == "x-request-timeout"
