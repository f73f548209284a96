"""What is served beside completions: cards, status, the description of the API, and what a browser asks first."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema
import pytest

from serving import __version__
from serving.api import fields, huggingface, openai, raw, routes
from serving.models.text import ModelText
from serving.settings import HttpSettings, LimitSettings, Settings
from tests.api.hand import HELLO, HUGGINGFACE, OPENAI, RAW, Front, open_front


@pytest.fixture
async def front(text: ModelText) -> AsyncIterator[Front]:
    async with open_front(text) as front:
        yield front


async def get(front: Front, path: str) -> Any:
    answer = await front.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["org/tiny", "alias"])
async def test_a_model_describes_itself_as_text_generation_inference_does(front: Front, name: str) -> None:
    info = await get(front, f"/models/{name}/info")
    assert (info["model_id"], info["version"], info["model_pipeline_tag"]) == (
        "org/tiny",
        __version__,
        "text-generation",
    )
    assert (info["max_input_tokens"], info["max_total_tokens"]) == (511, 512)
    assert info["max_stop_sequences"] == 4
    assert info["max_concurrent_requests"] == Settings().scheduler.queue_requests


@pytest.mark.parametrize("name", ["org/tiny", "alias"])
async def test_a_card_and_the_status_say_whether_the_model_is_loaded(front: Front, name: str) -> None:
    loaded = {"loaded": True, "state": "Loaded", "compute_type": "cpu", "framework": "text-generation-inference"}
    assert await get(front, f"/status/{name}") == loaded
    card = await get(front, f"/models/{name}")
    assert card.items() >= loaded.items()
    assert (card["id"], card["modelId"], card["inference"]) == ("org/tiny", "org/tiny", "warm")
    assert card["pipeline_tag"] == "text-generation"
    assert "conversational" in card["tags"]
    front.scheduler.ready = False
    assert (await get(front, f"/status/{name}")).items() >= {"loaded": False, "state": "Loadable"}.items()
    assert (await get(front, f"/models/{name}"))["inference"] == "cold"


async def test_a_models_health_is_that_of_its_engines(front: Front) -> None:
    assert await get(front, "/models/org/tiny/health") == {"status": "ready"}
    front.scheduler.ready = False
    answer = await front.client.get("/models/org/tiny/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
    assert (await front.client.get("/health")).status_code == 200  # this process is well


async def test_models_are_listed_with_their_context(front: Front) -> None:
    card = {"id": "org/tiny", "object": "model", "created": 1, "owned_by": "serving", "max_model_len": 512}
    assert await get(front, "/v1/models") == {"object": "list", "data": [card]}
    assert await get(front, "/v1/models/org/tiny") == await get(front, "/v1/models/alias") == card


@pytest.mark.parametrize("path", ["/models/no/pe", "/models/no/pe/info", "/models/no/pe/health", "/status/no/pe"])
async def test_a_model_that_is_not_there_is_unknown_everywhere(front: Front, path: str) -> None:
    answer = await front.client.get(path)
    body = {"error": "Model no/pe does not exist", "error_type": "not_found"}
    assert (answer.status_code, answer.json()) == (404, body)


@pytest.mark.parametrize(("method", "path"), [("GET", OPENAI), ("DELETE", "/v1/models"), ("POST", "/v1/nope")])
async def test_what_is_not_served_is_said_in_the_paths_dialect(front: Front, method: str, path: str) -> None:
    answer = await front.client.request(method, path)
    assert answer.status_code in (404, 405)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert path in answer.json()["error"]["message"]


# --- the description ----------------------------------------------------------------------------------------------


def schemas(value: Any) -> Iterator[Any]:
    """Every JSON schema in an OpenAPI document."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "schema":
                yield item
            elif key == "schemas":
                yield from item.values()
            else:
                yield from schemas(item)
    elif isinstance(value, list):
        for item in value:
            yield from schemas(item)


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for method in set(item) - {"parameters"}:
            yield path, method, item[method]


