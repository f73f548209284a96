"""The engines of one model, as one front sees them: a link to each, opened and dropped as they come and go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.core import EngineView
from serving.engine.link import EngineLink
from serving.errors import EngineLost
from serving.pool.directory import Directory, EngineAddress

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 10.0  # reports come every second: a link this quiet is broken
FORGET_SECONDS = 30.0  # an announcement that has not changed for so long is of a dead engine
RETRY_SECONDS = 2.0


class Pool:
    """The links of one model. `on_change` is called after every report and every loss."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.links: dict[str, EngineLink] = {}
        self.on_change: Callable[[], None] = lambda: None

    def views(self) -> list[EngineView]:
        return [link.view for link in self.links.values() if link.view is not None]

    @property
    def ready(self) -> bool:
        return bool(self.links)

    def add(self, engine: str, link: EngineLink) -> None:
        self.links[engine] = link
        log.info("engine %s of %s has joined", engine, self.model)
        self.on_change()

    def reported(self, link: EngineLink) -> None:
        self.on_change()

    def lost(self, link: EngineLink) -> None:
        for engine, known in list(self.links.items()):
            if known is link:
                del self.links[engine]
                log.warning("engine %s of %s is lost", engine, self.model)
        self.on_change()


@dataclass(slots=True)
class _Sighting:
    """When an announcement last changed, on this front's own clock: no clocks are compared."""

    beat: int
    since: float = field(default_factory=time.monotonic)
    retry_at: float = 0.0


class Watcher:
    """Keeps the pools of a front in step with the directory."""

    def __init__(self, front: str, secret: bytes, directory: Directory, pools: dict[str, Pool]) -> None:
        self._front = front
        self._secret = secret
        self._directory = directory
        self._pools = pools
        self._sightings: dict[str, _Sighting] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Watch until cancelled. A directory that cannot be read is tried again: links live on without it."""
        try:
            while True:
                try:
                    await self._look()
                except Exception as error:
                    log.warning("cannot read the engine directory, trying again: %r", error)
                self._drop_silent()
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            for task in self._connecting.values():
                task.cancel()
            for pool in self._pools.values():
                for link in list(pool.links.values()):
                    link.abort()

    async def _look(self) -> None:
        addresses = await self._directory.engines()
        now = time.monotonic()
        for address in addresses:
            pool = self._pools.get(address.model)
            if pool is None or address.engine in pool.links or address.engine in self._connecting:
                continue
            sighting = self._sightings.get(address.engine)
            if sighting is None or sighting.beat != address.beat:
                retry_at = sighting.retry_at if sighting else 0.0
                sighting = self._sightings[address.engine] = _Sighting(address.beat, now, retry_at)
            if now - sighting.since > FORGET_SECONDS:
                await self._directory.forget(address)
            elif now >= sighting.retry_at:
                sighting.retry_at = now + RETRY_SECONDS
                self._connecting[address.engine] = asyncio.create_task(self._connect(pool, address))
        announced = {address.engine for address in addresses}
        for engine in self._sightings.keys() - announced:
            del self._sightings[engine]

    async def _connect(self, pool: Pool, address: EngineAddress) -> None:
        try:
            link = await EngineLink.connect(
                address.host,
                address.port,
                CONNECT_SECONDS,
                front=self._front,
                secret=self._secret,
                on_report=pool.reported,
                on_lost=pool.lost,
            )
            if link.view is None or link.view.engine != address.engine:
                link.abort()  # another engine took the port of one that is gone
            elif link.transport is not None:  # else it broke as it came: nobody would tell us again
                pool.add(address.engine, link)
        except EngineLost as error:
            log.info("engine %s cannot be reached yet: %s", address.engine, error)
        finally:
            del self._connecting[address.engine]

    def _drop_silent(self) -> None:
        now = asyncio.get_running_loop().time()
        for pool in self._pools.values():
            for engine, link in list(pool.links.items()):
                if now - link.last_heard > SILENCE_SECONDS:
                    log.warning("engine %s has been silent for %.0f s", engine, SILENCE_SECONDS)
                    link.abort()
