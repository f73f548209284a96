"""The composition root of a front: the one file that knows every layer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.types import ASGIApp

from serving.admin import AdminServer
from serving.api import routes
from serving.api.compiler import Compiler, Guidance, Xgrammar
from serving.api.service import Models, ServedModel
from serving.metrics.front import FrontMetrics
from serving.models import catalogue
from serving.models.text import ModelText
from serving.pool.directory import Directory
from serving.pool.pool import Pool, Watcher
from serving.scheduler.scheduler import Scheduler
from serving.settings import ModelSettings, Settings

log = logging.getLogger(__name__)


def build_front(settings: Settings, directory: Directory, front: str, secret: bytes) -> ASGIApp:
    """The front's ASGI app. Its lifespan keeps the links to the engines and the admin listener.

    Raises `ModelFilesError` where a model's text side cannot be loaded.
    """
    pools: dict[str, Pool] = {}
    served: list[ServedModel] = []
    aliases: dict[str, str] = {}
    for model in settings.models:
        name = catalogue.name_of(model)
        pools[name] = pool = Pool(name)
        text = ModelText(catalogue.directory_of(model, weights=False), model.tool_format)
        scheduler, compiler = Scheduler(settings.scheduler, pool), _compiler(settings, model, text)
        served.append(ServedModel(name, text, scheduler, int(time.time()), compiler))
        aliases.update(dict.fromkeys(catalogue.aliases_of(model), name))
    metrics = FrontMetrics({model.name: model.scheduler for model in served})

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        starting = [asyncio.create_task(model.compiler.start()) for model in served]
        watcher = asyncio.create_task(Watcher(front, secret, directory, pools).run())
        admin = await AdminServer(settings.admin, metrics.registry).start()
        try:
            yield
        finally:
            await admin.stop()
            for task in (watcher, *starting):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            for model in served:
                await model.compiler.stop()

    return routes.build(Models(served, aliases), settings, metrics, lifespan)


def _compiler(settings: Settings, model: ModelSettings, text: ModelText) -> Compiler:
    if settings.engine_of(model).grammar_backend == "guidance":
        return Guidance()
    return Xgrammar(text.directory, settings.limits.grammar_seconds, settings.limits.grammar_bytes)