def body_of(document: Any, path: str) -> Any:
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]


async def test_the_document_is_openapi(front: Front) -> None:
    document = await get(front, "/openapi.json")
    assert document["openapi"] == "3.1.0"
    assert document["info"].keys() >= {"title", "version"}
    for schema in schemas(document):
        jsonschema.Draft202012Validator.check_schema(schema)
    for target in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        found = document
        for step in target.split("/"):
            found = found[step]
    identifiers = [operation["operationId"] for *_, operation in operations(document) if "operationId" in operation]
    assert len(set(identifiers)) == len(identifiers) >= 3
    for path, method, operation in operations(document):
        assert method in {"get", "post"}
        assert operation["summary"]
        assert operation["responses"]["default"]
        given = [*document["paths"][path].get("parameters", []), *operation.get("parameters", [])]
        assert {one["name"] for one in given if one["in"] == "path"} == set(re.findall(r"{(\w+)}", path))
        assert all(one["required"] for one in given if one["in"] == "path")


async def test_every_path_of_the_document_is_served(front: Front) -> None:
    document = await get(front, "/openapi.json")
    for path, method, _ in operations(document):
        answer = await front.client.request(method, path.replace("{model}", "org/tiny"), content=b"{}")
        assert answer.status_code not in (404, 405), path


async def test_every_field_that_is_checked_is_described(front: Front) -> None:
    document = await get(front, "/openapi.json")
    extra = {"messages", "tools", "tool_choice", "response_format"}
    of_openai = body_of(document, OPENAI)["schema"]
    assert set(of_openai["properties"]) == set(openai.FIELDS) | extra
    assert of_openai["required"] == ["model", "messages"]
    of_huggingface = body_of(document, "/models/{model}/v1/chat/completions")["schema"]
    assert set(of_huggingface["properties"]) == set(huggingface.FIELDS) | extra
    of_raw, of_chat = body_of(document, "/models/{model}")["schema"]["anyOf"]
    assert of_chat == of_huggingface
    assert set(of_raw["properties"]["parameters"]["properties"]) == set(raw.PARAMETERS)
    assert set(of_raw["properties"]["options"]["properties"]) == set(raw.OPTIONS)


async def test_every_header_that_is_read_is_described(front: Front) -> None:
    document = await get(front, "/openapi.json")
    for path, method, operation in operations(document):
        if method == "post":
            names = {one["name"] for one in operation["parameters"] if one["in"] == "header"}
            told = {"authorization", "x-request-id", "x-dialect", "x-use-cache", "x-wait-for-model"}
            assert names >= told | {"x-request-timeout"}, path


async def test_every_example_is_what_the_parser_takes(front: Front) -> None:
    document = await get(front, "/openapi.json")
    limits = LimitSettings()
    parsers = {
        OPENAI: lambda body: openai.parse(body, None, limits),
        "/models/{model}/v1/chat/completions": lambda body: huggingface.parse(body, "m", limits),
        "/models/{model}": lambda body: raw.parse(body, "m", limits),
    }
    for path, parse in parsers.items():
        body = body_of(document, path)
        assert body["examples"]
        for example in body["examples"].values():
            jsonschema.validate(example["value"], body["schema"], cls=jsonschema.Draft202012Validator)
            assert parse(example["value"])


async def test_every_example_is_answered(front: Front) -> None:
    document = await get(front, "/openapi.json")
    for path, model in ((OPENAI, "org/tiny"), ("/models/{model}/v1/chat/completions", None), ("/models/{model}", None)):
        for name, example in body_of(document, path)["examples"].items():
            body = example["value"] if model is None else example["value"] | {"model": model}
            if "tool_choice" in body:
                call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
                front.scheduler.script = front.scheduler.say(call)
            answer = await front.client.post(path.replace("{model}", "org/tiny"), json=body)
            assert answer.status_code == 200, (path, name, answer.text)


