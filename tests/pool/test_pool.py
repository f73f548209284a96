"""The watcher over a directory that a test edits and real link servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engine.host import CoreFacts, CoreState, Host
from serving.engine.link import EngineLink
from serving.pool import pool as pool_module
from serving.pool.directory import EngineAddress
from serving.pool.pool import Pool, Watcher

SECRET = b"secret"


class IdleCore:
    facts = CoreFacts(block_size=16, total_blocks=10, max_model_len=64, max_num_seqs=4, max_batched_tokens=64)

    def __init__(self) -> None:
        self.state = CoreState()

    def submit(self, *_: Any) -> None: ...

    def abort(self, *_: Any) -> None: ...

    def listen(self, *_: Any) -> None: ...


class HandDirectory:
    def __init__(self) -> None:
        self.addresses: dict[str, EngineAddress] = {}
        self.broken = False
        self.forgotten: list[str] = []

    async def engines(self) -> list[EngineAddress]:
        if self.broken:
            raise ConnectionError("the control plane is away")
        return list(self.addresses.values())

    async def forget(self, address: EngineAddress) -> None:
        self.addresses.pop(address.engine, None)
        self.forgotten.append(address.engine)


class Fleet:
    def __init__(self) -> None:
        self.directory = HandDirectory()
        self.pool = Pool("m")
        self.hosts: dict[str, Host] = {}
        self.watching: asyncio.Task[None]

    async def start(self, engine: str, port: int = 0) -> int:
        host = Host(IdleCore(), engine=engine, model="m", secret=SECRET, on_death=lambda: None)
        port = await host.start("127.0.0.1", port)
        self.hosts[engine] = host
        self.directory.addresses[engine] = EngineAddress(engine, "m", "127.0.0.1", port)
        return port

    async def linked(self, *engines: str) -> None:
        await until(lambda: set(self.pool.links) == set(engines))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    for name, seconds in (("WATCH_SECONDS", 0.01), ("RETRY_SECONDS", 0.02), ("FORGET_SECONDS", 0.3)):
        monkeypatch.setattr(pool_module, name, seconds)
    fleet = Fleet()
    fleet.watching = asyncio.create_task(Watcher("f", SECRET, fleet.directory, {"m": fleet.pool}).run())
    yield fleet
    fleet.watching.cancel()
    await asyncio.gather(fleet.watching, return_exceptions=True)
    for host in fleet.hosts.values():
        await host.stop()


async def test_engines_come_and_go(fleet: Fleet) -> None:
    assert not fleet.pool.ready
    await fleet.start("a")
    await fleet.start("b")
    await fleet.linked("a", "b")
    assert {view.engine for view in fleet.pool.views()} == {"a", "b"}
    await fleet.hosts["a"].stop()
    await fleet.linked("b")


async def test_a_restart_under_a_new_name_on_the_same_port(fleet: Fleet) -> None:
    port = await fleet.start("a")
    await fleet.linked("a")
    await fleet.hosts["a"].stop()
    await fleet.linked()
    await fleet.start("a2", port)  # the announcement of "a" still points here
    await fleet.linked("a2")
    await asyncio.sleep(0.1)
    assert set(fleet.pool.links) == {"a2"}


async def test_stale_announcements_are_removed(fleet: Fleet) -> None:
    fleet.directory.addresses["dead"] = EngineAddress("dead", "m", "127.0.0.1", 1)
    await until(lambda: not fleet.directory.addresses)


async def test_a_live_announcement_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that cannot be reached, by a clock that the test turns."""
    now = 0.0
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: now))
    directory = HandDirectory()
    watcher = Watcher("f", SECRET, directory, {"m": Pool("m")})
    for beat in range(20):
        directory.addresses["live"] = EngineAddress("live", "m", "127.0.0.1", 1, beat)
        await watcher._look()
        now += 0.9 * pool_module.FORGET_SECONDS
        await asyncio.gather(*watcher._connecting.values())
    assert directory.forgotten == []
    await watcher._look()
    assert directory.forgotten == []
    now += 0.2 * pool_module.FORGET_SECONDS
    await asyncio.gather(*watcher._connecting.values())
    await watcher._look()
    assert directory.forgotten == ["live"]


async def test_the_directory_may_be_away(fleet: Fleet) -> None:
    await fleet.start("a")
    await fleet.linked("a")
    fleet.directory.broken = True
    await asyncio.sleep(0.1)
    assert set(fleet.pool.links) == {"a"}
    fleet.directory.broken = False
    await fleet.start("b")
    await fleet.linked("a", "b")


async def test_a_silent_link_is_dropped_and_tried_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    await fleet.start("a")
    await fleet.linked("a")
    link = fleet.pool.links["a"]
    monkeypatch.setattr(pool_module, "SILENCE_SECONDS", 0.0)
    await until(lambda: fleet.pool.links.get("a") is not link)
    monkeypatch.setattr(pool_module, "SILENCE_SECONDS", 10.0)
    await fleet.linked("a")


async def test_other_models_are_not_ours(fleet: Fleet) -> None:
    await fleet.start("a")
    fleet.directory.addresses["x"] = EngineAddress("x", "other", "127.0.0.1", fleet.directory.addresses["a"].port)
    await fleet.linked("a")
    await asyncio.sleep(0.05)
    assert set(fleet.pool.links) == {"a"}


async def test_a_link_that_broke_as_it_came_is_not_kept(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, made = EngineLink.connect, 0

    async def broken_at_first(*arguments: Any, **options: Any) -> EngineLink:
        nonlocal made
        link, made = await connect(*arguments, **options), made + 1
        if made == 1:
            link.abort()
            await asyncio.sleep(0.01)
        return link

    monkeypatch.setattr(EngineLink, "connect", broken_at_first)
    await fleet.start("a")
    await fleet.linked("a")
    assert made == 2
    assert fleet.pool.links["a"].transport is not None


async def test_a_front_that_ends_leaves_no_connection(fleet: Fleet) -> None:
    """Neither a link nor one that is still being made, to an engine that says nothing."""
    come, gone = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        come.set()
        await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as mute:
        port = mute.sockets[0].getsockname()[1]
        fleet.directory.addresses["mute"] = EngineAddress("mute", "m", "127.0.0.1", port)
        await fleet.start("a")
        await fleet.linked("a")
        await come.wait()
        fleet.watching.cancel()
        await fleet.linked()
        await asyncio.wait_for(gone.wait(), 2)
    await until(lambda: fleet.hosts["a"].gauges()["fronts"] == 0)


async def test_an_engine_with_another_secret_is_not_ours(fleet: Fleet) -> None:
    stranger = Host(IdleCore(), engine="s", model="m", secret=b"other", on_death=lambda: None)
    fleet.hosts["s"] = stranger
    fleet.directory.addresses["s"] = EngineAddress("s", "m", "127.0.0.1", await stranger.start("127.0.0.1"))
    await fleet.start("a")
    await fleet.linked("a")
    await asyncio.sleep(0.05)
    assert set(fleet.pool.links) == {"a"}


async def test_whoever_waits_is_told_of_changes(fleet: Fleet) -> None:
    told: list[set[str]] = []
    fleet.pool.on_change = lambda: told.append(set(fleet.pool.links))
    await fleet.start("a")
    await fleet.linked("a")
    assert told[-1] == {"a"}
    joined = len(told)
    fleet.pool.reported(fleet.pool.links["a"])
    assert len(told) == joined + 1
    await fleet.hosts["a"].stop()
    await until(lambda: told[-1] == set())
