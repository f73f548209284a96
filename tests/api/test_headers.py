"""Headers, in and out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.api import completion
from serving.api.chat import Chat
from serving.api.http import flag_header
from serving.core import FinishReason, Output, Request
from serving.engine.base import TokenStream
from serving.models.text import ModelText
from tests.api.hand import HELLO, HUGGINGFACE, OPENAI, RAW, Front, open_front

PATHS = pytest.mark.parametrize("path", [OPENAI, HUGGINGFACE])
MILLISECONDS = ("x-total-time", "x-queue-time", "x-inference-time", "x-time-per-token")


@pytest.fixture
async def front(text: ModelText) -> AsyncIterator[Front]:
    async with open_front(text) as front:
        yield front


@pytest.fixture
def chats(monkeypatch: pytest.MonkeyPatch) -> list[Chat]:
    """The chats that are prepared, as the headers and the body make them."""
    seen: list[Chat] = []

    async def prepare(chat: Chat, *words: Any, **more: Any) -> Any:
        seen.append(chat)
        return await real(chat, *words, **more)

    real = completion.prepare
    monkeypatch.setattr(completion, "prepare", prepare)
    return seen


async def post(front: Front, path: str = OPENAI, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return await front.client.post(path, json={"model": "org/tiny", "messages": HELLO} | body, headers=headers)


# --- out ----------------------------------------------------------------------------------------------------------


@PATHS
async def test_a_whole_answer_says_what_it_took(front: Front, path: str) -> None:
    def script(stream: TokenStream, request: Request) -> None:
        request.started += 0.03  # as if it had waited in the queue
        asyncio.get_running_loop().call_later(0.09, stream.feed, Output([504, 504, 2], FinishReason.STOP))

    front.scheduler.script = script
    answer = await post(front, path)
    headers = answer.headers
    usage = answer.json()["usage"]
    assert headers["content-type"] == "application/json"
    assert headers["x-compute-type"] == "cpu"
    assert int(headers["x-prompt-tokens"]) == usage["prompt_tokens"]
    assert int(headers["x-generated-tokens"]) == usage["completion_tokens"] == 3
    total, queued, running, per_token = (int(headers[name]) for name in MILLISECONDS)
    assert 30 <= queued < 30_000
    assert 55 <= running < 30_000
    assert abs(total - queued - running) <= 2
    assert abs(per_token - running / 3) <= 1
    assert abs(float(headers["x-compute-time"]) - running / 1000) < 0.002  # seconds


@PATHS
async def test_a_stream_says_what_is_known_when_it_begins(front: Front, path: str) -> None:
    answer = await post(front, path, stream=True)
    headers = answer.headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-compute-type"] == "cpu"
    assert int(headers["x-prompt-tokens"]) == len(front.scheduler.requests[0].prompt)
    assert "content-length" not in headers
    assert not {"x-compute-time", "x-generated-tokens", *MILLISECONDS} & set(headers)


async def test_raw_text_says_the_same_as_a_chat(front: Front) -> None:
    raw = await front.client.post(RAW, json={"inputs": "Once"})
    assert set(raw.headers) == set((await post(front, HUGGINGFACE)).headers)


async def test_several_choices_are_counted_together(front: Front) -> None:
    one, three = await post(front), await post(front, n=3)
    assert int(three.headers["x-generated-tokens"]) == 3 * int(one.headers["x-generated-tokens"])
    assert three.headers["x-prompt-tokens"] == one.headers["x-prompt-tokens"]


@PATHS
async def test_an_error_says_nothing_of_computing(front: Front, path: str) -> None:
    answer = await post(front, path, temperature=9)
    assert answer.headers["content-type"] == "application/json"
    assert {name for name in answer.headers if name.startswith("x-")} == {"x-request-id"}


@PATHS
@pytest.mark.parametrize("body", [{}, {"stream": True}, {"temperature": 9}, {"model": "nope"}])
async def test_the_callers_id_comes_back_with_every_answer(front: Front, path: str, body: dict[str, Any]) -> None:
    answer = await post(front, path, {"x-request-id": "mine-1"}, **body)
    assert answer.headers.get_list("x-request-id") == ["mine-1"]


async def test_the_id_of_an_answer_is_that_of_its_request(front: Front) -> None:
    answer = await post(front, headers={"x-request-id": "mine-1"})
    assert answer.json()["id"] == "chatcmpl-mine-1"
    assert front.scheduler.requests[0].id == "mine-1"


# --- in -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["false", "False", "FALSE", "0", "no", "off", " off "])
def test_words_for_no(value: str) -> None:
    assert flag_header({b"x-flag": value}, "x-flag", True) is False


@pytest.mark.parametrize("value", ["true", "1", "yes", "on", "", "nope", "2", "falsch"])
def test_any_other_word_is_yes(value: str) -> None:
    assert flag_header({b"x-flag": value}, "x-flag", False) is True


@pytest.mark.parametrize("default", [True, False])
def test_no_word_is_the_default(default: bool) -> None:
    assert flag_header({}, "x-flag", default) is default


@pytest.mark.parametrize(
    ("path", "headers", "use_cache", "wait"),
    [
        (HUGGINGFACE, {}, True, False),
        (OPENAI, {}, False, False),
        (HUGGINGFACE, {"x-use-cache": "false", "x-wait-for-model": "true"}, False, True),
        (HUGGINGFACE, {"X-Use-Cache": "0", "X-Wait-For-Model": "0"}, False, False),
        (OPENAI, {"x-use-cache": "true", "x-wait-for-model": "1"}, True, True),
        (HUGGINGFACE, {"x-dialect": "openai"}, False, False),
        (OPENAI, {"x-dialect": "HuggingFace"}, True, False),
    ],
)
async def test_a_chat_knows_whether_a_known_answer_will_do_and_whether_to_wait(
    front: Front, chats: list[Chat], path: str, headers: dict[str, str], use_cache: bool, wait: bool
) -> None:
    assert (await post(front, path, headers)).status_code == 200
    assert (chats[0].use_cache, chats[0].wait_for_model) == (use_cache, wait)


@pytest.mark.parametrize(
    ("options", "headers", "use_cache", "wait"),
    [
        ({}, {}, True, False),
        ({"use_cache": False, "wait_for_model": True}, {}, False, True),
        ({"use_cache": False, "wait_for_model": True}, {"x-use-cache": "1", "x-wait-for-model": "no"}, True, False),
    ],
)
async def test_headers_win_over_the_options_of_raw_text(
    front: Front, chats: list[Chat], options: Any, headers: dict[str, str], use_cache: bool, wait: bool
) -> None:
    answer = await front.client.post(RAW, json={"inputs": "Once", "options": options}, headers=headers)
    assert answer.status_code == 200
    assert (chats[0].use_cache, chats[0].wait_for_model) == (use_cache, wait)


@pytest.mark.parametrize("value", ["Bearer hf_x", "Bearer: hf_x", "bearer hf_x", "Basic eDp5", ""])
async def test_while_there_are_no_keys_any_token_will_do(front: Front, value: str) -> None:
    assert (await post(front, HUGGINGFACE, {"authorization": value})).status_code == 200
