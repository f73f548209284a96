"""A completion from body to last byte: what a request goes through, in this order."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.types import Receive, Scope, Send

from serving import __version__
from serving.api import fields, huggingface, openai, raw
from serving.api.answer import Choice, Part
from serving.api.chat import Chat, ToolChoice
from serving.api.dialect import DONE, Answer, Dialect, Encoder, Usage
from serving.api.failures import outcome_of
from serving.api.http import (
    JSON,
    SSE,
    ClientGone,
    Headers,
    Reply,
    flag_header,
    heartbeat,
    read_body,
    seconds_header,
    until_disconnect,
)
from serving.api.messages import highest_call_id
from serving.api.prompt import Prepared, prepare
from serving.api.service import Models, ServedModel
from serving.core import Finished, Observer, Outcome, Request
from serving.errors import BadField, ModelLoading, Refused, ServingError
from serving.settings import HttpSettings, LimitSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

FINGERPRINT = f"{__version__}-serving"
MAX_REQUEST_ID = 128  # characters of a caller's request id that are kept

# Some Hugging Face clients come back at once, whatever Retry-After says: a refusal for loading takes its time.
HOLD_SECONDS = (0.25, 1.0)
MOST_HELD = 1000

_DIALECTS: dict[str, Dialect] = {"openai": openai, "huggingface": huggingface}


class Completions:
    """The ASGI endpoint of all dialects. The path chooses the dialect; `x-dialect` overrides it."""

    def __init__(self, models: Models, limits: LimitSettings, http: HttpSettings, observer: Observer) -> None:
        self._models = models
        self._limits = limits
        self._http = http
        self._observer = observer
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, send)
        try:
            exchange.override_dialect()
            if exchange.path_model is not None:
                self._models.find(exchange.path_model)  # before the body is looked at: it may be of any size
            body = fields.parse(await read_body(receive, exchange.headers, self._limits), self._limits.nesting)
            exchange.choose_task(body)
            async with until_disconnect(receive):
                await self._complete(body, exchange)
            exchange.outcome = Outcome.COMPLETED
        except ClientGone:
            log.info("request %s: the client went away", exchange.id)
        except Exception as error:
            exchange.outcome = outcome_of(error)
            if isinstance(error, ModelLoading) and exchange.dialect is not openai:
                await self._hold()
            await _fail(error, exchange)
        finally:
            self._observer.finished(exchange.finished())

    async def _complete(self, body: dict[str, Any], exchange: _Exchange) -> None:
        chat = exchange.dialect.parse(body, exchange.path_model, self._limits)
        chat.use_cache = flag_header(exchange.headers, "x-use-cache", chat.use_cache)
        chat.wait_for_model = flag_header(exchange.headers, "x-wait-for-model", chat.wait_for_model)
        model = self._models.find(chat.model)
        exchange.model = model
        seconds = seconds_header(exchange.headers, "x-request-timeout", self._limits.request_seconds)
        if not model.scheduler.ready:
            raise ModelLoading(f"Model {chat.model} is currently loading", retry_after=5.0)
        tenant = exchange.headers.get(b"x-tenant") or chat.user or "default"
        exchange.prepared = prepared = await prepare(
            chat,
            model.text,
            model.scheduler.max_model_len,
            self._limits,
            model.compiler,
            request_id=exchange.id,
            tenant=tenant,
            seconds=seconds,
        )
        answer = _answer(chat, exchange.id, self._http)
        if chat.stream:
            async with heartbeat(exchange.reply, self._http.heartbeat_seconds, exchange.stream_headers):
                await _stream(prepared, model, exchange, answer)
        else:
            await _collect(prepared, model, exchange, answer)

    async def _hold(self) -> None:
        if self._held >= MOST_HELD:
            return
        self._held += 1
        try:
            await asyncio.sleep(random.uniform(*HOLD_SECONDS))
        finally:
            self._held -= 1


def _answer(chat: Chat, request_id: str, http: HttpSettings) -> Answer:
    return Answer(
        id=f"chatcmpl-{request_id}",
        model=chat.model,
        created=int(time.time()),
        fingerprint=FINGERPRINT,
        include_usage=chat.include_usage,
        named_call=chat.tool_choice is ToolChoice.NAMED,
        forced_call=chat.forces_call,
        first_call_id=highest_call_id(chat.messages) + 1,
        descriptions={tool.name: tool.description for tool in chat.tools},
        prompt=chat.prompt if chat.returns_prompt else None,
        says_eos_token=http.huggingface_eos_token,
    )


class _Exchange:
    """One HTTP exchange and what is known of it so far; cancelled until something else is known."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self.id = self.headers.get(b"x-request-id", "")[:MAX_REQUEST_ID] or uuid.uuid4().hex
        self.path_model: str | None = scope["path_params"].get("model")
        self._has_task = scope["path_params"].get("task", True)
        self.dialect: Dialect = openai if self.path_model is None else huggingface
        self.reply = Reply(scope, send, [(b"x-request-id", self.id.encode("latin-1"))])
        self.model: ServedModel | None = None
        self.outcome = Outcome.CANCELLED
        self.prepared: Prepared | None = None
        self._arrived = time.monotonic()

    def override_dialect(self) -> None:
        """The path chose the dialect; `x-dialect` may choose another. Raises `BadField`."""
        name = self.headers.get(b"x-dialect")
        if name is not None:
            if name.lower() not in _DIALECTS:
                raise BadField("x-dialect", f"must be openai or huggingface, not {name!r}")
            self.dialect = _DIALECTS[name.lower()]

    def choose_task(self, body: dict[str, Any]) -> None:
        """A path without a task is for chats and for raw text: `inputs` says which."""
        if not self._has_task and "inputs" in body:
            self.dialect = raw

    def stream_headers(self) -> Headers:
        """Of a stream: what is known when it begins."""
        prompt_tokens = len(self._requests[0].prompt)
        return [*SSE, (b"x-compute-type", self._compute_type), (b"x-prompt-tokens", b"%d" % prompt_tokens)]

    def whole_headers(self) -> Headers:
        """Of a whole answer, as text-generation-inference has them: milliseconds, but for the compute time."""
        assert self.prepared is not None
        request, now = self._requests[0], time.monotonic()
        total, queued, running = now - self._arrived, request.started - self._arrived, now - request.started
        tokens = sum(choice.text.completion_tokens for choice in self.prepared.choices)
        milliseconds = {
            b"x-total-time": total,
            b"x-queue-time": queued,
            b"x-inference-time": running,
            b"x-time-per-token": running / max(1, tokens),
        }
        return [
            *JSON,
            (b"x-compute-type", self._compute_type),
            (b"x-compute-time", b"%.6f" % running),
            *((name, b"%d" % (seconds * 1000)) for name, seconds in milliseconds.items()),
            (b"x-prompt-tokens", b"%d" % len(request.prompt)),
            (b"x-generated-tokens", b"%d" % tokens),
        ]

    @property
    def _requests(self) -> list[Request]:
        return self.prepared.requests if self.prepared is not None else []

    @property
    def _compute_type(self) -> bytes:
        return self.model.scheduler.device.encode() if self.model is not None else b""

    def finished(self) -> Finished:
        texts = [choice.text for choice in self.prepared.choices] if self.prepared is not None else []
        first_at = min((text.first_at for text in texts if text.first_at), default=None)
        return Finished(
            id=self.id,
            model=self.model.name if self.model is not None else "",
            tenant=self._requests[0].tenant if self._requests else "",
            outcome=self.outcome,
            seconds=time.monotonic() - self._arrived,
            prompt_tokens=len(self._requests[0].prompt) if self._requests else 0,
            cached_tokens=texts[0].cached_tokens if texts else 0,
            generated_tokens=sum(text.completion_tokens for text in texts),
            first_token_seconds=None if first_at is None else first_at - self._arrived,
        )


