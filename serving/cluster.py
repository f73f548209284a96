"""Where engines announce themselves: the key-value store of Ray's control plane (GCS).

Only announcements live there, never load: a front learns everything else from the engine itself.
Losing the store stops discovery, not serving.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from ray.experimental import internal_kv

from serving.pool.directory import EngineAddress

_NAMESPACE = b"serving"


class RayDirectory:
    """The directory of one deployment. `deployment` keeps several on one cluster apart."""

    def __init__(self, deployment: str) -> None:
        self._prefix = f"{deployment}/engine/".encode()

    def _key(self, address: EngineAddress) -> bytes:
        return self._prefix + address.engine.encode()

    async def announce(self, address: EngineAddress) -> None:
        value = msgspec.msgpack.encode(address)
        await asyncio.to_thread(internal_kv._internal_kv_put, self._key(address), value, namespace=_NAMESPACE)

    async def forget(self, address: EngineAddress) -> None:
        await asyncio.to_thread(internal_kv._internal_kv_del, self._key(address), namespace=_NAMESPACE)

    async def engines(self) -> list[EngineAddress]:
        return await asyncio.to_thread(self._read)

    def _read(self) -> list[EngineAddress]:
        keys = internal_kv._internal_kv_list(self._prefix, namespace=_NAMESPACE)
        if not keys:
            return []
        gcs: Any = internal_kv.internal_kv_get_gcs_client()  # type: ignore[no-untyped-call]
        values = gcs.internal_kv_multi_get(keys, _NAMESPACE)
        return [msgspec.msgpack.decode(value, type=EngineAddress) for value in values.values()]
