"""The six families of the chat-completion page: true architectures and templates, real vLLM, one front.

Their weights are random, so only what a grammar enforces, and what a template renders, is known.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import psutil
import pytest
import yaml

from serving.models.families import FAMILIES
from tests import tiny_models
from tests.server import STOP_SECONDS, Server, free_port

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(600)]

START_SECONDS = 400  # two cores that also do other things took 130
# Six engines that each take all cores would wait for each other.
ONE_THREAD_EACH = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
IDS = {family.name: family.example for family in FAMILIES if family.name in tiny_models.TINY}
EACH = pytest.mark.parametrize("model", IDS.values(), ids=IDS)
PATHS = ("openai", "huggingface")
BOTH = pytest.mark.parametrize("dialect", PATHS)

HELLO = [{"role": "user", "content": "What is the capital of France?"}]
BOUNDED = {  # whatever the weights, an answer of a few tokens
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "places": {"type": "array", "items": {"enum": ["Köln", "Oslo", "Rome"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["unit", "days", "places"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather, hour by hour", "parameters": BOUNDED},
}
SIDES = {"type": "object", "properties": {"sides": {"enum": [6, 20]}}, "required": ["sides"]}
DICE = {"type": "function", "function": {"name": "throw_dice", "parameters": SIDES}}
SCHEMAS = {"get_weather": BOUNDED, "throw_dice": SIDES}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("families")
    settings = {
        "http": {"port": free_port()},
        "admin": {"port": free_port()},
        "models": [{"name": IDS[name], "source": str(tiny_models.prepare(name))} for name in IDS],
        "engine": {"dtype": "float32", "max_model_len": 1024, "kv_cache_gib": 0.25, "max_num_seqs": 16},
    }
    (directory / "serving.yaml").write_text(yaml.safe_dump(settings))
    with serve(directory, settings["http"]["port"], settings["admin"]["port"]) as server:
        yield server


@contextmanager
def serve(directory: Path, port: int, admin_port: int) -> Iterator[Server]:
    """`serving up` with the directory's settings, once every model has its engine; afterwards all of it is gone."""
    log = directory / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", "up", "--config", str(directory / "serving.yaml")],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | ONE_THREAD_EACH,
        )
    server = Server(process, port, admin_port, log)
    family: list[psutil.Process] = []
    status: int | None = None
    try:
        wait_for_all(server)
        yield server
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(2 * STOP_SECONDS)
        _, left = psutil.wait_procs(family, timeout=2)
        for survivor in left:
            survivor.kill()
        if process.poll() is None:
            process.kill()
    assert status == 0, f"`serving up` ended with {status}:\n{log.read_text()[-3000:]}"
    assert not left, f"left behind: {left}"


def wait_for_all(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if all(health(server, model) == 200 for model in IDS.values()):
                return
        time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{server.log.read_text()[-3000:]}")


def health(server: Server, model: str) -> int:
    return httpx.get(f"{server.url}/models/{model}/health", timeout=60).status_code


def post(server: Server, dialect: str, model: str, **body: Any) -> httpx.Response:
    path = "/v1/chat/completions" if dialect == "openai" else f"/models/{model}/v1/chat/completions"
    body = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 120} | body
    return httpx.post(server.url + path, json=body, timeout=120)


def answer(server: Server, dialect: str, model: str, **body: Any) -> Any:
    got = post(server, dialect, model, **body)
    assert got.status_code == 200, got.text
    return got.json()