BAD = [("temperature", 3), ("top_p", 0), ("max_tokens", 0), ("seed", 2**70), ("stop", [""]), ("stop", ["a"] * 5)]
BAD += [("stream", "yes"), ("logprobs", 1), ("top_logprobs", 21), ("messages", []), ("stream_options", [])]


@pytest.mark.parametrize(("field", "value"), BAD)
async def test_what_the_parser_refuses_the_description_does_too(front: Front, field: str, value: Any) -> None:
    document = await get(front, "/openapi.json")
    for path in (OPENAI, "/models/{model}/v1/chat/completions"):
        body = body_of(document, path)
        bad = body["examples"]["chat"]["value"] | {field: value}
        with pytest.raises(jsonschema.ValidationError) as caught:
            jsonschema.validate(bad, body["schema"], cls=jsonschema.Draft202012Validator)
        assert caught.value.absolute_path[0] == field
        dialect = openai if path == OPENAI else huggingface
        with pytest.raises(fields.BadField):
            dialect.parse(bad | {"logprobs": bad.get("logprobs", True)}, "m", LimitSettings())


async def test_a_page_for_people_says_the_same_without_asking_anyone_else(front: Front) -> None:
    answer = await front.client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.text
    for name in {*openai.FIELDS, *huggingface.FIELDS, *raw.PARAMETERS, "tool_choice", "response_format"}:
        assert name in page
    assert all(path in page for path, *_ in operations(await get(front, "/openapi.json")))
    assert "://" not in page


# --- browsers -----------------------------------------------------------------------------------------------------

PAGE = {"origin": "https://page.example"}
PREFLIGHT = PAGE | {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-use-cache",
}


@pytest.mark.parametrize("path", [OPENAI, HUGGINGFACE, RAW, "/v1/models"])
async def test_a_browser_may_ask_whether_it_may_ask(front: Front, path: str) -> None:
    answer = await front.client.options(path, headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "x-use-cache"))
    assert front.scheduler.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_browser_may_read_the_answer_and_its_headers(front: Front, stream: bool) -> None:
    answer = await front.client.post(HUGGINGFACE, json={"messages": HELLO, "stream": stream}, headers=PAGE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
    ours = {name for name in answer.headers if name.startswith("x-")}
    assert ours - {"x-accel-buffering"} <= exposed
    assert exposed == set(routes.EXPOSED)


async def test_a_browser_may_read_an_error(front: Front) -> None:
    wrong = await front.client.post(OPENAI, content=b"{", headers=PAGE)
    unknown = await front.client.get("/v1/models/x", headers=PAGE)
    for answer in (wrong, unknown):
        assert answer.status_code >= 400
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_others_get_no_such_headers(front: Front) -> None:
    answer = await front.openai()
    assert not [name for name in answer.headers if name.startswith("access-control-allow")]


async def test_only_the_origins_of_the_settings_may(text: ModelText) -> None:
    settings = Settings(http=HttpSettings(cors_origins=("https://page.example",)))
    async with open_front(text, settings) as front:
        answer = await front.client.get("/v1/models", headers=PAGE)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert (await front.client.options(OPENAI, headers=PREFLIGHT)).status_code == 200
        other = {"origin": "https://other.example"}
        assert "access-control-allow-origin" not in (await front.client.get("/v1/models", headers=other)).headers
        assert (await front.client.options(OPENAI, headers=PREFLIGHT | other)).status_code == 400


async def test_without_origins_browsers_are_told_nothing(text: ModelText) -> None:
    async with open_front(text, Settings(http=HttpSettings(cors_origins=()))) as front:
        preflight = await front.client.options(OPENAI, headers=PREFLIGHT)
        assert preflight.status_code in (404, 405)
        listed = await front.client.get("/v1/models", headers=PAGE)
        for answer in (preflight, listed):
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await front.openai()).status_code == 200
