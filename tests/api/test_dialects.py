"""Both dialects: what is made of a body, and the bytes of an answer."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import orjson
import pytest

from serving.api import huggingface, openai
from serving.api.chat import Chat
from serving.api.dialect import Answer, Usage
from serving.api.text import Logprob, Piece, TokenText
from serving.core import FinishReason
from serving.errors import BadField
from serving.settings import LimitSettings

LIMITS = LimitSettings(huggingface_max_tokens=77)
HELLO = [{"role": "user", "content": "hi"}]
DIALECTS = pytest.mark.parametrize("dialect", [openai, huggingface], ids=lambda dialect: dialect.name)


def parse(dialect: ModuleType, path_model: str | None = "m", **body: Any) -> Chat:
    chat: Chat = dialect.parse({"messages": HELLO} | body, path_model, LIMITS)
    return chat


# --- requests -----------------------------------------------------------------------------------------------------


def test_what_is_not_said_has_its_default() -> None:
    assert parse(openai) == Chat("m", HELLO)
    assert parse(huggingface) == Chat("m", HELLO, max_tokens=77)


@DIALECTS
def test_null_says_nothing(dialect: ModuleType) -> None:
    nulls = dict.fromkeys([*dialect._FIELDS, "tools", "response_format"])
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
        "min_tokens": 3,
        "ignore_eos": True,
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
        ("min_tokens", [-1, 0.5]),
        ("ignore_eos", ["no", 0]),
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

PARROT = Piece(
    'a "é" 🦜\n',
    Logprob("\ufffd", -0.5, [0xF0, 0x9F], [TokenText("a", -0.5, [97]), TokenText("b", -9999.0, [98])]),
)
OPENAI_LOGPROBS = (
    '{"content":[{"token":"\ufffd","logprob":-0.5,"bytes":[240,159],"top_logprobs":'
    '[{"token":"a","logprob":-0.5,"bytes":[97]},{"token":"b","logprob":-9999.0,"bytes":[98]}]}]}'
)
HUGGINGFACE_LOGPROBS = (
    '{"content":[{"token":"\ufffd","logprob":-0.5,"top_logprobs":'
    '[{"token":"a","logprob":-0.5},{"token":"b","logprob":-9999.0}]}]}'
)
HEAD = '"id":"chatcmpl-1","object":"chat.completion%s","created":7,"model":"org/m \\"x\\"","system_fingerprint":"fp"'


def encoder(dialect: ModuleType, *, include_usage: bool = False) -> Any:
    return dialect.encoder(Answer("chatcmpl-1", 'org/m "x"', 7, "fp", include_usage))


def event(rest: str) -> bytes:
    return f"data: {{{HEAD % '.chunk'},{rest}}}\n\n".encode()


def test_an_openai_stream_byte_by_byte() -> None:
    made = encoder(openai)
    assert made.opening() == event(
        '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
    )
    plain = event('"choices":[{"index":0,"delta":{"content":"a \\"é\\" 🦜\\n"},"logprobs":null,"finish_reason":null}]')
    assert made.text(PARROT.text) == made.piece(Piece(PARROT.text)) == plain
    assert made.piece(PARROT) == plain.replace(b'"logprobs":null', f'"logprobs":{OPENAI_LOGPROBS}'.encode())
    assert made.closing(FinishReason.LENGTH, Usage(1, 2, 3)) == event(
        '"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]'
    )


def test_an_openai_stream_with_usage() -> None:
    made, without = encoder(openai, include_usage=True), encoder(openai)
    for mine, plain in (
        (made.opening(), without.opening()),
        (made.text("a"), without.text("a")),
        (made.piece(PARROT), without.piece(PARROT)),
    ):
        assert mine == plain.replace(b"]}\n\n", b'],"usage":null}\n\n')
    assert made.closing(FinishReason.STOP, Usage(10, 2, 8)) == without.closing(
        FinishReason.STOP, Usage(10, 2, 8)
    ).replace(b"]}\n\n", b'],"usage":null}\n\n') + event(
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
    assert made.text(PARROT.text) == made.piece(Piece(PARROT.text)) == plain
    assert made.piece(PARROT) == plain.replace(b'"logprobs":null', f'"logprobs":{HUGGINGFACE_LOGPROBS}'.encode())
    end = event(
        '"choices":[{"index":0,"delta":{"role":"assistant","content":""},'
        '"logprobs":null,"finish_reason":"stop_sequence"}]'
    )
    assert made.closing(FinishReason.STOP_SEQUENCE, Usage(10, 2, 8)) == end
    usage = event('"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}')
    assert encoder(huggingface, include_usage=True).closing(FinishReason.STOP_SEQUENCE, Usage(10, 2, 8)) == end + usage


@pytest.mark.parametrize(
    ("dialect", "logprobs", "details"),
    [
        (openai, OPENAI_LOGPROBS, ',"prompt_tokens_details":{"cached_tokens":8}'),
        (huggingface, HUGGINGFACE_LOGPROBS, ""),
    ],
    ids=["openai", "huggingface"],
)
def test_a_whole_answer_byte_by_byte(dialect: ModuleType, logprobs: str, details: str) -> None:
    made = encoder(dialect)
    expected = (
        f'{{{HEAD % ""},"choices":[{{"index":0,"message":{{"role":"assistant","content":"Hi a \\"é\\" 🦜\\n"}},'
        f'"logprobs":{logprobs},"finish_reason":"stop"}}],'
        f'"usage":{{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12{details}}}}}'
    )
    pieces = [Piece("Hi"), Piece(" "), PARROT]
    assert made.whole([pieces[0], Piece(" " + PARROT.text, PARROT.logprob)], FinishReason.STOP, Usage(10, 2, 8)) == (
        expected.encode()
    )
    plain = orjson.loads(made.whole([Piece("Hi")], FinishReason.STOP, Usage(1, 1)))
    assert plain["choices"][0]["logprobs"] is None


@DIALECTS
def test_what_was_piecewise_is_what_was_whole(dialect: ModuleType) -> None:
    made = encoder(dialect)
    pieces = [Piece("a\u2028"), Piece(""), Piece("\x7f</script>"), Piece("日本 \\ \t")]
    raw = made.opening() + b"".join(map(made.piece, pieces)) + made.closing(FinishReason.STOP, Usage(1, 4))
    *events, rest = raw.decode().split("\n\n")
    assert rest == ""
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    whole = json.loads(made.whole(pieces, FinishReason.STOP, Usage(1, 4)))["choices"][0]["message"]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]


@DIALECTS
def test_every_good_end_has_a_word(dialect: ModuleType) -> None:
    for finish in (FinishReason.STOP, FinishReason.STOP_SEQUENCE, FinishReason.LENGTH):
        assert finish in dialect._FINISH
