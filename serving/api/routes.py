"""The public ASGI app: what is served where."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import __version__
from serving.api import huggingface, openai
from serving.api.completion import ChatCompletions
from serving.api.dialect import Dialect
from serving.api.failures import NoRoute
from serving.api.service import Models
from serving.core import Observer
from serving.errors import ServingError
from serving.settings import LimitSettings

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


class PublicApp:
    """Chat completions go straight to their endpoint; everything else to FastAPI, which costs a request 100 µs."""

    def __init__(self, chat: ASGIApp, others: FastAPI) -> None:
        self._chat = chat
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            if path == _OPENAI:
                scope["path_params"] = {}
                return await self._chat(scope, receive, send)
            if path.startswith(_HUGGINGFACE) and path.endswith(_OPENAI):
                scope["path_params"] = {"model": path[len(_HUGGINGFACE) : -len(_OPENAI)]}
                return await self._chat(scope, receive, send)
        return await self._others(scope, receive, send)


_OPENAI, _HUGGINGFACE = "/v1/chat/completions", "/models/"


def build(models: Models, limits: LimitSettings, observer: Observer, lifespan: Lifespan) -> PublicApp:
    app = FastAPI(title="serving", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

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

    @app.exception_handler(Exception)  # of these Starlette also raises again, for the server's log
    @app.exception_handler(HTTPException)
    @app.exception_handler(ServingError)
    async def failed(request: Request, error: Exception) -> Response:
        dialect: Dialect = huggingface if request.url.path.startswith("/models/") else openai
        headers = None
        if isinstance(error, HTTPException):
            headers = error.headers
            error = NoRoute(f"{request.method} {request.url.path}: {error.detail}", error.status_code)
        status, body = dialect.failure(error)
        return JSONResponse(body, status, headers)

    return PublicApp(ChatCompletions(models, limits, observer), app)


def _card(models: Models, name: str) -> dict[str, Any]:
    model = models.by_name[name]
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "serving",
        "max_model_len": model.scheduler.max_model_len or None,
    }
