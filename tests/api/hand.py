"""The endpoint in process: real parsing, real text, a scheduler that a test plays by hand."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.types import ASGIApp

from serving.api import routes
from serving.api.service import Models, ServedModel
from serving.core import Finished, FinishReason, Output, Request, TokenLogprobs
from serving.engine.base import TokenStream
from serving.models.text import ModelText
from serving.settings import Settings

OPENAI, HUGGINGFACE, RAW = "/v1/chat/completions", "/models/org/tiny/v1/chat/completions", "/models/org/tiny"
HELLO = [{"role": "user", "content": "hi"}]
END = 2  # the token that ends an answer of the embedded model

Script = Callable[[TokenStream, Request], None]


class HandScheduler:
    """Feeds each request with what `script` makes of it."""

    ready, max_model_len, device = True, 512, "cpu"

    def __init__(self, text: ModelText) -> None:
        self.requests: list[Request] = []
        self.left = 0
        self.script: Script = self.say("Hello wörld", FinishReason.STOP)
        self.refuse: Exception | None = None
        self._text = text

    def say(self, words: str, finish: FinishReason = FinishReason.STOP, *, cached: int = 0) -> Script:
        """These words, token by token, and where the request asks for it how likely each was."""

        def script(stream: TokenStream, request: Request) -> None:
            tokens = [*self._text.encode(words), END]
            for number, token in enumerate(tokens):
                output = Output([token], cached_tokens=None if number else cached)
                if request.sampling.logprobs is not None:
                    output.logprobs = [likely(token, number, request.sampling.logprobs)]
                if token == END:
                    output.finish = finish
                stream.feed(output)

        return script

    @asynccontextmanager
    async def generate(self, request: Request) -> AsyncIterator[TokenStream]:
        if self.refuse:
            raise self.refuse
        request.started = time.monotonic()
        self.requests.append(request)
        stream = TokenStream()
        self.script(stream, request)
        try:
            yield stream
        finally:
            self.left += 1


def likely(token: int, place: int, best: int) -> TokenLogprobs:
    """The chosen token's log probability, another one for each place, and those of `best` tokens: itself first."""
    value = -0.125 * (place + 1)
    others = range(1, best)
    ids, values = [token + other for other in others], [value - other for other in others]
    return TokenLogprobs([token, *([token, *ids] if best else [])], [value, *([value, *values] if best else [])])


class Log:
    def __init__(self) -> None:
        self.finished_requests: list[Finished] = []

    def finished(self, request: Finished) -> None:
        self.finished_requests.append(request)


@dataclass
class Front:
    """A front of one model, `org/tiny`, which is also called `alias`."""

    app: ASGIApp
    client: httpx.AsyncClient
    scheduler: HandScheduler
    log: Log

    async def openai(self, **body: Any) -> httpx.Response:
        return await self.client.post(OPENAI, json={"model": "org/tiny", "messages": HELLO} | body)

    async def huggingface(self, **body: Any) -> httpx.Response:
        return await self.client.post(HUGGINGFACE, json={"messages": HELLO} | body)


def app_of(text: ModelText, scheduler: HandScheduler, log: Log, settings: Settings | None = None) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield

    models = Models([ServedModel("org/tiny", text, scheduler, 1)], {"alias": "org/tiny"})  # type: ignore[arg-type]
    return routes.build(models, settings or Settings(), log, lifespan)


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@asynccontextmanager
async def open_front(text: ModelText, settings: Settings | None = None) -> AsyncIterator[Front]:
    scheduler, log = HandScheduler(text), Log()
    app = app_of(text, scheduler, log, settings)
    async with client_of(app) as client:
        yield Front(app, client, scheduler, log)


def chunks(answer: httpx.Response) -> list[Any]:
    """The events of a stream that ended as it should."""
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


class Wire:
    """The ASGI server's side of one exchange, with a client that can go away."""

    def __init__(self, app: Any, body: dict[str, Any], path: str = OPENAI, **extensions: Any) -> None:
        self._parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        self.gone = asyncio.Event()
        self.sent: list[Any] = []
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "extensions": extensions}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._parts:
            return self._parts.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await asyncio.sleep(0)  # as when the client reads slowly
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def tool(name: str, properties: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A function as a request lists it; all its arguments are required."""
    properties = properties or {}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


def cut(text: str, places: Iterable[int]) -> list[str]:
    """The text in pieces that end at these places."""
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]
