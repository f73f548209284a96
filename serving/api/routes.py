"""The public ASGI app: what is served where."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import __version__
from serving.api import description, huggingface, openai
from serving.api.completion import Completions
from serving.api.dialect import Dialect
from serving.api.failures import NoRoute
from serving.api.service import Models, ServedModel
from serving.core import Observer
from serving.errors import ServingError
from serving.settings import Settings

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


class PublicApp:
    """Completions go straight to their endpoint; everything else to FastAPI, which costs a request 100 µs."""

    def __init__(self, completions: ASGIApp, others: FastAPI) -> None:
        self._completions = completions
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            if path == _OPENAI:
                scope["path_params"] = {}
                return await self._completions(scope, receive, send)
            if path.startswith(_HUGGINGFACE):
                model = path[len(_HUGGINGFACE) :].rstrip("/")
                task = model.endswith(_OPENAI)
                scope["path_params"] = {"model": model.removesuffix(_OPENAI).rstrip("/"), "task": task}
                return await self._completions(scope, receive, send)
        return await self._others(scope, receive, send)


_OPENAI, _HUGGINGFACE = "/v1/chat/completions", "/models/"


def build(models: Models, settings: Settings, observer: Observer, lifespan: Lifespan) -> ASGIApp:
    app = FastAPI(title="serving", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.openapi = description.document  # type: ignore[method-assign]

    @app.get("/health")
    async def health() -> dict[str, str]:
        """This process is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """This front can take a request: some model has an engine."""
        status = "ready" if models.ready else "loading"
        return JSONResponse({"status": status}, 200 if models.ready else 503)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(description.page())

    _openai_models(app, models)
    _huggingface_models(app, models, settings)

    @app.exception_handler(Exception)  # of these Starlette also raises again, for the server's log
    @app.exception_handler(HTTPException)
    @app.exception_handler(ServingError)
    async def failed(request: Request, error: Exception) -> Response:
        dialect: Dialect = huggingface if request.url.path.startswith(("/models/", "/status/")) else openai
        headers = None
        if isinstance(error, HTTPException):
            headers = error.headers
            error = NoRoute(f"{request.method} {request.url.path}: {error.detail}", error.status_code)
        status, body = dialect.failure(error)
        return JSONResponse(body, status, headers)

    public = PublicApp(Completions(models, settings.limits, settings.http, observer), app)
    if not settings.http.cors_origins:
        return public
    return CORSMiddleware(
        public,
        allow_origins=settings.http.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )


EXPOSED = [
    *("x-request-id", "retry-after", "x-compute-type", "x-compute-time", "x-total-time", "x-queue-time"),
    *("x-inference-time", "x-time-per-token", "x-prompt-tokens", "x-generated-tokens"),
]


def _openai_models(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(model) for model in models.by_name.values()]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str) -> dict[str, Any]:
        return _card(models.find(model))


def _card(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "serving",
        "max_model_len": model.scheduler.max_model_len or None,
    }


def _huggingface_models(app: FastAPI, models: Models, settings: Settings) -> None:
    """What Hugging Face clients ask of an endpoint: /info and /health as TGI has them, the Hub's /status."""

    @app.get("/models/{model:path}/info")
    async def info(model: str) -> dict[str, Any]:
        found = models.find(model)
        context = found.scheduler.max_model_len
        return {
            "model_id": found.name,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": settings.scheduler.queue_requests,
            "max_best_of": 1,
            "max_stop_sequences": 4,
            "max_input_tokens": max(0, context - 1),
            "max_total_tokens": context,
            "max_client_batch_size": 1,
            "router": "serving",
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }

    @app.get("/models/{model:path}/health")
    async def model_health(model: str) -> Response:
        ready = models.find(model).scheduler.ready
        return JSONResponse({"status": "ready" if ready else "loading"}, 200 if ready else 503)

    @app.get("/models/{model:path}")
    async def card(model: str) -> dict[str, Any]:
        found = models.find(model)
        status = _status(found)
        return {
            "id": found.name,
            "modelId": found.name,
            "pipeline_tag": "text-generation",
            "tags": ["text-generation", "conversational"],
            "inference": "warm" if status["loaded"] else "cold",
        } | status

    @app.get("/status/{model:path}")
    async def status(model: str) -> dict[str, Any]:
        return _status(models.find(model))


def _status(model: ServedModel) -> dict[str, Any]:
    ready = model.scheduler.ready
    return {
        "loaded": ready,
        "state": "Loaded" if ready else "Loadable",
        "compute_type": model.scheduler.device or "none",
        "framework": "text-generation-inference",
    }