def streamed(server: Server, dialect: str, model: str, **body: Any) -> dict[str, Any]:
    """What a client puts together: the text, the whole calls, whether one was cut off, and why it ended."""
    got = post(server, dialect, model, stream=True, **body)
    assert got.status_code == 200, got.text
    *events, done, rest = got.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    text, calls, finish = "", [], None
    for event in events:
        (choice,) = json.loads(event.removeprefix("data: "))["choices"]
        assert finish is None, "something came after the end"
        text += choice["delta"].get("content") or ""
        parts = choice["delta"].get("tool_calls", [])
        for part in [parts] if isinstance(parts, dict) else parts:
            if part["function"].get("name"):
                calls.append([part["function"]["name"], ""])
            assert part["index"] == len(calls) - 1
            calls[-1][1] += part["function"]["arguments"]
        finish = choice["finish_reason"]
    cut = bool(calls) and not _is_json(calls[-1][1])
    made = [(name, json.loads(raw)) for name, raw in (calls[:-1] if cut else calls)]
    return {"text": text, "calls": made, "cut": cut, "finish": finish}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def whole(server: Server, dialect: str, model: str, **body: Any) -> dict[str, Any]:
    """The same of an answer that is not streamed."""
    (choice,) = answer(server, dialect, model, **body)["choices"]
    calls = []
    for call in choice["message"].get("tool_calls", []):
        arguments = call["function"]["arguments"]
        assert isinstance(arguments, str if dialect == "openai" else dict)
        assert isinstance(call["id"], str if dialect == "openai" else int)
        calls.append((call["function"]["name"], json.loads(arguments) if dialect == "openai" else arguments))
    text = choice["message"].get("content") or ""
    return {"text": text, "calls": calls, "cut": False, "finish": choice["finish_reason"]}


def check_calls(calls: list[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])


# --- all of them --------------------------------------------------------------------------------------------------


def test_six_models_are_listed(families: Server) -> None:
    listed = httpx.get(f"{families.url}/v1/models").json()["data"]
    assert [(card["id"], card["max_model_len"]) for card in listed] == [(name, 1024) for name in IDS.values()]
    for name in IDS.values():
        assert httpx.get(f"{families.url}/status/{name}").json()["loaded"] is True


@EACH
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "seed": 7}], ids=["greedy", "seeded"])
def test_a_chat_in_both_dialects_streamed_or_not_is_the_same_text(
    families: Server, model: str, sampling: dict[str, Any]
) -> None:
    body = {"max_tokens": 24} | sampling
    expected = whole(families, "openai", model, **body)
    assert expected["text"] or "seed" not in sampling  # greedy noise may be one special token, over and over
    for dialect in PATHS:
        assert whole(families, dialect, model, **body) == expected
        assert streamed(families, dialect, model, **body) == expected
    usage = answer(families, "huggingface", model, **body)["usage"]
    assert usage["completion_tokens"] == 24 or expected["finish"] == "stop"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@EACH
@BOTH
def test_logprobs_have_the_text_of_their_tokens(families: Server, model: str, dialect: str) -> None:
    body = answer(families, dialect, model, max_tokens=8, logprobs=True, top_logprobs=2)
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == body["usage"]["completion_tokens"]
    for token in content:
        assert token["logprob"] <= 0
        assert token["top_logprobs"][0] == {key: token[key] for key in token if key != "top_logprobs"}  # it is greedy


# --- tools --------------------------------------------------------------------------------------------------------


@EACH
@BOTH
def test_a_named_tool_is_called_with_valid_arguments(families: Server, model: str, dialect: str) -> None:
    name = {"name": "get_weather"}
    choice = {"type": "function", "function": name} if dialect == "openai" else {"FunctionName": "get_weather"}
    body = {"tools": [DICE, WEATHER], "tool_choice": choice}
    once = whole(families, dialect, model, **body)
    assert [called for called, _ in once["calls"]] == ["get_weather"]
    check_calls(once["calls"])
    assert (once["text"], once["finish"]) == ("", "stop")
    assert streamed(families, dialect, model, **body) == once
    hot = whole(families, dialect, model, **body, temperature=1.5, seed=3)
    check_calls(hot["calls"])


