"""Where engines announce themselves. The Ray implementation is in `serving/cluster.py`."""

from __future__ import annotations

from typing import Protocol

import msgspec


class EngineAddress(msgspec.Struct, frozen=True):
    """One engine's announcement. `beat` changes while the engine lives, so a stale one can be told."""

    engine: str
    model: str
    host: str
    port: int
    beat: int = 0


class Directory(Protocol):
    async def engines(self) -> list[EngineAddress]:
        """All announcements, of all models."""
        ...

    async def forget(self, address: EngineAddress) -> None:
        """Remove the announcement of an engine that is gone."""
        ...