async def _stream(prepared: Prepared, model: ServedModel, exchange: _Exchange, answer: Answer) -> None:
    dialect, reply = exchange.dialect, exchange.reply
    runs: list[Coroutine[Any, Any, bytes]] = []
    for index, (request, choice) in enumerate(zip(prepared.requests, prepared.choices, strict=True)):
        run = _Run(choice, dialect.encoder(answer, index), reply, exchange.stream_headers)
        runs.append(run.stream(model, request))
    if len(runs) > 1:  # each ends when it ends
        runs = [_ending(run, reply) for run in runs]
    endings: list[bytes] = await _all(runs)
    last = b"".join(endings)
    if answer.include_usage:
        last += dialect.usage_event(answer, _usage(prepared))
    await reply.finish(last + DONE)


async def _ending(run: Coroutine[Any, Any, bytes], reply: Reply) -> bytes:
    await reply.write(await run)
    return b""


class _Run:
    """One streamed choice: one event a token; one write for all the tokens that came since the last write.

    After the first token its coroutine mostly sleeps: plain tokens go from the engine's frame to the
    socket in one pass (`_straight_through`) and it wakes for what is not plain.
    """

    def __init__(self, choice: Choice, encoder: Encoder, reply: Reply, headers: Callable[[], Headers]) -> None:
        self._choice = choice
        self._encoder = encoder
        self._reply = reply
        self._headers = headers
        self._opening = encoder.opening()

    async def stream(self, model: ServedModel, request: Request) -> bytes:
        """Run `request` and write its events, but for the closing one, which it returns."""
        async with model.scheduler.generate(request) as stream:
            straight_through = self._straight_through()
            while self._choice.finish is None:
                outputs = await anext(stream)
                stream.on_token = None  # nothing may overtake what is written below
                await self._write(self._choice.read(outputs))
                stream.on_token = straight_through
        assert self._choice.finish is not None
        return self._encoder.closing(self._choice.finish, self._choice.take_pending())

    async def _write(self, parts: list[Part]) -> None:
        if self._opening or not self._reply.started:  # until now a refusal would have been a real status
            await self._reply.start(200, self._headers())
        events = self._opening + b"".join([self._encoder.delta(part.delta, part.logprobs) for part in parts])
        self._opening = b""
        if events:
            await self._reply.write(events)

    def _straight_through(self) -> Callable[[int], bool] | None:
        """From a plain token to its event on the socket, where the request and the server allow it."""
        direct = self._reply.direct
        if direct is None or not self._choice.plain:
            return None
        ready, write, event, add = direct.ready, direct.write, self._encoder.text, self._choice.text.add_plain

        def on_token(token: int) -> bool:
            if not ready():
                return False
            write(event(add(token)))
            return True

        return on_token