@EACH
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_required_is_one_valid_call_where_one_is_allowed(families: Server, model: str, stream: bool) -> None:
    body = {"tools": [DICE, WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    found = (streamed if stream else whole)(families, "openai", model, **body)
    assert len(found["calls"]) == 1
    check_calls(found["calls"])
    assert (found["text"], found["finish"]) == ("", "tool_calls")


@EACH
def test_required_is_valid_calls_one_after_the_other_where_noise_knows_no_end(families: Server, model: str) -> None:
    """The huggingface dialect has no `parallel_tool_calls`: random weights may call until their tokens are used up."""
    body = {"tools": [DICE], "tool_choice": "required", "max_tokens": 150}
    found = streamed(families, "huggingface", model, **body)
    assert found["calls"]
    assert found["text"] == ""
    check_calls(found["calls"])
    # Not streamed, arguments are an object: of a call that was cut off nothing is told.
    (choice,) = answer(families, "huggingface", model, **body)["choices"]
    calls = choice["message"]["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == found["calls"]
    assert [call["id"] for call in calls] == list(range(len(calls)))
    assert choice["finish_reason"] == found["finish"]
    assert found["finish"] == "length" or not found["cut"]


@EACH
def test_auto_is_text_or_valid_calls(families: Server, model: str) -> None:
    for seed in (1, 2, 3):
        body = {"tools": [DICE], "max_tokens": 40, "seed": seed, "temperature": 1}
        found = streamed(families, "openai", model, **body)
        check_calls(found["calls"])
        assert found["text"] or found["calls"] or found["cut"] or found["finish"] == "stop"
        if not found["cut"]:
            assert whole(families, "openai", model, **body) == found


@EACH
@BOTH
def test_tools_that_may_not_be_called_are_not_shown(families: Server, model: str, dialect: str) -> None:
    plain = answer(families, dialect, model, max_tokens=4)
    none = answer(families, dialect, model, max_tokens=4, tools=[WEATHER], tool_choice="none")
    auto = answer(families, dialect, model, max_tokens=4, tools=[WEATHER], tool_choice="auto")
    assert none["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert auto["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 40
    assert none["choices"] == plain["choices"]


def past(dialect: str, identifier: Any, *, with_id: bool = True) -> list[dict[str, Any]]:
    """A question, a call, its result, in the dialect's own shapes."""
    arguments: Any = {"unit": "celsius", "days": 3, "places": ["Köln"]}
    if dialect == "openai":
        arguments = json.dumps(arguments)
    call = {"id": identifier, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    result = {"role": "tool", "name": "get_weather", "content": "21.5 degrees and a little rain"}
    if with_id:
        result["tool_call_id"] = identifier
    return [*HELLO, {"role": "assistant", "tool_calls": [call]}, result]


@EACH
@pytest.mark.parametrize(
    ("dialect", "identifier", "with_id"),
    [
        ("openai", "call_abc", True),
        ("openai", "chatcmpl-tool-0123456789abcdef", True),
        ("huggingface", 0, True),
        ("huggingface", 0, False),  # the page's messages have no such key
        ("huggingface", "call_abc", True),
    ],
)
def test_a_tools_result_goes_back_into_the_conversation(
    families: Server, model: str, dialect: str, identifier: Any, with_id: bool
) -> None:
    chat = past(dialect, identifier, with_id=with_id)
    tokens = []
    for end in (1, 2, 3):
        body = answer(families, dialect, model, messages=chat[:end], max_tokens=4, tools=[WEATHER])
        tokens.append(body["usage"]["prompt_tokens"])
    asked, called, answered = tokens
    assert called > asked + 8  # the call was rendered, and so was its result
    assert answered > called + 5
    assert streamed(families, dialect, model, messages=chat, max_tokens=4)["finish"] in ("length", "stop")


@EACH
def test_ids_go_on_where_the_conversation_left_off(families: Server, model: str) -> None:
    body = {"messages": past("huggingface", 4), "tools": [WEATHER], "tool_choice": "get_weather"}
    (call,) = answer(families, "huggingface", model, **body)["choices"][0]["message"]["tool_calls"]
    assert call["id"] == 5
    assert call["function"]["description"] == "Weather, hour by hour"


# --- structured output --------------------------------------------------------------------------------------------


@EACH
@BOTH
def test_an_answer_is_valid_against_its_schema(families: Server, model: str, dialect: str) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": BOUNDED}}
    if dialect == "huggingface":
        shape = {"type": "json", "value": BOUNDED}
    once = whole(families, dialect, model, response_format=shape)
    jsonschema.validate(json.loads(once["text"]), BOUNDED)
    assert once["finish"] == "stop"
    assert streamed(families, dialect, model, response_format=shape) == once


@EACH
def test_an_answer_matches_its_regular_expression(families: Server, model: str) -> None:
    pattern = r"(yes|no), [A-Z][a-z]{3,9}[.!] \d{2}°"
    shape = {"type": "regex", "value": pattern}
    for temperature in (0, 1.5):
        once = whole(families, "huggingface", model, response_format=shape, temperature=temperature)
        assert re.fullmatch(pattern, once["text"])
    greedy = whole(families, "huggingface", model, response_format=shape)
    assert streamed(families, "huggingface", model, response_format=shape) == greedy


# --- what each is like --------------------------------------------------------------------------------------------

SYSTEM = [{"role": "system", "content": "Answer like a pirate, in one short sentence."}, *HELLO]


@BOTH
def test_gemma_refuses_a_system_message(families: Server, dialect: str) -> None:
    for stream in (False, True):
        got = post(families, dialect, IDS["gemma-2"], messages=SYSTEM, stream=stream)
        error = got.json()["error"]
        if dialect == "openai":
            assert (got.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "messages")
            error = error["message"]
        else:
            assert (got.status_code, got.json()["error_type"]) == (422, "template_error")
        assert "System role not supported" in error


@pytest.mark.parametrize("name", [name for name in IDS if name != "gemma-2"])
def test_others_take_a_system_message_and_one_drops_it(families: Server, name: str) -> None:
    without = answer(families, "openai", IDS[name], max_tokens=1)["usage"]["prompt_tokens"]
    tokens = answer(families, "openai", IDS[name], max_tokens=1, messages=SYSTEM)["usage"]["prompt_tokens"]
    if name == "numinamath":
        assert tokens == without
    else:
        assert tokens > without + 5


@pytest.mark.parametrize("name", ["gemma-2", "phi-3", "mistral-nemo"])
def test_roles_that_do_not_alternate_are_refused(families: Server, name: str) -> None:
    got = post(families, "huggingface", IDS[name], messages=[*HELLO, *HELLO])
    assert (got.status_code, got.json()["error_type"]) == (422, "template_error")


@EACH
def test_a_prompt_that_fills_the_context_is_refused(families: Server, model: str) -> None:
    got = post(families, "huggingface", model, messages=[{"role": "user", "content": "What is the capital? " * 400}])
    assert (got.status_code, got.json()["error_type"]) == (422, "validation")
    assert "context holds 1024" in got.json()["error"]


@EACH
def test_raw_text_goes_in_without_a_template(families: Server, model: str) -> None:
    body = {"inputs": "Can you please let us know more details about your ", "parameters": {"max_new_tokens": 8}}
    got = httpx.post(f"{families.url}/models/{model}", json=body, timeout=60)
    ((key, text),) = got.json()[0].items()
    assert (key, type(text)) == ("generated_text", str)
    assert int(got.headers["x-prompt-tokens"]) < 40


# --- one of them alone --------------------------------------------------------------------------------------------


def test_one_models_failure_is_not_the_others(families: Server) -> None:
    """The last test: an engine dies in the middle of its answer, and comes back."""
    victim, *others = IDS.values()
    with httpx.Client(timeout=60) as client:
        body = {"messages": HELLO, "model": victim, "max_tokens": 900, "stream": True}
        with client.stream("POST", f"{families.url}/v1/chat/completions", json=body | {"ignore_eos": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            _kill_engine_of(families, victim)
            *_, failure, _, done, _ = list(lines)
    assert json.loads(failure.removeprefix("data: "))["error"]["type"] == "server_error"
    assert done == "data: [DONE]"
    assert health(families, victim) == 503
    assert httpx.get(f"{families.url}/ready").status_code == 200
    for model in others:
        assert answer(families, "openai", model, max_tokens=4)["choices"]
    assert post(families, "huggingface", victim).json()["error_type"] == "loading"
    listed = httpx.get(f"{families.url}/v1/models").json()["data"]
    assert [card["id"] for card in listed] == list(IDS.values())
    deadline = time.monotonic() + 120
    while health(families, victim) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert answer(families, "openai", victim, max_tokens=4)["choices"]


def _kill_engine_of(server: Server, model: str) -> None:
    """The core's process is a child of its replica, which is named after the model's place in the settings."""
    place = list(IDS.values()).index(model)
    (replica,) = server.processes(f"ReplicaActor:serving:engine-{place}") or server.processes(f"serving:engine-{place}")
    for child in replica.children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()):
            child.kill()
