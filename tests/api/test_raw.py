"""The endpoint without a task: `{"inputs", "parameters", "options"}`, as the Hub's snippets send it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.api import raw
from serving.api.chat import Chat
from serving.api.grammar import Json, Regex
from serving.core import FinishReason
from serving.errors import BadField
from serving.models.text import ModelText
from serving.settings import LimitSettings
from tests.api.hand import HELLO, RAW, Front, open_front

LIMITS = LimitSettings(huggingface_max_tokens=77)
SNIPPET = {"inputs": "Can you please let us know more details about your "}


@pytest.fixture
async def front(text: ModelText) -> AsyncIterator[Front]:
    async with open_front(text) as front:
        yield front


def parse(parameters: Any = None, options: Any = None, **body: Any) -> Chat:
    return raw.parse({"inputs": "Once", "parameters": parameters, "options": options} | body, "m", LIMITS)


async def post(front: Front, path: str = RAW, **body: Any) -> httpx.Response:
    return await front.client.post(path, json=body)


# --- what is asked ------------------------------------------------------------------------------------------------


def test_what_is_not_said_has_its_default() -> None:
    assert raw.parse({"inputs": "Once"}, "m", LIMITS) == Chat("m", [], prompt="Once", max_tokens=77, use_cache=True)
    nulls = dict.fromkeys(raw.PARAMETERS), dict.fromkeys(raw.OPTIONS)
    assert parse(*nulls) == parse({}, {}) == parse()


@pytest.mark.parametrize(
    ("name", "value", "field", "taken"),
    [
        ("max_new_tokens", 5, "max_tokens", 5),
        ("temperature", 0.5, "temperature", 0.5),
        ("top_p", 1, "top_p", 1.0),
        ("top_k", 3, "top_k", 3),
        ("repetition_penalty", 1.1, "repetition_penalty", 1.1),
        ("frequency_penalty", -1, "frequency_penalty", -1.0),
        ("seed", 2**64 - 1, "seed", 2**63 - 1),
        ("stop", ["a", "b"], "stop", ("a", "b")),
        ("stop", "a", "stop", ("a",)),
        ("do_sample", False, "temperature", 0.0),
        ("do_sample", True, "temperature", None),
        ("return_full_text", True, "returns_prompt", True),
        ("grammar", {"type": "regex", "value": "a+"}, "shape", Regex("a+")),
        ("grammar", {"type": "json", "value": {"type": "object"}}, "shape", Json({"type": "object"})),
    ],
)
def test_every_parameter_is_taken(name: str, value: Any, field: str, taken: Any) -> None:
    chat = parse({name: value})
    assert getattr(chat, field) == taken
    assert parse({"watermark": True, "best_of": 1, name: value}) == chat  # others are ignored


def test_a_parameter_that_no_test_knows_does_not_exist() -> None:
    mark = next(m for m in test_every_parameter_is_taken.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == set(raw.PARAMETERS)


def test_not_to_sample_wins_over_a_temperature() -> None:
    assert parse({"do_sample": False, "temperature": 0.7}).temperature == 0.0


def test_options_say_what_headers_say() -> None:
    assert parse(None, {"use_cache": False}).use_cache is False
    assert parse(None, {"wait_for_model": True}).wait_for_model is True
    assert parse(None, {"use_gpu": True}) == parse()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": None}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": ["a", "b"]}, "inputs"),
        ({"inputs": {"text": "a"}}, "inputs"),
        ({"inputs": "a\0"}, "inputs"),
        ({"parameters": []}, "parameters"),
        ({"parameters": "x"}, "parameters"),
        ({"options": 1}, "options"),
        ({"options": {"use_cache": "no"}}, "options.use_cache"),
        ({"options": {"wait_for_model": 1}}, "options.wait_for_model"),
        ({"options": {"use_gpu": 1}}, "options.use_gpu"),
        ({"stream": True}, "stream"),
        ({"stream": "yes"}, "stream"),
        ({"parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        ({"parameters": {"temperature": 3}}, "parameters.temperature"),
        ({"parameters": {"top_p": 0}}, "parameters.top_p"),
        ({"parameters": {"top_k": -1}}, "parameters.top_k"),
        ({"parameters": {"repetition_penalty": 0}}, "parameters.repetition_penalty"),
        ({"parameters": {"frequency_penalty": 9}}, "parameters.frequency_penalty"),
        ({"parameters": {"seed": -1}}, "parameters.seed"),
        ({"parameters": {"stop": ["a"] * 5}}, "parameters.stop"),
        ({"parameters": {"stop": ["a", ""]}}, "parameters.stop[1]"),
        ({"parameters": {"do_sample": 1}}, "parameters.do_sample"),
        ({"parameters": {"return_full_text": "no"}}, "parameters.return_full_text"),
        ({"parameters": {"grammar": "a+"}}, "parameters.grammar"),
        ({"parameters": {"grammar": {"type": "lark", "value": "x"}}}, "parameters.grammar.type"),
        ({"parameters": {"grammar": {"type": "regex"}}}, "parameters.grammar.value"),
        ({"parameters": {"grammar": {"type": "regex", "value": "("}}}, "parameters.grammar"),
        ({"inputs": "word " * 600}, "inputs"),
    ],
)
async def test_what_is_wrong_is_named(front: Front, body: dict[str, Any], field: str) -> None:
    answer = await post(front, **{"inputs": "Once"} | body)
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "validation"
    assert answer.json()["error"].startswith(f"Input validation error: {field}: ")
    assert front.scheduler.requests == []


def test_a_stream_that_is_not_wanted_is_no_mistake() -> None:
    assert parse(stream=False) == parse(stream=None) == parse()


def test_errors_are_the_parsers_own() -> None:
    with pytest.raises(BadField) as caught:
        parse({"top_p": 2})
    assert caught.value.field == "parameters.top_p"


# --- what is answered ---------------------------------------------------------------------------------------------


async def test_the_answer_to_the_hubs_own_snippet(front: Front) -> None:
    answer = await post(front, **SNIPPET)
    assert (answer.status_code, answer.json()) == (200, [{"generated_text": "Hello wörld"}])
    (request,) = front.scheduler.requests
    assert request.sampling.max_tokens == 100
    assert request.grammar is None


async def test_the_inputs_are_the_whole_prompt(front: Front, text: ModelText) -> None:
    await post(front, inputs="<|im_start|>Once upon")
    (request,) = front.scheduler.requests
    assert request.prompt == text.encode_raw("<|im_start|>Once upon")


async def test_the_prompt_is_repeated_for_those_who_ask(front: Front) -> None:
    whole = await post(front, inputs="Once ", parameters={"return_full_text": True})
    assert whole.json() == [{"generated_text": "Once Hello wörld"}]
    part = await post(front, inputs="Once ", parameters={"return_full_text": False})
    assert part.json() == [{"generated_text": "Hello wörld"}]


async def test_a_stop_string_is_not_part_of_the_answer(front: Front) -> None:
    answer = await post(front, inputs="Once", parameters={"stop": [" w"]})
    assert answer.json() == [{"generated_text": "Hello"}]


async def test_an_answer_that_was_cut_off_is_an_answer(front: Front) -> None:
    front.scheduler.script = front.scheduler.say("Hello", FinishReason.LENGTH)
    assert (await post(front, inputs="Once")).json() == [{"generated_text": "Hello"}]


async def test_a_grammar_goes_to_the_engine(front: Front) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    await post(front, inputs="Once", parameters={"grammar": {"type": "json", "value": schema}})
    await post(front, inputs="Once", parameters={"grammar": {"type": "regex", "value": "[ab]+"}})
    json_grammar, regex = (request.grammar for request in front.scheduler.requests)
    assert json_grammar is not None
    assert '"age"' in json_grammar.text
    assert regex is not None
    assert "/[ab]+/" in regex.text


@pytest.mark.parametrize("path", [RAW, RAW + "/", "/models/alias"])
async def test_the_same_path_takes_chats(front: Front, path: str) -> None:
    answer = await post(front, path, messages=HELLO)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello wörld"
    stream = await post(front, path, messages=HELLO, stream=True)
    assert stream.text.endswith("data: [DONE]\n\n")


async def test_neither_inputs_nor_messages_asks_for_messages(front: Front) -> None:
    answer = await post(front)
    assert (answer.status_code, answer.json()["error"]) == (422, "Input validation error: messages: is required")


async def test_inputs_are_not_for_the_chats_own_path(front: Front) -> None:
    answer = await post(front, RAW + "/v1/chat/completions", inputs="Once")
    assert answer.status_code == 422


async def test_the_snippets_own_model_does_not_exist(front: Front) -> None:
    answer = await post(front, "/models/undefined", **SNIPPET)
    expected = {"error": "Model undefined does not exist", "error_type": "not_found"}
    assert (answer.status_code, answer.json()) == (404, expected)