async def _collect(prepared: Prepared, model: ServedModel, exchange: _Exchange, answer: Answer) -> None:
    async def run(request: Request, choice: Choice) -> list[Part]:
        parts: list[Part] = []
        async with model.scheduler.generate(request) as stream:
            while choice.finish is None:
                parts += choice.read(await anext(stream))
        return parts

    pairs = list(zip(prepared.requests, prepared.choices, strict=True))
    read = await _all([run(request, choice) for request, choice in pairs])
    messages = [choice.message(parts) for (_, choice), parts in zip(pairs, read, strict=True)]
    body = exchange.dialect.whole(answer, messages, _usage(prepared))
    await exchange.reply.whole(200, body, exchange.whole_headers())


async def _all(runs: list[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first that fails ends the others."""
    if len(runs) == 1:
        return [await runs[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run) for run in runs]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _usage(prepared: Prepared) -> Usage:
    texts = [choice.text for choice in prepared.choices]
    generated = sum(text.completion_tokens for text in texts)
    return Usage(len(prepared.requests[0].prompt), generated, texts[0].cached_tokens)


async def _fail(error: Exception, exchange: _Exchange) -> None:
    """Tell the caller: with a status before the first byte, with one event after it."""
    dialect, reply = exchange.dialect, exchange.reply
    if not isinstance(error, ServingError):
        log.exception("request %s failed", exchange.id, exc_info=error)
    if reply.started:
        await reply.finish(dialect.failure_event(error) + DONE)
        return
    status, body = dialect.failure(error)
    retry = [(b"retry-after", str(math.ceil(error.retry_after)).encode())] if isinstance(error, Refused) else []
    await reply.whole(status, orjson.dumps(body), JSON + retry)
