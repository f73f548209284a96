"""The task-less endpoint, and the pages beside chat (PROTOCOL A15, A16)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conformance.wire import ALIAS, CONTEXT, MODEL, Api, error_body, refused

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
ids = pytest.mark.parametrize("model", [MODEL, ALIAS])


def complete(api: Api, body: Any, model: str = MODEL) -> httpx.Response:
    return api.client.post(f"/models/{model}", json=body)


def generated(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    (only,) = answer.json()
    assert set(only) == {"generated_text"} and isinstance(only["generated_text"], str)
    return str(only["generated_text"])


@ids
def test_raw_text(api: Api, model: str) -> None:
    assert generated(complete(api, {"inputs": "Can you please let us know more details about your "}, model))


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"max_new_tokens": 3},
        {"max_new_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 3},
        {"max_new_tokens": 3, "stop": ["x"]},
        {"max_new_tokens": 3, "do_sample": False, "return_full_text": False},
    ],
)
def test_parameters(api: Api, parameters: Any) -> None:
    generated(complete(api, {"inputs": "Hello", "parameters": parameters}))


def test_max_new_tokens_count(api: Api) -> None:
    few, more = (
        generated(complete(api, {"inputs": "Hello", "parameters": {"max_new_tokens": tokens, "seed": 1}}))
        for tokens in (2, 40)
    )
    assert more.startswith(few) and len(more) > len(few)


@pytest.mark.parametrize("name", ["use_cache", "wait_for_model", "use_gpu"])
@pytest.mark.parametrize("value", [True, False])
def test_options(api: Api, name: str, value: bool) -> None:
    generated(complete(api, {"inputs": "Hello", "parameters": {"max_new_tokens": 2}, "options": {name: value}}))


@pytest.mark.parametrize("options", [None, {}])
def test_no_options(api: Api, options: Any) -> None:
    generated(complete(api, {"inputs": "Hello", "parameters": {"max_new_tokens": 2}, "options": options}))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": None},
        {"inputs": 5},
        {"inputs": {}},
        {"inputs": "a", "parameters": 5},
        {"inputs": "a", "parameters": []},
        {"inputs": "a", "options": 5},
        {"inputs": "a", "parameters": {"max_new_tokens": 0}},
        {"inputs": "a", "parameters": {"max_new_tokens": "many"}},
        {"inputs": "a", "parameters": {"temperature": "hot"}},
        {"inputs": "a", "stream": True},
    ],
    ids=repr,
)
def test_refused(api: Api, body: Any) -> None:
    refused(complete(api, body), "huggingface")


def test_raw_text_not_json(api: Api) -> None:
    answer = api.client.post(f"/models/{MODEL}", content=b"{", headers={"content-type": "application/json"})
    refused(answer, "huggingface", status=400)


@pytest.mark.parametrize("model", ["undefined", "nope", "a/b"])
def test_unknown_model(api: Api, model: str) -> None:
    answer = complete(api, {"inputs": "Hello"}, model)
    assert answer.status_code == 404
    assert error_body(answer, "huggingface") == f"Model {model} does not exist"


@ids
@pytest.mark.parametrize("path", ["/models/{}", "/models/{}/info", "/status/{}", "/v1/models/{}"])
def test_pages_of_a_model(api: Api, path: str, model: str) -> None:
    answer = api.client.get(path.format(model))
    assert answer.status_code == 200 and isinstance(answer.json(), dict)


@pytest.mark.parametrize("path", ["/models/{}", "/models/{}/info", "/status/{}", "/v1/models/{}"])
@pytest.mark.parametrize("model", ["undefined", "a/b"])
def test_pages_of_an_unknown_model(api: Api, path: str, model: str) -> None:
    answer = api.client.get(path.format(model))
    assert answer.status_code == 404
    error_body(answer, "openai" if path.startswith("/v1") else "huggingface")


@ids
def test_status(api: Api, model: str) -> None:
    status = api.client.get(f"/status/{model}").json()
    assert (status["loaded"], status["state"]) == (True, "Loaded")
    assert status["framework"] == "text-generation-inference"


def test_models(api: Api) -> None:
    listed = api.client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = [entry for entry in listed["data"] if entry["id"] == MODEL]
    assert (model["object"], model["max_model_len"]) == ("model", CONTEXT)
    assert type(model["created"]) is int and isinstance(model["owned_by"], str)


def test_openapi(api: Api) -> None:
    page = api.client.get("/openapi.json").json()
    assert page["openapi"].startswith("3.")
    assert "post" in page["paths"]["/v1/chat/completions"]
    assert any(path.startswith("/models/") and path.endswith("/v1/chat/completions") for path in page["paths"])


def test_docs(api: Api) -> None:
    answer = api.client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health(api: Api, path: str) -> None:
    assert api.client.get(path).status_code == 200
