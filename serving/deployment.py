"""The Ray Serve deployments, thin: Ray places them, reserves GPUs, restarts and rolls them."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from starlette.middleware import Middleware

from serving.admin import AdminServer
from serving.api.edge import Edge
from serving.app import build_front
from serving.cluster import RayDirectory
from serving.engine.host import Host
from serving.metrics.engine import EngineMetrics
from serving.models import catalogue
from serving.pool.directory import EngineAddress
from serving.settings import EngineSettings, Settings

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 2.0
UNBOUNDED = 100_000  # Serve's own queue must never be the one that refuses


@serve.ingress()
class _Front:
    """HTTP in and out. Imports neither vLLM nor torch."""

    def __init__(self, settings: Settings, name: str, secret: bytes, *_engines: Any) -> None:
        _log_to_stderr(settings)
        replica = serve.get_replica_context().replica_id.unique_id
        self._app = build_front(settings, RayDirectory(name), replica, secret)
        _calm_gc()

    def __serve_build_asgi_app__(self) -> Any:
        return self._app


class _Engine:
    """One vLLM engine and its link. Serve starts and watches it; requests never pass through Serve."""

    async def __init__(self, settings: Settings, model_index: int, name: str, secret: bytes) -> None:  # type: ignore[misc]
        _log_to_stderr(settings)
        context = serve.get_replica_context()
        model = settings.models[model_index]
        engine_settings = settings.engine_of(model)
        _bind_cpus(engine_settings, context.rank.rank)
        # The core dies with the thread that started it, so this one stays for life.
        self._thread = ThreadPoolExecutor(1, "engine-core")
        loop = asyncio.get_running_loop()
        self._core = await loop.run_in_executor(self._thread, _start_core, engine_settings, model)
        own_cluster = settings.ray.address is None  # one machine: the link is nobody else's
        address = engine_settings.host or ("127.0.0.1" if own_cluster else _node_address())
        self._host = Host(
            self._core,
            engine=context.replica_id.unique_id,
            model=catalogue.name_of(model),
            secret=secret,
            stall_seconds=engine_settings.stall_seconds,
            on_death=_die,
        )
        port = await self._host.start(address)
        self._address = EngineAddress(self._host.engine, self._host.model, address, port)
        self._directory = RayDirectory(name)
        self._admin = await AdminServer(settings.admin, EngineMetrics(self._host).registry).start()
        self._announcing = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        beat = 0
        while True:
            beat += 1
            address = EngineAddress(
                self._address.engine, self._address.model, self._address.host, self._address.port, beat
            )
            try:
                await self._directory.announce(address)
            except Exception as error:  # the control plane may be away for a while; links live on
                log.warning("cannot announce this engine, trying again: %r", error)
            await asyncio.sleep(ANNOUNCE_SECONDS)

    async def check_health(self) -> None:
        """Called by Serve. Raises when the core is stuck; Serve then replaces the replica."""
        if (seconds := self._host.stalled_for()) > 0:
            raise RuntimeError(f"the engine has work but made no step: {seconds:.0f} s over its allowance")

    async def __del__(self) -> None:
        self._announcing.cancel()
        with suppress(Exception):
            await self._directory.forget(self._address)
        await self._host.stop()
        await self._admin.stop()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._core.close)


Front: Any = serve.deployment(_Front)
Engine: Any = serve.deployment(_Engine)


def application(settings: Settings, name: str, secret: bytes) -> Application:
    """The Serve application: an engine deployment for each model and the front before them."""
    engines = [
        Engine.options(name=f"engine-{index}", **_engine_options(settings.engine_of(model))).bind(
            settings, index, name, secret
        )
        for index, model in enumerate(settings.models)
    ]
    front = Front.options(
        name="front",
        num_replicas=settings.http.fronts,
        max_ongoing_requests=UNBOUNDED,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=20,
        logging_config={"enable_access_log": False},
    )
    bound: Application = front.bind(settings, name, secret, *engines)
    return bound


def _engine_options(engine: EngineSettings) -> dict[str, Any]:
    gpus = 0 if _on_cpu(engine) else engine.tensor_parallel_size
    options: dict[str, Any] = {
        "num_replicas": engine.replicas,
        "max_ongoing_requests": UNBOUNDED,
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": 20,
    }
    if engine.executor == "ray" or engine.pipeline_parallel_size > 1:
        # vLLM's ray executor puts one worker into each bundle; the replica sits in the first.
        workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
        unit = {"CPU": engine.cpus} if _on_cpu(engine) else {"GPU": 1.0}
        options["placement_group_bundles"] = [{"CPU": engine.cpus}] + [unit] * workers
        options["ray_actor_options"] = {"num_cpus": engine.cpus}
    else:
        options["ray_actor_options"] = {"num_cpus": engine.cpus, "num_gpus": gpus}
    return options


def _on_cpu(engine: EngineSettings) -> bool:
    """No GPU is reserved on a cluster without any, nor for a simulated device."""
    return engine.device == "simulated" or not _cluster_gpus()


def _cluster_gpus() -> float:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0.0)


def _node_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _start_core(settings: EngineSettings, model: Any) -> Any:
    from serving.engine.vllm import VllmCore

    return VllmCore(settings, str(catalogue.directory_of(model, weights=True)), model.revision)


def _bind_cpus(engine: EngineSettings, rank: int) -> None:
    """Several CPU engines or workers on one machine share its cores evenly: left alone, one starves the other.

    vLLM's variable separates the cores of an engine's workers by bars.
    """
    workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
    if engine.replicas * workers < 2 or not _on_cpu(engine) or "VLLM_CPU_OMP_THREADS_BIND" in os.environ:
        return
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // (engine.replicas * workers))
    firsts = [(rank * workers + worker) * share % len(cores) for worker in range(workers)]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
        ",".join(map(str, cores[first : first + share])) for first in firsts
    )


def _die() -> None:
    """The core is dead, so this replica is: end at once and let Serve replace it."""
    log.critical("the engine core died; this replica ends")
    os._exit(1)


def _calm_gc() -> None:
    """What is loaded now stays: leave it out of collections, and make those rare. They cost 8 % of a busy front."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _log_to_stderr(settings: Settings) -> None:
    """Ray keeps each worker's stderr in a file of its own; Serve's stand-in for it would hold lines back."""
    logger = logging.getLogger("serving")
    logger.setLevel(settings.log_level.upper())
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.handlers = [handler]
    logger.propagate = False


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: what stands outside Serve's own HTTP handling.

    Serve calls this in the replica just before it listens.
    """
    _reuse_addresses()
    return [Middleware(Edge)]


def _reuse_addresses() -> None:
    """Serve listens without SO_REUSEADDR, so a restart fails for a minute after a connection was closed."""
    from ray.serve._private import http_util

    class ReusingSocket(socket.socket):
        def bind(self, address: Any) -> None:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            super().bind(address)

    http_util.socket = SimpleNamespace(**(vars(socket) | {"socket": ReusingSocket}))  # type: ignore[assignment, attr-defined]
