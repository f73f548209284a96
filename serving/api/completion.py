"""A chat completion from body to last byte: what a request goes through, in this order."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from serving import __version__
from serving.api import fields, huggingface, openai
from serving.api.dialect import DONE, Answer, Dialect, Encoder, Usage
from serving.api.failures import outcome_of
from serving.api.http import JSON, SSE, ClientGone, Reply, read_body, seconds_header, until_disconnect
from serving.api.prompt import make_request
from serving.api.service import Models
from serving.api.text import Piece, TextStream
from serving.core import Finished, FinishReason, Observer, Outcome, Output, Request
from serving.engine.base import TokenStream
from serving.errors import BadField, EngineFault, ModelLoading, Refused, ServingError
from serving.settings import LimitSettings

log = logging.getLogger(__name__)

FINGERPRINT = f"serving-{__version__}"
MAX_REQUEST_ID = 128  # characters of a caller's request id that are kept

_DIALECTS: dict[str, Dialect] = {"openai": openai, "huggingface": huggingface}


class ChatCompletions:
    """The ASGI endpoint of both dialects. The path chooses the dialect; `x-dialect` overrides it."""

    def __init__(self, models: Models, limits: LimitSettings, observer: Observer) -> None:
        self._models = models
        self._limits = limits
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, send)
        try:
            exchange.override_dialect()
            if exchange.path_model is not None:
                self._models.find(exchange.path_model)  # before the body is looked at: it may be of any size
            body = fields.parse(await read_body(receive, exchange.headers, self._limits), self._limits.nesting)
            async with until_disconnect(receive):
                await self._complete(body, exchange)
            exchange.outcome = Outcome.COMPLETED
        except ClientGone:
            log.info("request %s: the client went away", exchange.id)
        except Exception as error:
            exchange.outcome = outcome_of(error)
            await _fail(error, exchange)
        finally:
            self._observer.finished(exchange.finished())

    async def _complete(self, body: dict[str, Any], exchange: _Exchange) -> None:
        chat = exchange.dialect.parse(body, exchange.path_model, self._limits)
        model = self._models.find(chat.model)
        exchange.model = model.name
        if not model.scheduler.ready:
            raise ModelLoading(f"Model {chat.model} is currently loading", retry_after=5.0)
        request = exchange.request = await make_request(
            chat,
            model.text,
            model.scheduler.max_model_len,
            request_id=exchange.id,
            tenant=exchange.headers.get(b"x-tenant") or chat.user or "default",
            seconds=seconds_header(exchange.headers, "x-request-timeout", self._limits.request_seconds),
        )
        answer = Answer(f"chatcmpl-{exchange.id}", chat.model, int(time.time()), FINGERPRINT, chat.include_usage)
        encoder = exchange.dialect.encoder(answer)
        text = exchange.text = TextStream(model.text, chat.stop, chat.min_tokens, chat.logprobs)
        respond = _stream if chat.stream else _collect
        async with model.scheduler.generate(request) as stream:
            await respond(stream, text, encoder, request, exchange.reply)


class _Exchange:
    """One HTTP exchange and what is known of it so far; cancelled until something else is known."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self.id = self.headers.get(b"x-request-id", "")[:MAX_REQUEST_ID] or uuid.uuid4().hex
        self.path_model: str | None = scope["path_params"].get("model")
        self.dialect: Dialect = openai if self.path_model is None else huggingface
        self.reply = Reply(scope, send, [(b"x-request-id", self.id.encode("latin-1"))])
        self.model = ""
        self.outcome = Outcome.CANCELLED
        self.request: Request | None = None
        self.text: TextStream | None = None
        self._arrived = time.monotonic()

    def override_dialect(self) -> None:
        """The path chose the dialect; `x-dialect` may choose another. Raises `BadField`."""
        name = self.headers.get(b"x-dialect")
        if name is not None:
            if name.lower() not in _DIALECTS:
                raise BadField("x-dialect", f"must be openai or huggingface, not {name!r}")
            self.dialect = _DIALECTS[name.lower()]

    def finished(self) -> Finished:
        text, request = self.text, self.request
        return Finished(
            id=self.id,
            model=self.model,
            tenant=request.tenant if request else "",
            outcome=self.outcome,
            seconds=time.monotonic() - self._arrived,
            prompt_tokens=len(request.prompt) if request else 0,
            cached_tokens=text.cached_tokens if text else 0,
            generated_tokens=text.completion_tokens if text else 0,
            first_token_seconds=text.first_at - self._arrived if text and text.first_at else None,
        )


def _pieces(outputs: list[Output], text: TextStream) -> list[Piece]:
    """What the caller sees of a batch of outputs."""
    pieces: list[Piece] = []
    for output in outputs:
        pieces += text.add(output)
        if text.finish is not None:  # a stop string: the engine may have said more by now
            break
    if text.finish in (FinishReason.ABORT, FinishReason.ERROR):
        raise EngineFault("the engine could not finish this request")
    return pieces


async def _stream(stream: TokenStream, text: TextStream, encoder: Encoder, request: Request, reply: Reply) -> None:
    """One event a token; one write for all the tokens that came since the last write.

    After the first token this coroutine mostly sleeps: plain tokens go from the engine's frame to
    the socket in one pass (`_straight_through`) and it wakes for what is not plain.
    """
    event, opening = encoder.piece, encoder.opening()
    straight_through = _straight_through(text, encoder, reply)
    while text.finish is None:
        outputs = await anext(stream)
        stream.on_token = None  # nothing may overtake what is written below
        pieces = _pieces(outputs, text)
        if not reply.started:  # until now a refusal would have been a real status
            await reply.start(200, SSE)
            pieces_bytes = opening + b"".join([event(piece) for piece in pieces])
        else:
            pieces_bytes = b"".join([event(piece) for piece in pieces])
        if pieces_bytes:
            await reply.write(pieces_bytes)
        stream.on_token = straight_through
    await reply.finish(encoder.closing(text.finish, _usage(request, text)) + DONE)


def _straight_through(text: TextStream, encoder: Encoder, reply: Reply) -> Callable[[int], bool] | None:
    """From a plain token to its event on the socket, where the request and the server allow it."""
    direct = reply.direct
    if direct is None or not text.plain:
        return None
    ready, write, event, add = direct.ready, direct.write, encoder.text, text.add_plain

    def on_token(token: int) -> bool:
        if not ready():
            return False
        write(event(add(token)))
        return True

    return on_token


async def _collect(stream: TokenStream, text: TextStream, encoder: Encoder, request: Request, reply: Reply) -> None:
    pieces: list[Piece] = []
    while text.finish is None:
        pieces += _pieces(await anext(stream), text)
    await reply.whole(200, encoder.whole(pieces, text.finish, _usage(request, text)))


def _usage(request: Request, text: TextStream) -> Usage:
    return Usage(len(request.prompt), text.completion_tokens, text.cached_tokens)


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
