"""The admin listener of a front or an engine replica: metrics and debugging, never client traffic."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.routing import Mount

from serving.settings import AdminSettings

log = logging.getLogger(__name__)

_PORTS_TO_TRY = 200


class AdminServer:
    """Listens on the first free port from the set one on: several replicas share a node."""

    def __init__(self, settings: AdminSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._app = Starlette(routes=[Mount("/metrics", make_asgi_app(registry))])
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> AdminServer:
        """Raises OSError when no port is free."""
        listener = self._bind()
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self._app, lifespan="off", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server._serve([listener]))  # `serve` would take the process' signals
        log.info("admin listens on %s:%d", self._settings.host, self.port)
        return self

    def _bind(self) -> socket.socket:
        for port in range(self._settings.port, self._settings.port + _PORTS_TO_TRY):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self._settings.host, port))
                listener.listen()
            except OSError:
                listener.close()
                continue
            return listener
        raise OSError(f"no free admin port from {self._settings.port} on")

    async def stop(self) -> None:
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        with suppress(asyncio.CancelledError):
            await self._task
