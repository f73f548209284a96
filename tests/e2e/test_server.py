"""End to end: real Ray Serve, real vLLM, the embedded model, real clients."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.server import MODEL, Server

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
HUGGINGFACE = f"/models/HuggingFaceTB/{MODEL}/v1/chat/completions"


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(server: Server, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json={"model": MODEL, "messages": QUESTION} | body, timeout=60)


def events(answer: httpx.Response) -> list[Any]:
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_the_answer_makes_sense(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)


def test_a_stream_says_the_same_token_by_token(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "The capital of France is Paris."
    assert sum(bool(text) for text in texts) == 7
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 45
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


async def test_many_at_once_with_the_async_client(server: Server) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        calls = [
            client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Count from {n}."}],
                max_tokens=12,
                extra_body={"ignore_eos": True},
            )
            for n in range(32)
        ]
        answers = await asyncio.gather(*calls)
    assert [answer.usage.completion_tokens for answer in answers if answer.usage] == [12] * 32


def test_stop_strings_seeds_and_logprobs(client: openai.OpenAI) -> None:
    stopped = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stop=[" is"])  # type: ignore[arg-type]
    assert stopped.choices[0].message.content == "The capital of France"
    assert stopped.choices[0].finish_reason == "stop"
    sampled = [
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=1.5, seed=7, max_tokens=12)  # type: ignore[arg-type]
        for _ in range(2)
    ]
    assert sampled[0].choices[0].message.content == sampled[1].choices[0].message.content
    scored = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=3,
        logprobs=True,
        top_logprobs=2,
    )
    assert scored.choices[0].logprobs is not None
    content = scored.choices[0].logprobs.content
    assert content is not None
    assert [token.token for token in content] == ["The", " capital", " of"]
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in content)
    assert bytes(content[1].bytes or []) == b" capital"


def test_the_huggingface_dialect(server: Server) -> None:
    whole = post(server, HUGGINGFACE, temperature=0).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "The capital of France is Paris."}
    assert set(whole["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert whole["model"] == f"HuggingFaceTB/{MODEL}"
    streamed = events(post(server, HUGGINGFACE, temperature=0, stream=True))
    assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in streamed)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in streamed) == "The capital of France is Paris."


def test_every_token_is_its_own_event(server: Server) -> None:
    chunks = events(post(server, stream=True, max_tokens=40, ignore_eos=True))
    contents = [chunk for chunk in chunks if "content" in chunk["choices"][0]["delta"]]
    assert len(contents) == 1 + 40  # the role's, then one for each token


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"model": "x"}', "messages"),
        (b'{"model": "%s", "messages": []}' % MODEL.encode(), "messages"),
        (b'{"model": "%s", "messages": [{"role": "", "content": "x"}]}' % MODEL.encode(), "messages[0].role"),
        (
            b'{"model": "%s", "messages": [{"role": "user", "content": "\\u0000"}]}' % MODEL.encode(),
            "messages[0].content",
        ),
        (
            b'{"model": "%s", "messages": [{"role": "user", "content": "\\ud800"}]}' % MODEL.encode(),
            "messages[0].content",
        ),
        (b"[" * 100_000, None),
    ],
)
def test_bad_input_is_named_and_the_server_goes_on(server: Server, body: bytes, field: str | None) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == field
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_limits_and_unknown_models(server: Server) -> None:
    long = post(server, messages=[{"role": "user", "content": "word " * 4000}])
    assert (long.status_code, long.json()["error"]["param"]) == (400, "messages")
    assert post(server, model="nope").status_code == 404
    assert post(server, "/models/no/such/v1/chat/completions").status_code == 404
    assert post(server, temperature=3).json()["error"]["param"] == "temperature"
    assert post(server, HUGGINGFACE, temperature=3).status_code == 422
    assert httpx.post(f"{server.url}/v1/chat/completions", content=b"x" * 3_000_000).status_code == 413


@pytest.mark.parametrize(
    ("path", "body", "status", "type_"),
    [
        (HUGGINGFACE, b"{", 400, "validation"),
        (HUGGINGFACE, b"{}", 422, "validation"),
        (HUGGINGFACE, b'{"messages": [{"role": "user"}]}', 422, "validation"),
        (HUGGINGFACE, b'{"messages": [{"role": "user", "content": "x"}], "stream": 1}', 422, "validation"),
        (HUGGINGFACE, b'{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}', 422, "validation"),
        (HUGGINGFACE, b"x" * 3_000_000, 413, "validation"),
        ("/models/no/such/v1/chat/completions", b"{}", 404, "not_found"),
    ],
)
def test_bad_input_in_the_huggingface_dialect(server: Server, path: str, body: bytes, status: int, type_: str) -> None:
    answer = httpx.post(server.url + path, content=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, type_)
    assert set(answer.json()) == {"error", "error_type"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", HUGGINGFACE])
def test_usage_in_a_stream_for_those_who_ask(server: Server, path: str) -> None:
    body = {"stream": True, "max_tokens": 5, "ignore_eos": True}
    *_, last = events(post(server, path, **body, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (37, 5)
    assert not any(chunk.get("usage") for chunk in events(post(server, path, **body)))


def test_other_routes(server: Server) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
    models = httpx.get(f"{server.url}/v1/models").json()
    assert [(model["id"], model["max_model_len"]) for model in models["data"]] == [(MODEL, 2048)]
    assert httpx.get(f"{server.url}/metrics").status_code == 404  # only on the admin port
    answer = httpx.get(f"{server.url}/v1/models/nope", headers={"x-request-id": "mine"})
    assert answer.status_code == 404
    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_clients_that_go_away_free_everything(server: Server) -> None:
    """Streaming and not, running and queued: counted on the engines' side."""
    blocks = server.metric("serving_engine_kv_blocks")

    def leave(number: int) -> None:
        stream = json.dumps(number % 2 == 0)
        body = '{"model": "%s", "stream": %s, "max_tokens": 1500, "ignore_eos": true, "messages": %s}' % (  # noqa: UP031
            MODEL,
            stream,
            json.dumps(QUESTION),
        )
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            time.sleep(1.0 + number * 0.02)

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(leave, range(40)))
    assert server.wait_until(3, "serving_engine_running_requests", [0, 0]) == [0, 0]
    assert server.wait_until(3, "serving_engine_waiting_requests", [0, 0]) == [0, 0]
    assert server.wait_until(3, "serving_engine_free_kv_blocks", blocks) == sorted(blocks)
    assert server.wait_until(1, "serving_leases", [0]) == [0]
    assert server.metric("serving_requests_total", 'outcome="cancelled"') == [40]


