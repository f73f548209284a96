"""The public ASGI app: what is served where."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from serving import __version__
from serving.api import huggingface, openai
from serving.api.completion import ChatCompletions
from serving.api.dialect import Dialect
from serving.api.failures import NoRoute
from serving.api.service import Models
from serving.core import Observer
from serving.settings import LimitSettings

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


def build(models: Models, limits: LimitSettings, observer: Observer, lifespan: Lifespan) -> FastAPI:
    app = FastAPI(title="serving", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    chat = ChatCompletions(models, limits, observer)
    # First, and as plain ASGI: the token path has no framework in it.
    app.router.routes[:0] = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/models/{model:path}/v1/chat/completions", chat, methods=["POST"]),
    ]

    @app.get("/health")
    async def health() -> dict[str, str]:
        """This process is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """This front can take a request: some model has an engine."""
        status = "ready" if models.ready else "loading"
        return JSONResponse({"status": status}, 200 if models.ready else 503)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(models, name) for name in models.by_name]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str) -> dict[str, Any]:
        return _card(models, models.find(model).name)

    @app.exception_handler(Exception)
    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: Exception) -> Response:
        dialect: Dialect = huggingface if request.url.path.startswith("/models/") else openai
        headers = None
        if isinstance(error, HTTPException):
            headers = error.headers
            error = NoRoute(f"{request.method} {request.url.path}: {error.detail}", error.status_code)
        status, body = dialect.failure(error)
        return JSONResponse(body, status, headers)

    return app


def _card(models: Models, name: str) -> dict[str, Any]:
    model = models.by_name[name]
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "serving",
        "max_model_len": model.scheduler.max_model_len or None,
    }
