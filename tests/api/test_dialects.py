"""Both dialects: what is made of a body, and the bytes of an answer."""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import orjson
import pytest

from serving.api import huggingface, openai
from serving.api.chat import Chat
from serving.api.dialect import Answer, Call, Message, Reasoning, Usage
from serving.api.text import Logprob, TokenText
from serving.api.tools.base import CallArguments, CallStart, Text
from serving.core import FinishReason
from serving.errors import BadField, ToolRefused
from serving.settings import LimitSettings

LIMITS = LimitSettings(huggingface_max_tokens=77)
HELLO = [{"role": "user", "content": "hi"}]
DIALECTS = pytest.mark.parametrize("dialect", [openai, huggingface], ids=lambda dialect: dialect.name)


def parse(dialect: ModuleType, path_model: str | None = "m", **body: Any) -> Chat:
    chat: Chat = dialect.parse({"messages": HELLO} | body, path_model, LIMITS)
    return chat


# --- requests -----------------------------------------------------------------------------------------------------


def test_what_is_not_said_has_its_default() -> None:
    assert parse(openai) == Chat("m", HELLO, splits_reasoning=True)
    assert parse(huggingface) == Chat("m", HELLO, max_tokens=77, use_cache=True)


@DIALECTS
def test_null_says_nothing(dialect: ModuleType) -> None:
    nulls = dict.fromkeys([*dialect.FIELDS, "tools", "response_format"])
    assert parse(dialect, **nulls) == parse(dialect)


@DIALECTS
def test_what_is_said_is_taken(dialect: ModuleType) -> None:
    said = {
        "temperature": 0,
        "top_p": 0.5,
        "frequency_penalty": -2,
        "presence_penalty": 2,
        "seed": 7,
        "stop": "\n",
        "stream": True,
    }
    chat = parse(dialect, **said, max_tokens=9, stream_options={"include_usage": True}, logprobs=True, top_logprobs=5)
    for name, value in (said | {"stop": ("\n",), "max_tokens": 9, "include_usage": True, "logprobs": 5}).items():
        assert getattr(chat, name) == value, name


@DIALECTS
@pytest.mark.parametrize(
    ("body", "logprobs"), [({"logprobs": True}, 0), ({"logprobs": False}, None), ({"top_logprobs": 0}, None)]
)
def test_logprobs(dialect: ModuleType, body: dict[str, Any], logprobs: int | None) -> None:
    assert parse(dialect, **body).logprobs == logprobs


@DIALECTS
def test_max_completion_tokens_is_the_same_thing(dialect: ModuleType) -> None:
    assert parse(dialect, max_completion_tokens=5).max_tokens == 5


def test_seeds_fit_the_engine() -> None:
    assert parse(huggingface, seed=2**64 - 1).seed == 2**63 - 1
    assert parse(openai, seed=-(2**63)).seed == -(2**63)
    for dialect, seed in ((huggingface, -1), (openai, 2**63)):
        with pytest.raises(BadField, match=r"^seed: "):
            parse(dialect, seed=seed)


def test_who_names_the_model() -> None:
    assert parse(openai, None, model="a").model == "a"
    assert parse(openai, "path", model="a").model == "path"
    assert parse(huggingface, "path", model=5).model == "path"
    assert parse(huggingface, None, model="a").model == "a"
    for dialect in (openai, huggingface):
        with pytest.raises(BadField, match=r"^model: "):
            parse(dialect, None)


def test_users() -> None:
    assert parse(openai, user="ann").user == "ann"
    assert parse(huggingface, user=5).user is None


def test_usage_is_for_streams() -> None:
    with pytest.raises(BadField, match=r"^stream_options: "):
        parse(openai, stream_options={"include_usage": True})
    for dialect in (openai, huggingface):
        with pytest.raises(BadField, match=r"^stream_options\.include_usage: "):
            parse(dialect, stream=True, stream_options={"include_usage": 1})
        assert not parse(dialect, stream=True, stream_options={"include_usage": None}).include_usage


@DIALECTS
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", [0, -1, 1.5, "1", True, 2**31]),
        ("temperature", [-0.1, 2.01, "1", True, []]),
        ("top_p", [0, 1.01, -1, "1"]),
        ("frequency_penalty", [-2.1, 2.1, "0"]),
        ("presence_penalty", [-2.1, 2.1, {}]),
        ("seed", [1.5, "1", True]),
        ("stream", [0, 1, "true"]),
        ("logprobs", [0, 1, "yes"]),
        ("top_logprobs", [-1, 21, 1.0, True]),
        ("stream_options", [True, [], "x"]),
    ],
)
def test_wrong_values_name_the_field(dialect: ModuleType, name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BadField) as caught:
            parse(dialect, **{name: value})
        assert caught.value.field == name, value


def test_top_logprobs_by_dialect() -> None:
    assert parse(openai, logprobs=True, top_logprobs=20).logprobs == 20
    with pytest.raises(BadField, match=r"^top_logprobs: "):
        parse(huggingface, logprobs=True, top_logprobs=6)
    for dialect in (openai, huggingface):
        with pytest.raises(BadField, match=r"^top_logprobs: needs logprobs"):
            parse(dialect, top_logprobs=1)


