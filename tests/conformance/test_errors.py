"""What is refused before any model is asked, and how (PROTOCOL section 3, errors)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.conformance.wire import DIALECTS, MODEL, Api, Dialect, error_body, frames, refused

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
both = pytest.mark.parametrize("dialect", DIALECTS)
LIMIT = 2_000_000

BROKEN = {
    "empty": b"",
    "blank": b"  \n",
    "open": b"{",
    "word": b"hello",
    "cut": b'{"messages": [{"role": "us',
    "single quotes": b"{'messages': []}",
    "trailing comma": b'{"messages": [],}',
    "trailing text": b"{} x",
    "not a number": b'{"temperature": NaN}',
    "infinite": b'{"temperature": Infinity}',
    "control character": b'{"model": "a\nb"}',
    "bad escape": b'{"model": "\\x41"}',
    "not utf-8": b'{"model": "\xff\xfe"}',
    "binary": bytes(range(256)),
    "form": b"messages=hello&stream=true",
}


@both
@pytest.mark.parametrize("kind", BROKEN)
def test_not_json(api: Api, dialect: Dialect, kind: str) -> None:
    refused(api.raw(dialect, BROKEN[kind]), dialect, status=400)


@both
@pytest.mark.parametrize("content", [b"[]", b"5", b'"text"', b"null", b"true", b"[{}]"])
def test_json_but_no_object(api: Api, dialect: Dialect, content: bytes) -> None:
    answer = api.raw(dialect, content)
    refused(answer, dialect, status=400 if answer.status_code == 400 else None)  # syntax or type: either will do


@both
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 5), ("top_p", 7), ("max_tokens", 0), ("messages", 5), ("stop", [""])]
)
def test_a_stream_is_refused_with_a_status(api: Api, dialect: Dialect, stream: bool, name: str, value: object) -> None:
    answer = api.chat(dialect, stream=stream, **{name: value})
    refused(answer, dialect, names=name)


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "n", "seed", "stop", "logprobs", "messages"])
def test_openai_errors_name_the_parameter(api: Api, name: str) -> None:
    error = api.chat("openai", **{name: {"no": "such"}}).json()["error"]
    assert (error["type"], error["param"].split("[")[0].split(".")[0]) == ("invalid_request_error", name)


def test_huggingface_errors_are_a_string_and_a_type(api: Api) -> None:
    assert set(api.chat("huggingface", temperature=5).json()) == {"error", "error_type"}


def test_openai_errors_are_an_object(api: Api) -> None:
    assert set(api.chat("openai", temperature=5).json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("model", ["undefined", "gpt2", "meta-llama/Meta-Llama-3.1-8B-Instruct", "a/b/c", "é"])
@pytest.mark.parametrize("stream", [False, True])
def test_huggingface_unknown_model(api: Api, model: str, stream: bool) -> None:
    answer = api.client.post(api.path("huggingface", model), json=api.body("huggingface", stream=stream))
    assert answer.status_code == 404
    assert error_body(answer, "huggingface") == f"Model {model} does not exist"


@pytest.mark.parametrize("stream", [False, True])
def test_openai_unknown_model(api: Api, stream: bool) -> None:
    answer = api.chat("openai", model="gpt-4", stream=stream)
    assert answer.status_code == 404
    assert error_body(answer, "openai") == "Model gpt-4 does not exist"
    assert answer.json()["error"]["code"] == "model_not_found"
    assert answer.json()["error"]["type"] == "not_found"


@pytest.mark.parametrize("path", ["/", "/nope", "/v1", "/v1/nope", "/v1/completions/x", "/v2/chat/completions"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_paths(api: Api, path: str, method: str) -> None:
    answer = api.client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code in (404, 405)
    assert "error" in answer.json()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@both
def test_other_methods(api: Api, dialect: Dialect, method: str) -> None:
    assert api.client.request(method, api.path(dialect)).status_code in (404, 405)


def padded(api: Api, dialect: Dialect, size: int) -> bytes:
    body = json.dumps(api.body(dialect)).encode()
    return body + b" " * (size - len(body))


def pieces(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), 65536):
        yield content[start : start + 65536]


@both
@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
def test_a_body_of_two_million_bytes(api: Api, dialect: Dialect, size: int) -> None:
    assert api.raw(dialect, padded(api, dialect, size)).status_code == 200


@both
@pytest.mark.parametrize("size", [LIMIT + 1, 3 * LIMIT])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_more(api: Api, dialect: Dialect, size: int, chunked: bool) -> None:
    content = padded(api, dialect, size)
    refused(api.raw(dialect, pieces(content) if chunked else content), dialect, status=413)


@both
def test_a_chunked_body_is_read(api: Api, dialect: Dialect) -> None:
    assert api.raw(dialect, pieces(padded(api, dialect, 200_000))).status_code == 200


def test_openai_too_long_has_the_type(api: Api) -> None:
    error = api.chat("openai", messages=[{"role": "user", "content": "word " * 3000}]).json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"]


@both
def test_a_deadline_before_the_first_byte(api: Api, dialect: Dialect) -> None:
    answer = api.chat(dialect, {"x-request-timeout": "0.05"}, max_tokens=1900)
    assert answer.status_code == 504
    assert int(answer.headers["retry-after"]) >= 0
    error_body(answer, dialect)
    if dialect == "huggingface":
        assert answer.json()["error_type"] == "timeout"
    else:
        assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == ("server_error", "timeout")


@both
def test_a_deadline_after_the_first_byte(api: Api, dialect: Dialect) -> None:
    *chunks, last = frames(api.chat(dialect, {"x-request-timeout": "0.4"}, max_tokens=1900, stream=True))
    assert chunks and all("error" not in chunk for chunk in chunks)
    if dialect == "huggingface":
        assert set(last) == {"error", "error_type"}
        assert isinstance(last["error"], str) and last["error_type"] == "timeout"
    else:
        assert {"message", "type", "code"} <= set(last["error"])
        assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "timeout")


PRIORITY = pytest.param("x-priority", marks=pytest.mark.xfail(strict=True, reason="priority classes are not built yet"))


@both
@pytest.mark.parametrize("name", ["x-request-timeout", PRIORITY, "x-dialect"])
@pytest.mark.parametrize("value", ["banana", "\u00e9"])
def test_bad_headers_are_named(api: Api, dialect: Dialect, name: str, value: str) -> None:
    answer = api.client.post(
        api.path(dialect), json=api.body(dialect), headers=[(name.encode(), value.encode("latin-1"))]
    )
    refused(answer, dialect, names=name)


@both
@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "inf", "1,5", "1 2"])
def test_bad_request_timeout(api: Api, dialect: Dialect, value: str) -> None:
    refused(api.chat(dialect, {"x-request-timeout": value}), dialect, names="x-request-timeout")


@both
@pytest.mark.parametrize("value", ["5", "2.5", "60"])
def test_request_timeout(api: Api, dialect: Dialect, value: str) -> None:
    api.ok(dialect, {"x-request-timeout": value})


@both
def test_errors_of_errors_are_json_too(api: Api, dialect: Dialect) -> None:
    """Whatever is wrong with the model's name, the body stays in the dialect's shape."""
    for name in ("", " ", "a" * 5000, 'a"b', "a\nb", "<script>"):
        answer = api.chat("openai", model=name) if dialect == "openai" else api.chat("huggingface", model=name)
        if dialect == "openai":
            assert answer.status_code in (400, 404)
            error_body(answer, dialect)
        else:
            assert answer.json()["model"] == MODEL
