"""The request's plain fields: accepted values, limits, nulls, wrong types (PROTOCOL section 1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.wire import CONTEXT, DIALECTS, MODEL, OMIT, QUESTION, Api, Dialect, completion, refused

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
both = pytest.mark.parametrize("dialect", DIALECTS)

LONG = "word " * 1900

# ------------------------------------------------------------------------------------------------- in both dialects


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("frequency_penalty", value) for value in (-2, -2.0, 0, 1.5, 2, None)),
        *(("presence_penalty", value) for value in (-2, -2.0, 0, 1.5, 2, None)),
        *(("temperature", value) for value in (0, 0.0, 0.7, 1, 2, 2.0, None)),
        *(("top_p", value) for value in (0.000001, 0.5, 1, 1.0, None)),
        *(("seed", value) for value in (0, 1, 2**31, 2**63 - 1, None)),
        *(("stop", value) for value in ("x", ["x"], ["a", "b", "c", "d"], [], None)),
        *(("stream", value) for value in (False, None)),
        *(("logprobs", value) for value in (False, True, None)),
        *(("top_logprobs", value) for value in (0, None)),
        *(("max_tokens", value) for value in (1, 2)),
        ("tools", None),
        ("tool_choice", None),
        ("response_format", {"type": "text"}),
        ("stream_options", None),
    ],
)
def test_accepted(api: Api, dialect: Dialect, name: str, value: Any) -> None:
    api.ok(dialect, **{name: value})


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("frequency_penalty", value) for value in (-2.001, 2.001, 3, "much", [], {})),
        *(("presence_penalty", value) for value in (-2.001, 2.001, 3, "much", [], {})),
        *(("temperature", value) for value in (-0.001, 2.001, 5, "hot", [], {})),
        *(("top_p", value) for value in (0, 0.0, -0.5, 1.001, "some", [], {})),
        *(("max_tokens", value) for value in (0, -1, 1.5, "some", [], {})),
        *(("seed", value) for value in (2**64, 1.5, "some", [], {})),
        *(("stop", value) for value in (list("abcde"), [""], "", ["a", ""], [1], [None], 1, {"a": "b"})),
        *(("stream", value) for value in ("banana", [], {}, 2)),
        *(("logprobs", value) for value in ("true", "banana", 1, 0, [], {})),
        *(("messages", value) for value in ("hello", {}, 5, None, [5], ["hello"], [None], [[]])),
        *(("tools", value) for value in ("f", {}, 5, [5], [None], ["f"])),
        *(("response_format", value) for value in ("json", 5, [], {}, {"type": "banana"}, {"type": None})),
        *(("stream_options", value) for value in (5, "usage", [])),
    ],
)
def test_refused(api: Api, dialect: Dialect, name: str, value: Any) -> None:
    refused(api.chat(dialect, **{name: value}), dialect, names=name)


@both
def test_messages_are_required(api: Api, dialect: Dialect) -> None:
    refused(api.chat(dialect, messages=OMIT), dialect, names="messages")


@both
@pytest.mark.parametrize("value", [-1, 1.5, "many", [], {}])
def test_top_logprobs_of_the_wrong_type_or_below_zero(api: Api, dialect: Dialect, value: Any) -> None:
    refused(api.chat(dialect, logprobs=True, top_logprobs=value), dialect, names="top_logprobs")


@both
@pytest.mark.parametrize("logprobs", [OMIT, False, None])
def test_top_logprobs_need_logprobs(api: Api, dialect: Dialect, logprobs: Any) -> None:
    refused(api.chat(dialect, logprobs=logprobs, top_logprobs=1), dialect, names="logprobs")


@both
@pytest.mark.parametrize("logprobs", [OMIT, False, None, True])
def test_no_top_logprobs_need_nothing(api: Api, dialect: Dialect, logprobs: Any) -> None:
    """A13."""
    api.ok(dialect, logprobs=logprobs, top_logprobs=0)


@both
def test_zero_temperature_is_greedy(api: Api, dialect: Dialect) -> None:
    texts = {api.ask(dialect, False, temperature=0, max_tokens=20, seed=seed).content for seed in (1, 2, 3)}
    assert len(texts) == 1


@both
def test_a_seed_decides_the_text(api: Api, dialect: Dialect) -> None:
    headers = {"x-use-cache": "false"}
    texts = [api.ok(dialect, headers, seed=7, max_tokens=20)["choices"][0]["message"]["content"] for _ in range(3)]
    assert texts[0] and len(set(texts)) == 1


def test_a_seed_decides_the_same_text_in_both_dialects(api: Api) -> None:
    first, second = (api.ask(dialect, False, seed=7, max_tokens=20).content for dialect in DIALECTS)
    assert first == second


@both
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("tokens", [1, 7, 150])
def test_max_tokens_and_its_alias(api: Api, dialect: Dialect, name: str, tokens: int) -> None:
    body = api.ok(dialect, **({"max_tokens": OMIT} | {name: tokens}))
    assert body["usage"]["completion_tokens"] == tokens
    assert body["choices"][0]["finish_reason"] == "length"


@both
@pytest.mark.parametrize("value", [0, -1, "some"])
def test_the_alias_of_max_tokens_has_its_limits(api: Api, dialect: Dialect, value: Any) -> None:
    refused(api.chat(dialect, max_tokens=OMIT, max_completion_tokens=value), dialect, names="max")


@both
def test_max_tokens_are_capped_at_the_rest_of_the_context(api: Api, dialect: Dialect) -> None:
    body = api.ok(dialect, messages=[{"role": "user", "content": LONG}], max_tokens=100_000)
    assert body["usage"]["total_tokens"] == CONTEXT
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("value", [OMIT, None])
def test_huggingface_max_tokens_are_100_by_default(api: Api, value: Any) -> None:
    """A10."""
    assert api.ok("huggingface", max_tokens=value)["usage"]["completion_tokens"] == 100


def test_huggingface_default_max_tokens_are_capped_too(api: Api) -> None:
    body = api.ok("huggingface", messages=[{"role": "user", "content": LONG + "word " * 70}], max_tokens=OMIT)
    assert body["usage"]["completion_tokens"] < 100 and body["usage"]["total_tokens"] == CONTEXT


@pytest.mark.parametrize("value", [OMIT, None])
def test_openai_max_tokens_are_the_rest_of_the_context_by_default(api: Api, value: Any) -> None:
    """A10."""
    body = api.ok("openai", messages=[{"role": "user", "content": "word " * 1700}], max_tokens=value)
    assert body["usage"]["total_tokens"] == CONTEXT
    assert body["usage"]["completion_tokens"] > 100


@both
def test_a_prompt_longer_than_the_context(api: Api, dialect: Dialect) -> None:
    refused(api.chat(dialect, messages=[{"role": "user", "content": "word " * 3000}]), dialect)


@both
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_the_stop_text_ends_the_answer_and_is_no_part_of_it(
    api: Api, dialect: Dialect, streamed: bool, count: int
) -> None:
    """A5, A6."""
    whole = api.ask(dialect, streamed, temperature=0, max_tokens=40).content or ""
    text = whole[len(whole) // 2 :][:6]  # in the middle, and likely across tokens
    stop = ["never\u2603", "neither\u2603", text, "nor this\u2603"][-count:] if count == 4 else [text]
    said = api.ask(dialect, streamed, temperature=0, max_tokens=40, stop=stop)
    assert said.content == whole[: whole.index(text)]
    assert said.finish_reason == ("stop_sequence" if dialect == "huggingface" else "stop")


@both
def test_a_bare_stop_string(api: Api, dialect: Dialect) -> None:
    whole = api.ask(dialect, False, temperature=0, max_tokens=40).content or ""
    said = api.ask(dialect, False, temperature=0, max_tokens=40, stop=whole[20:26])
    assert said.content == whole[: whole.index(whole[20:26])]


# ------------------------------------------------------------------------------------------------- huggingface only


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("frequency_penalty", "presence_penalty") for value in ("0.5", True)),
        *((name, value) for name in ("temperature", "top_p") for value in ("0.5", True)),
        *((name, value) for name in ("max_tokens", "seed") for value in ("5", True)),
        *(("stream", value) for value in ("true", "false", "yes", 1, 0)),
        ("seed", -1),
        *(("tool_prompt", value) for value in (5, True, [], {})),
    ],
)
def test_huggingface_types_are_strict(api: Api, name: str, value: Any) -> None:
    refused(api.chat("huggingface", **{name: value}), "huggingface", names=name)


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_huggingface_seeds_have_64_bits(api: Api, seed: int) -> None:
    texts = {api.ask("huggingface", False, seed=seed, max_tokens=20).content for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize("value", ["1", True])
def test_huggingface_top_logprobs_are_integers(api: Api, value: Any) -> None:
    refused(api.chat("huggingface", logprobs=True, top_logprobs=value), "huggingface", names="top_logprobs")


@pytest.mark.parametrize("value", [6, 20])
def test_huggingface_has_five_top_logprobs(api: Api, value: int) -> None:
    refused(api.chat("huggingface", logprobs=True, top_logprobs=value), "huggingface", names="top_logprobs")


@pytest.mark.parametrize("value", [OMIT, None, "tgi", "dummy", "http://127.0.0.1:1/models/x", MODEL, "no such model"])
def test_huggingface_ignores_the_model(api: Api, value: Any) -> None:
    assert api.ok("huggingface", model=value)["model"] == MODEL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n", value) for value in (1, 3, 100, "many")),
        *(("logit_bias", value) for value in ({"1": 5}, "x")),
        *(("user", value) for value in ("ann", 5)),
        *(("parallel_tool_calls", value) for value in (True, False, "x")),
        *(("top_k", value) for value in (5, "x")),
        *(("min_p", value) for value in (0.5, "x")),
        *(("repetition_penalty", value) for value in (1.5, "x")),
        *(("min_tokens", value) for value in (1, "x")),
        *(("ignore_eos", value) for value in (True, "x")),
        *(("stop_token_ids", value) for value in ([1], "x")),
        *(("skip_special_tokens", value) for value in (True, "x")),
        *(("chat_template_kwargs", value) for value in ({"a": 1}, "x")),
    ],
)
def test_huggingface_ignores(api: Api, name: str, value: Any) -> None:
    body = api.ok("huggingface", temperature=0, max_tokens=3, **{name: value})
    assert body["choices"] == api.ok("huggingface", temperature=0, max_tokens=3)["choices"]


# ------------------------------------------------------------------------------------------------------ openai only


@pytest.mark.parametrize("value", [OMIT, None, 5, [], {}])
def test_openai_needs_a_model(api: Api, value: Any) -> None:
    refused(api.chat("openai", model=value), "openai", names="model")


@pytest.mark.parametrize("value", ["gpt-4", "", "HuggingFaceTB", MODEL + "/x", "../" + MODEL])
def test_openai_unknown_model(api: Api, value: str) -> None:
    answer = api.chat("openai", model=value)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("seed", [-1, -(2**63)])
def test_openai_seeds_are_int64(api: Api, seed: int) -> None:
    api.ok("openai", seed=seed)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_openai_seeds_beyond_int64(api: Api, seed: int) -> None:
    refused(api.chat("openai", seed=seed), "openai", names="seed")


@pytest.mark.parametrize("value", [21, 100])
def test_openai_has_twenty_top_logprobs(api: Api, value: int) -> None:
    refused(api.chat("openai", logprobs=True, top_logprobs=value), "openai", names="top_logprobs")


@pytest.mark.parametrize("value", ["text", "", None, 5, {"a": 1}])
def test_openai_ignores_the_tool_prompt(api: Api, value: Any) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 3}
    assert api.ok("openai", tool_prompt=value, **fields)["usage"] == api.ok("openai", **fields)["usage"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {"1": 5}),
        ("parallel_tool_calls", True),
        ("parallel_tool_calls", False),
        ("top_k", 5),
        ("min_p", 0.5),
        ("repetition_penalty", 1.5),
        ("min_tokens", 1),
        ("ignore_eos", True),
        ("stop_token_ids", [1]),
        ("skip_special_tokens", True),
        ("chat_template_kwargs", {"a": 1}),
        ("store", False),
        ("metadata", {"a": "b"}),
        ("a_field_of_next_year", [1]),
    ],
)
def test_openai_ignores(api: Api, name: str, value: Any) -> None:
    body = api.ok("openai", temperature=0, max_tokens=3, **{name: value})
    assert body["choices"] == api.ok("openai", temperature=0, max_tokens=3)["choices"]


@pytest.mark.parametrize("value", ["ann", None])
def test_openai_takes_a_user(api: Api, value: Any) -> None:
    api.ok("openai", user=value)


@pytest.mark.parametrize("n", range(1, 9))
def test_openai_n(api: Api, n: int) -> None:
    body = api.ok("openai", n=n, max_tokens=3, seed=5)
    assert [choice["index"] for choice in body["choices"]] == list(range(n))
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * n
    assert body["usage"]["completion_tokens"] == 3 * n


def test_openai_n_null_is_one(api: Api) -> None:
    assert len(api.ok("openai", n=None)["choices"]) == 1


@pytest.mark.parametrize("n", [0, -1, 9, 128, 1.5, "many", [], {}])
def test_openai_n_out_of_range(api: Api, n: Any) -> None:
    refused(api.chat("openai", n=n), "openai", names="n")


@pytest.mark.parametrize("n", [1, 2, 8])
def test_openai_n_streamed(api: Api, n: int) -> None:
    found = api.stream("openai", n=n, max_tokens=3, stream_options={"include_usage": True})
    assert {choice["index"] for chunk in found.chunks for choice in chunk["choices"]} == set(range(n))
    assert [found.finish_reason(index) for index in range(n)] == ["length"] * n
    assert all(found.text(index) for index in range(n))
    assert found.usage[0]["usage"]["completion_tokens"] == 3 * n


@pytest.mark.parametrize("stream", [OMIT, False])
def test_openai_stream_options_need_a_stream(api: Api, stream: Any) -> None:
    answer = api.chat("openai", stream=stream, stream_options={"include_usage": True})
    refused(answer, "openai", names="stream")


@pytest.mark.parametrize("value", ["banana", [], {}])
def test_huggingface_include_usage_is_a_boolean(api: Api, value: Any) -> None:
    answer = api.chat("huggingface", stream=True, stream_options={"include_usage": value})
    refused(answer, "huggingface", names="include_usage")


@both
def test_all_fields_at_once(api: Api, dialect: Dialect) -> None:
    completion(
        api.chat(
            dialect,
            messages=[{"role": "system", "content": "Be brief."}, *QUESTION],
            frequency_penalty=0.5,
            presence_penalty=-0.5,
            temperature=0.7,
            top_p=0.9,
            seed=3,
            stop=["\n\n"],
            logprobs=True,
            top_logprobs=3,
            stream=False,
        ),
        dialect,
    )