# --- answers ------------------------------------------------------------------------------------------------------

PARROT = 'a "é" 🦜\n'
SQUAWK = Logprob("\ufffd", -0.5, [0xF0, 0x9F], [TokenText("a", -0.5, [97]), TokenText("b", -9999.0, [98])])
CALLS = [CallStart("f"), CallArguments('{"a": '), CallArguments("1}"), CallStart("g"), CallArguments("{}")]
OPENAI_LOGPROBS = (
    '{"content":[{"token":"\ufffd","logprob":-0.5,"bytes":[240,159],"top_logprobs":'
    '[{"token":"a","logprob":-0.5,"bytes":[97]},{"token":"b","logprob":-9999.0,"bytes":[98]}]}]}'
)
HUGGINGFACE_LOGPROBS = (
    '{"content":[{"token":"\ufffd","logprob":-0.5,"top_logprobs":'
    '[{"token":"a","logprob":-0.5},{"token":"b","logprob":-9999.0}]}]}'
)
HEAD = '"id":"chatcmpl-1","object":"chat.completion%s","created":7,"model":"org/m \\"x\\"","system_fingerprint":"fp"'


ANSWER = Answer("chatcmpl-1", 'org/m "x"', 7, "fp")


def encoder(dialect: ModuleType, **changes: Any) -> Any:
    return dialect.encoder(replace(ANSWER, **changes), 0)


def event(rest: str) -> bytes:
    return f"data: {{{HEAD % '.chunk'},{rest}}}\n\n".encode()


def message(text: str = "", calls: list[Call] | None = None, logprobs: list[Logprob] | None = None) -> Message:
    return Message(text, "", calls or [], logprobs, FinishReason.STOP)


def test_an_openai_stream_byte_by_byte() -> None:
    made = encoder(openai)
    assert made.opening() == event(
        '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
    )
    plain = event('"choices":[{"index":0,"delta":{"content":"a \\"é\\" 🦜\\n"},"logprobs":null,"finish_reason":null}]')
    assert made.text(PARROT) == made.delta(Text(PARROT), None) == plain
    assert made.delta(Text(PARROT), [SQUAWK]) == plain.replace(
        b'"logprobs":null', f'"logprobs":{OPENAI_LOGPROBS}'.encode()
    )
    assert made.closing(FinishReason.LENGTH, None) == event(
        '"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]'
    )


def test_an_openai_stream_with_usage() -> None:
    made, without = encoder(openai, include_usage=True), encoder(openai)
    for mine, plain in (
        (made.opening(), without.opening()),
        (made.text("a"), without.text("a")),
        (made.delta(Text("a"), [SQUAWK]), without.delta(Text("a"), [SQUAWK])),
        (made.closing(FinishReason.STOP, None), without.closing(FinishReason.STOP, None)),
    ):
        assert mine == plain.replace(b"]}\n\n", b'],"usage":null}\n\n')
    assert openai.usage_event(ANSWER, Usage(10, 2, 8)) == event(
        '"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12,'
        '"prompt_tokens_details":{"cached_tokens":8}}'
    )


def test_a_huggingface_stream_byte_by_byte() -> None:
    made = encoder(huggingface)
    assert made.opening() == b""
    plain = event(
        '"choices":[{"index":0,"delta":{"role":"assistant","content":"a \\"é\\" 🦜\\n"},'
        '"logprobs":null,"finish_reason":null}]'
    )
    assert made.text(PARROT) == made.delta(Text(PARROT), None) == plain
    assert made.delta(Text(PARROT), [SQUAWK]) == plain.replace(
        b'"logprobs":null', f'"logprobs":{HUGGINGFACE_LOGPROBS}'.encode()
    )
    assert made.closing(FinishReason.STOP_SEQUENCE, None) == event(
        '"choices":[{"index":0,"delta":{"role":"assistant","content":""},'
        '"logprobs":null,"finish_reason":"stop_sequence"}]'
    )
    assert huggingface.usage_event(ANSWER, Usage(10, 2, 8)) == event(
        '"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}'
    )