def test_the_admin_listeners_count(server: Server) -> None:
    """One for each process; every series has one exporter."""
    pages = server.pages()
    assert len(pages) == 3
    assert sum("serving_engines{" in page for page in pages) == 1
    assert sum("serving_engine_kv_blocks{" in page for page in pages) == 2
    served, answered = ("serving_requests_total", "completed"), ("serving_generation_tokens_total", MODEL)
    (before,), (tokens,) = server.metric(*served), server.metric(*answered)
    post(server, max_tokens=5, ignore_eos=True)
    assert server.metric(*served) == [before + 1]
    assert server.metric(*answered) == [tokens + 5]
    assert server.metric("serving_engine_fronts") == [1, 1]


def test_the_front_is_small(server: Server) -> None:
    (front,) = server.processes("ServeReplica:serving:front")
    assert front.memory_info().rss < 250 * 2**20
    assert "libtorch" not in Path(f"/proc/{front.pid}/maps").read_text()


def test_an_engine_killed_while_idle_is_replaced(server: Server) -> None:
    victim = server.processes("VLLM::EngineCore")[0]
    family = [victim, victim.parent(), *victim.children(recursive=True)]
    os.kill(victim.pid, signal.SIGKILL)
    assert server.wait_until(10, "serving_engines", [1]) == [1]
    _, left = psutil.wait_procs([process for process in family if process is not None], timeout=5)
    assert not left
    deadline = time.monotonic() + 60
    while server.metric("serving_engines") != [2]:
        assert time.monotonic() < deadline
        assert post(server, temperature=0, max_tokens=2).status_code == 200  # the other one answers
        time.sleep(0.5)
    assert len(server.processes("VLLM::EngineCore")) == 2
    assert len(server.metric("serving_engine_kv_blocks")) == 2


def test_the_printed_curl_line_works(server: Server) -> None:
    line = re.search(r"^curl .*$", server.log.read_text(), re.M)
    assert line is not None
    answer = subprocess.run(["bash", "-c", line[0] + " -s"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout)["object"] == "chat.completion"
