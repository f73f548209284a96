"""The answer's shape, streamed or not: keys, order, usage, logprobs (PROTOCOL sections 2 and 3)."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.conformance.wire import ALIAS, DIALECTS, MODEL, QUESTION, Api, Dialect, Json, completion, stream

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
both = pytest.mark.parametrize("dialect", DIALECTS)
USAGE: Json = {"stream_options": {"include_usage": True}}


@both
def test_whole(api: Api, dialect: Dialect) -> None:
    body = api.ok(dialect, max_tokens=5)
    (choice,) = body["choices"]
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert choice["message"]["content"]
    assert body["model"] == MODEL
    assert body["usage"]["completion_tokens"] == 5


@both
def test_ids_differ(api: Api, dialect: Dialect) -> None:
    headers = {"x-use-cache": "false"}
    assert len({api.ok(dialect, headers)["id"] for _ in range(5)}) == 5


@both
def test_created_is_now(api: Api, dialect: Dialect) -> None:
    assert abs(api.ok(dialect, {"x-use-cache": "false"})["created"] - time.time()) < 5


@both
def test_the_alias_is_named_as_it_was_asked_for(api: Api, dialect: Dialect) -> None:
    if dialect == "openai":
        assert api.ok("openai", model=ALIAS)["model"] == ALIAS
        return
    answer = api.client.post(api.path(dialect, ALIAS), json=api.body(dialect))
    assert completion(answer, dialect)["model"] == ALIAS


def test_huggingface_messages_have_content_and_role_alone(api: Api) -> None:
    """A18."""
    assert set(api.ok("huggingface", messages=[QUESTION[0] | {"name": "ann"}])["choices"][0]["message"]) == {
        "role",
        "content",
    }


def test_one_fingerprint(api: Api) -> None:
    assert len({api.ok(dialect)["system_fingerprint"] for dialect in DIALECTS for _ in range(2)}) == 1


@both
@pytest.mark.parametrize("tokens", [1, 2, 50])
def test_stream(api: Api, dialect: Dialect, tokens: int) -> None:
    found = api.stream(dialect, max_tokens=tokens)
    assert found.text() and found.finish_reason() == "length"
    assert not found.usage
    assert {chunk["model"] for chunk in found.chunks} == {MODEL}
    assert [choice["index"] for chunk in found.chunks for choice in chunk["choices"]] == [0] * len(found.chunks)


@both
@pytest.mark.parametrize("tokens", [1, 64])
def test_a_stream_says_what_the_whole_says(api: Api, dialect: Dialect, tokens: int) -> None:
    fields: dict[str, Any] = {"seed": 11, "max_tokens": tokens}
    assert api.ask(dialect, True, **fields) == api.ask(dialect, False, **fields)


def test_the_dialects_say_the_same(api: Api) -> None:
    found = [api.stream(dialect, temperature=0, max_tokens=64).text() for dialect in DIALECTS]
    assert found[0] == found[1]


def test_huggingface_chunks_all_have_the_role(api: Api) -> None:
    assert all(delta["role"] == "assistant" for delta in api.stream("huggingface", max_tokens=5).deltas())


def test_openai_has_the_role_once(api: Api) -> None:
    deltas = api.stream("openai", max_tokens=5).deltas()
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)


@both
def test_usage_in_a_stream(api: Api, dialect: Dialect) -> None:
    """A14."""
    found = api.stream(dialect, max_tokens=9, temperature=0, **USAGE)
    assert len(found.usage) == 1
    whole = api.ok(dialect, max_tokens=9, temperature=0)["usage"]
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert found.usage[0]["usage"][key] == whole[key]


@both
@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
def test_no_usage_in_a_stream_unless_asked(api: Api, dialect: Dialect, options: Any) -> None:
    found = api.stream(dialect, stream_options=options)
    assert not found.usage


@both
def test_a_stream_by_lines(api: Api, dialect: Dialect) -> None:
    """As huggingface_hub reads it: each line, and the last exactly so."""
    body = api.body(dialect, stream=True)
    with api.client.stream("POST", api.path(dialect), json=body) as answer:
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: {") for line in lines[:-1])
    assert lines[-1] == "data: [DONE]"


@both
def test_a_stream_arrives_in_pieces(api: Api, dialect: Dialect) -> None:
    body = api.body(dialect, stream=True, max_tokens=1000)
    with api.client.stream("POST", api.path(dialect), json=body) as answer:
        times = [time.monotonic() for _ in answer.iter_raw()]
    assert len(times) > 10 and times[-1] - times[0] > 0.1


# --------------------------------------------------------------------------------------------------------- logprobs


def check_logprobs(entries: list[Json], dialect: Dialect, top: int) -> None:
    extra = {"bytes"} if dialect == "openai" else set()
    for entry in entries:
        assert set(entry) == {"token", "logprob", "top_logprobs"} | extra
        assert len(entry["top_logprobs"]) == top
        assert all(set(other) == {"token", "logprob"} | extra for other in entry["top_logprobs"])
        values = [other["logprob"] for other in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        for one in (entry, *entry["top_logprobs"]):
            assert isinstance(one["token"], str)
            assert isinstance(one["logprob"], int | float) and one["logprob"] <= 0
            if dialect == "openai":
                assert one["bytes"] is None or all(0 <= byte < 256 for byte in one["bytes"])


LIMITS: list[tuple[Dialect, Any]] = [
    *(("huggingface", top) for top in (None, 0, 1, 2, 3, 4, 5)),
    *(("openai", top) for top in (None, 0, 1, 5, 10, 20)),
]


@pytest.mark.parametrize(("dialect", "top"), LIMITS)
@pytest.mark.parametrize("streamed", [False, True])
def test_logprobs(api: Api, dialect: Dialect, top: Any, streamed: bool) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": top, "max_tokens": 6, "temperature": 0}
    if streamed:
        found = api.stream(dialect, **fields)
        blocks = [choice["logprobs"] for choice in found.choices() if choice.get("logprobs")]
        assert all(set(block) == {"content"} for block in blocks)
        entries = [entry for block in blocks for entry in block["content"]]
        text = found.text()
    else:
        choice = api.ok(dialect, **fields)["choices"][0]
        assert set(choice["logprobs"]) == {"content"}
        entries = choice["logprobs"]["content"]
        text = choice["message"]["content"]
    assert len(entries) == 6
    check_logprobs(entries, dialect, top or 0)
    if "\ufffd" not in text:
        assert "".join(entry["token"] for entry in entries) == text


@both
def test_a_greedy_token_is_the_likeliest(api: Api, dialect: Dialect) -> None:
    body = api.ok(dialect, logprobs=True, top_logprobs=2, max_tokens=6, temperature=0)
    for entry in body["choices"][0]["logprobs"]["content"]:
        assert entry["token"] == entry["top_logprobs"][0]["token"]


def test_openai_bytes_spell_the_text(api: Api) -> None:
    choice = api.ok("openai", logprobs=True, max_tokens=40, temperature=0)["choices"][0]
    spelled = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert spelled.decode(errors="replace").rstrip("\ufffd") == choice["message"]["content"].rstrip("\ufffd")


@pytest.mark.parametrize("n", [2, 3])
def test_openai_logprobs_of_each_choice(api: Api, n: int) -> None:
    for choice in api.ok("openai", logprobs=True, top_logprobs=1, n=n, max_tokens=4)["choices"]:
        assert len(choice["logprobs"]["content"]) == 4


@both
@pytest.mark.parametrize("value", [False, None])
def test_no_logprobs_unless_asked(api: Api, dialect: Dialect, value: Any) -> None:
    assert api.ok(dialect, logprobs=value)["choices"][0]["logprobs"] is None
    assert all(choice.get("logprobs") is None for choice in api.stream(dialect, logprobs=value).choices())


# -------------------------------------------------------------------------------------------------------- x-dialect


def test_openai_on_the_huggingface_path(api: Api) -> None:
    """A2."""
    headers = {"x-dialect": "openai"}
    body = api.body("huggingface", model=MODEL)
    completion(api.client.post(api.path("huggingface"), json=body, headers=headers), "openai")
    stream(api.client.post(api.path("huggingface"), json=body | {"stream": True}, headers=headers), "openai")


def test_huggingface_on_the_openai_path(api: Api) -> None:
    headers = {"x-dialect": "huggingface"}
    body = api.body("openai")
    completion(api.client.post(api.path("openai"), json=body, headers=headers), "huggingface")
    stream(api.client.post(api.path("openai"), json=body | {"stream": True}, headers=headers), "huggingface")


@both
def test_a_dialect_may_be_named_on_its_own_path(api: Api, dialect: Dialect) -> None:
    api.ok(dialect, {"x-dialect": dialect})


@pytest.mark.parametrize("value", ["openai", "huggingface"])
def test_errors_are_in_the_dialect_that_was_asked_for(api: Api, value: str) -> None:
    for dialect in DIALECTS:
        answer: httpx.Response = api.chat(dialect, {"x-dialect": value}, model=MODEL, temperature=5)
        assert answer.status_code == (400 if value == "openai" else 422)
        assert isinstance(answer.json()["error"], dict if value == "openai" else str)