def test_calls_in_an_openai_stream() -> None:
    made = encoder(openai)
    said = [made.delta(delta, None) for delta in CALLS]
    calls = [json.loads(one[6:])["choices"][0]["delta"]["tool_calls"] for one in said]
    ids = [call.pop("id") for (call,) in calls if "id" in call]
    assert len(set(ids)) == 2
    assert all(id_.startswith("call_") for id_ in ids)
    assert calls == [
        [{"index": 0, "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a": '}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
        [{"index": 1, "type": "function", "function": {"name": "g", "arguments": ""}}],
        [{"index": 1, "function": {"arguments": "{}"}}],
    ]
    assert b'"finish_reason":"tool_calls"' in made.closing(FinishReason.STOP, None)
    assert b'"finish_reason":"length"' in made.closing(FinishReason.LENGTH, None)
    named = encoder(openai, named_call=True)
    named.delta(CallStart("f"), None)
    assert b'"finish_reason":"stop"' in named.closing(FinishReason.STOP, None)


def test_calls_in_a_huggingface_stream() -> None:
    made = encoder(huggingface, first_call_id=3)
    deltas = [json.loads(made.delta(delta, None)[6:])["choices"][0]["delta"] for delta in CALLS]
    assert all(set(delta) == {"role", "tool_calls"} for delta in deltas)
    assert [delta["tool_calls"] for delta in deltas] == [
        {"index": index, "id": id_, "type": "function", "function": {"name": called, "arguments": arguments}}
        for index, id_, called, arguments in (
            (0, "3", "f", ""),
            (0, "3", None, '{"a": '),
            (0, "3", None, "1}"),
            (1, "4", "g", ""),
            (1, "4", None, "{}"),
        )
    ]
    assert b'"finish_reason":"stop"' in made.closing(FinishReason.STOP, None)


def test_calls_in_a_whole_answer() -> None:
    answer = replace(ANSWER, first_call_id=2, descriptions={"f": "does f", "g": None})
    said = message("words", [Call("f", '{"a": 1}'), Call("g", "{}")])
    (choice,) = json.loads(huggingface.whole(answer, [said], Usage(1, 1)))["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "tool_calls": [
            {"id": 2, "type": "function", "function": {"name": "f", "arguments": {"a": 1}, "description": "does f"}},
            {"id": 3, "type": "function", "function": {"name": "g", "arguments": {}}},
        ],
    }
    assert choice["finish_reason"] == "stop"
    (choice,) = json.loads(openai.whole(answer, [said], Usage(1, 1)))["choices"]
    assert choice["message"]["content"] == "words"
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert choice["finish_reason"] == "tool_calls"
    (choice,) = json.loads(openai.whole(answer, [message("", [Call("g", "{}")])], Usage(1, 1)))["choices"]
    assert choice["message"]["content"] is None


def test_a_call_that_was_cut_off() -> None:
    cut = Message("", "", [Call("f", '{"a": ')], None, FinishReason.LENGTH)
    with pytest.raises(ToolRefused, match="cut off"):
        huggingface.whole(ANSWER, [cut], Usage(1, 1))
    (choice,) = json.loads(openai.whole(ANSWER, [cut], Usage(1, 1)))["choices"]
    assert (choice["finish_reason"], choice["message"]["tool_calls"][0]["function"]["arguments"]) == (
        "length",
        '{"a": ',
    )


def test_thoughts_are_told_apart_in_one_dialect_only() -> None:
    thought = json.loads(encoder(openai).delta(Reasoning("hm"), None)[6:])
    assert thought["choices"][0]["delta"] == {"reasoning_content": "hm"}
    whole = json.loads(openai.whole(ANSWER, [Message("so", "hm", [], None, FinishReason.STOP)], Usage(1, 1)))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "so", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("dialect", "logprobs", "details"),
    [
        (openai, OPENAI_LOGPROBS, ',"prompt_tokens_details":{"cached_tokens":8}'),
        (huggingface, HUGGINGFACE_LOGPROBS, ""),
    ],
    ids=["openai", "huggingface"],
)
def test_a_whole_answer_byte_by_byte(dialect: ModuleType, logprobs: str, details: str) -> None:
    expected = (
        f'{{{HEAD % ""},"choices":[{{"index":0,"message":{{"role":"assistant","content":"a \\"é\\" 🦜\\n"}},'
        f'"logprobs":{logprobs},"finish_reason":"stop"}}],'
        f'"usage":{{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12{details}}}}}'
    )
    made = dialect.whole(ANSWER, [message(PARROT, logprobs=[SQUAWK])], Usage(10, 2, 8))
    assert made == expected.encode()
    plain = orjson.loads(dialect.whole(ANSWER, [message("Hi"), message("Ho")], Usage(1, 1)))
    assert [choice["logprobs"] for choice in plain["choices"]] == [None, None]
    assert [choice["index"] for choice in plain["choices"]] == [0, 1]


@DIALECTS
def test_odd_text_survives_every_way_of_encoding_it(dialect: ModuleType) -> None:
    made = encoder(dialect)
    texts = ["a\u2028", "", "\x7f</script>", "日本 \\ \t"]
    raw = made.opening() + b"".join(made.text(text) for text in texts) + made.closing(FinishReason.STOP, None)
    *events, rest = raw.decode().split("\n\n")
    assert rest == ""
    deltas = [json.loads(one.removeprefix("data: "))["choices"][0]["delta"] for one in events]
    whole = json.loads(dialect.whole(ANSWER, [message("".join(texts))], Usage(1, 4)))["choices"][0]["message"]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]


@DIALECTS
def test_every_good_end_has_a_word(dialect: ModuleType) -> None:
    for finish in (FinishReason.STOP, FinishReason.STOP_SEQUENCE, FinishReason.LENGTH):
        assert b'"finish_reason":"' in encoder(dialect).closing(finish, None)
