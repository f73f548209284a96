"""Requests that mean harm: each is refused soon and clearly, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conformance.wire import DIALECTS, PLACE, ROOM, Api, Dialect, Json, error_body, obj, tool, within

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
both = pytest.mark.parametrize("dialect", DIALECTS)
SECONDS = 15  # on a machine that does other things as well


@pytest.fixture(autouse=True)
def goes_on(api: Api) -> Iterator[None]:
    yield
    with within(SECONDS):
        for dialect in DIALECTS:
            api.ok(dialect)


def clear(answer: httpx.Response, dialect: Dialect) -> None:
    """A refusal that says what is wrong with the request."""
    error_body(answer, dialect)
    assert answer.status_code in ((400, 413, 422) if dialect == "huggingface" else (400, 413)), answer.text[:2000]


def clear_or_fine(answer: httpx.Response, dialect: Dialect) -> None:
    if answer.status_code != 200:
        clear(answer, dialect)


def nested(depth: int, inner: Any = True) -> Any:
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


BAD_SCHEMAS: dict[str, Callable[[], Json]] = {
    "recursive reference": lambda: {"$ref": "#"},
    "reference to itself": lambda: obj(x={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"$ref": "#/$defs/a"}}},
    "references in a ring": lambda: (
        obj(x={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "reference to nothing": lambda: obj(x={"$ref": "#/$defs/nothing"}),
    "reference abroad": lambda: obj(x={"$ref": "http://127.0.0.1:1/schema.json"}),
    "reference to a file": lambda: obj(x={"$ref": "file:///etc/passwd"}),
    "uniqueItems": lambda: obj(x={"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}),
    "not": lambda: obj(x={"not": {"type": "string"}}),
    "unknown type": lambda: obj(x={"type": "banana"}),
    "type of another type": lambda: obj(x={"type": 5}),
    "properties of another type": lambda: {"type": "object", "properties": 5},
    "required of another type": lambda: {"type": "object", "properties": {}, "required": "a"},
    "pattern unbalanced": lambda: obj(x={"type": "string", "pattern": "("}),
    "pattern bomb": lambda: obj(x={"type": "string", "pattern": "^(a{1000}){1000}$"}),
    "pattern looks around": lambda: obj(x={"type": "string", "pattern": "(?=a)b"}),
    "deep": lambda: nested(100),
    "very deep": lambda: nested(20_000),
    "1.9 MB": lambda: obj(**{f"property_{n}": {"enum": ["x" * 60, "y" * 60]} for n in range(9_500)}),
    "1.9 MB of one enum": lambda: obj(x={"enum": [f"value {n:06}" for n in range(110_000)]}),
}
REGEXES = {
    "bomb": "(a{1000}){1000}",
    "bigger bomb": "((a{1000}){1000}){1000}",
    "look ahead": "(?=a)b",
    "negative look ahead": "(?!a)b",
    "look behind": "(?<=a)b",
    "back reference": r"(a)\1",
    "open group": "(",
    "closed group": "a)",
    "open class": "[a",
    "nothing to repeat": "*a",
    "backwards repeat": "a{5,2}",
    "trailing backslash": "\\",
    "conditional": "(a)?(?(1)b|c)",
    "1.9 MB": "ab|" * 600_000 + "c",
    "deep": "(" * 20_000 + "a" + ")" * 20_000,
    "deep and unbalanced": "(" * 50_000,
}


def dumps(body: Json) -> bytes:
    """JSON of any depth: the standard encoder recurses."""
    marks: list[str] = []

    def flat(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"type", "properties", "required"} and "a" in value["properties"]:
            depth, inner = 0, value
            while isinstance(inner, dict) and "a" in inner.get("properties", {}):
                depth, inner = depth + 1, inner["properties"]["a"]
            head, tail = '{"type":"object","properties":{"a":', '},"required":["a"]}'
            marks.append(head * depth + json.dumps(inner) + tail * depth)
            return f"@@{len(marks) - 1}@@"
        if isinstance(value, dict):
            return {key: flat(item) for key, item in value.items()}
        return [flat(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(flat(body))
    for number, mark in enumerate(marks):
        text = text.replace(f'"@@{number}@@"', mark)
    return text.encode()


@both
@pytest.mark.parametrize("kind", BAD_SCHEMAS)
@pytest.mark.parametrize("place", ["tool", "response_format"])
def test_bad_schemas(api: Api, dialect: Dialect, kind: str, place: str) -> None:
    schema = BAD_SCHEMAS[kind]()
    if place == "tool":
        fields: Json = {"tools": [tool("f", schema)], "tool_choice": "required"}
    else:
        fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    content = dumps(api.body(dialect, max_tokens=20, **fields))
    assert len(content) < 2_000_000 or kind == "deep"
    with within(SECONDS):
        clear(api.raw(dialect, content), dialect)


@pytest.mark.parametrize("kind", REGEXES)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_regexes(api: Api, kind: str, stream: bool) -> None:
    with within(SECONDS):
        answer = api.chat("huggingface", response_format={"type": "regex", "value": REGEXES[kind]}, stream=stream)
    clear(answer, "huggingface")


ODD_SCHEMAS: dict[str, Json] = {
    "a tree": obj(x={"$ref": "#/$defs/tree"})
    | {"$defs": {"tree": obj([], next={"$ref": "#/$defs/tree"}, leaf={"type": "boolean"})}},
    "empty enum": obj(x={"enum": []}),
    "impossible range": obj(x={"type": "integer", "minimum": 5, "maximum": 3}),
    "never": obj(x=False),
    "huge length": obj(x={"type": "string", "minLength": 10**9}),
    "huge maximum": obj(x={"type": "string", "maxLength": 10**9}),
    "huge number": obj(x={"type": "integer", "minimum": 10**400}),
    # More costs memory without end where it costs any, and others live on this machine.
    "huge array": obj(x={"type": "array", "items": {"type": "boolean"}, "maxItems": 10**6}),
    "huge array at least": obj(x={"type": "array", "items": {"type": "boolean"}, "minItems": 3 * 10**6}),
    "pattern bomb anywhere": obj(x={"type": "string", "pattern": "(a{1000}){1000}"}),
    "pattern bomb of classes": obj(x={"type": "string", "pattern": r"^(\w{1,1000}\s?){1,1000}$"}),
    "many alternatives": obj(x={"anyOf": [{"const": f"{n}" * 5} for n in range(5_000)]}),
    "many of all": obj(x={"allOf": [{"type": "string", "maxLength": n + 5} for n in range(200)]}),
    "one of objects": obj(x={"oneOf": [obj(a={"const": n}) for n in range(50)]}),
    "unknown keywords": obj(x={"type": "boolean", "x-hint": {"a": [1]}}),
    "multipleOf": obj(x={"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 99}),
    "patternProperties": {"type": "object", "patternProperties": {"^a": {"type": "boolean"}}},
    "if then": obj(x={"type": "integer"}) | {"if": {"properties": {"x": {"const": 1}}}, "then": {"required": ["x"]}},
    "no object": {"type": "string"},
    "empty": {},
    "exponential": {
        "$defs": {f"d{n}": obj(a={"$ref": f"#/$defs/d{n + 1}"}, b={"$ref": f"#/$defs/d{n + 1}"}) for n in range(24)}
        | {"d24": {"const": 1}}
    }
    | obj(x={"$ref": "#/$defs/d0"}),
}


@both
@pytest.mark.parametrize("kind", ODD_SCHEMAS)
def test_odd_schemas_take_no_time(api: Api, dialect: Dialect, kind: str) -> None:
    with within(SECONDS):
        answer = api.chat(dialect, tools=[tool("f", ODD_SCHEMAS[kind])], tool_choice="required", max_tokens=ROOM)
    if answer.status_code == 422 and answer.json().get("error_type") == "tool_error":
        return  # cut by max_tokens: A19
    clear_or_fine(answer, dialect)


@pytest.mark.parametrize("pattern", [r"(\w{1,1000}\s?){1,1000}", "(a|a)*b", "(a*)*b", r"(\d+)+$", ".{0,100000}"])
def test_slow_regexes_take_no_time(api: Api, pattern: str) -> None:
    with within(SECONDS):
        answer = api.chat("huggingface", response_format={"type": "regex", "value": pattern}, max_tokens=ROOM)
    clear_or_fine(answer, "huggingface")


@both
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_thousand_tools(api: Api, dialect: Dialect, choice: str) -> None:
    with within(SECONDS):
        clear(api.chat(dialect, tools=[tool(f"t{n}") for n in range(1000)], tool_choice=choice), dialect)


@both
def test_ten_thousand_messages(api: Api, dialect: Dialect) -> None:
    turns = [{"role": role, "content": "a"} for _ in range(5_000) for role in ("user", "assistant")]
    with within(SECONDS):
        clear(api.chat(dialect, messages=turns), dialect)


@both
def test_a_message_of_two_megabytes(api: Api, dialect: Dialect) -> None:
    for word in ("word ", "a", " ", "é", "\n", "👩‍🚀"):
        content = word * (1_900_000 // len(json.dumps(word)[1:-1]))
        with within(SECONDS):
            clear(api.chat(dialect, messages=[{"role": "user", "content": content}]), dialect)


@both
@pytest.mark.parametrize("depth", [100, 1000, 100_000])
@pytest.mark.parametrize("where", ["body", "field", "content"])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_nesting(api: Api, dialect: Dialect, depth: int, where: str, brackets: str) -> None:
    opening, closing = ('{"a":', "}") if brackets == "{}" else ("[", "]")
    value = (opening * depth + "1" + closing * depth).encode()
    content = {
        "body": value,
        "field": json.dumps(api.body(dialect, metadata="@")).encode().replace(b'"@"', value),
        "content": json.dumps(api.body(dialect, messages=[{"role": "user", "content": "@"}])).encode(),
    }[where].replace(b'"@"', value)
    with within(SECONDS):
        clear(api.raw(dialect, content), dialect)


@both
@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "max_tokens", "seed", "frequency_penalty", "top_logprobs", "stop", "n"]
)
@pytest.mark.parametrize("number", ["9" * 100_000, "1" + "0" * 5_000 + ".5", "1e400", "-1e400", "1e99999999999"])
def test_huge_numbers(api: Api, dialect: Dialect, name: str, number: str) -> None:
    content = json.dumps(api.body(dialect, logprobs=True, **{name: "@"})).encode().replace(b'"@"', number.encode())
    with within(SECONDS):
        answer = api.raw(dialect, content)
    if name == "n" and dialect == "huggingface":  # ignored, if it can be read
        clear_or_fine(answer, dialect)
    else:
        clear(answer, dialect)


@both
@pytest.mark.parametrize("text", [r"a\u0000b", r"\u0000", r"\ud800", r"a\udfff", r"\udc00\ud800", r"\ufffe\uffff"])
@pytest.mark.parametrize("where", ["content", "name", "stop", "tool", "description", "enum", "tool_prompt", "user"])
def test_odd_characters(api: Api, dialect: Dialect, text: str, where: str) -> None:
    fields: Json = {
        "content": {"messages": [{"role": "user", "content": "@"}]},
        "name": {"messages": [{"role": "user", "name": "@", "content": "a"}]},
        "stop": {"stop": ["@"]},
        "tool": {"tools": [tool("@")], "tool_choice": "required"},
        "description": {"tools": [tool("f", description="@")], "tool_choice": "required"},
        "enum": {"tools": [tool("f", obj(x={"enum": ["@"]}))], "tool_choice": "required"},
        "tool_prompt": {"tools": [tool("f")], "tool_prompt": "@"},
        "user": {"user": "@"},
    }[where]
    content = json.dumps(api.body(dialect, **({"max_tokens": ROOM} | fields))).replace("@", text).encode()
    with within(SECONDS):
        answer = api.raw(dialect, content)
    clear_or_fine(answer, dialect)


@both
@pytest.mark.parametrize("name", ["", " ", 'a"b', "a\\b", "a\nb", "é日本", "a" * 10_000, "<tool_call>", "{}", "../x"])
def test_odd_tool_names(api: Api, dialect: Dialect, name: str) -> None:
    with within(SECONDS):
        answer = api.chat(dialect, tools=[tool(name)], tool_choice="required", max_tokens=ROOM)
    clear_or_fine(answer, dialect)
    if answer.status_code == 200:
        calls = answer.json()["choices"][0]["message"]["tool_calls"]
        assert {call["function"]["name"] for call in calls} == {name}


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ["x"] * 100_000),
        ("stop", ["x" * 1_000_000]),
        ("tool_choice", "x" * 1_000_000),
        ("response_format", {"type": "x" * 1_000_000}),
        ("temperature", "x" * 1_000_000),
    ],
    ids=["stops", "stop", "choice", "format", "temperature"],
)
def test_long_values(api: Api, dialect: Dialect, name: str, value: Any) -> None:
    with within(SECONDS):
        answer = api.chat(dialect, **{name: value})
    clear_or_fine(answer, dialect) if name == "stop" else clear(answer, dialect)
    if answer.status_code != 200:
        assert len(answer.content) < 100_000  # it does not say everything back


@both
def test_many_fields(api: Api, dialect: Dialect) -> None:
    with within(SECONDS):
        clear_or_fine(api.chat(dialect, **{f"field_{n}": n for n in range(90_000)}), dialect)


@both
@pytest.mark.parametrize("value", ["x" * 5_000, "a b", '"', "<script>", "%0d%0aset-cookie: a=b", "\u00e9", ""])
def test_odd_request_ids(api: Api, dialect: Dialect, value: str) -> None:
    answer = api.client.post(
        api.path(dialect), json=api.body(dialect), headers=[(b"x-request-id", value.encode("latin-1"))]
    )
    assert answer.status_code < 500 and "set-cookie" not in answer.headers


@both
def test_huge_headers(api: Api, dialect: Dialect) -> None:
    try:
        answer = api.chat(dialect, {"x-note": "x" * 500_000})
    except httpx.TransportError:
        return  # hung up on
    assert answer.status_code in (200, 400, 413, 431)


@both
def test_a_client_that_leaves(api: Api, dialect: Dialect) -> None:
    for _ in range(5):
        body = api.body(dialect, stream=True, max_tokens=1900)
        with api.client.stream("POST", api.path(dialect), json=body) as answer:
            next(answer.iter_raw())


@both
def test_others_are_served_meanwhile(api: Api, dialect: Dialect) -> None:
    """While hostile grammars are refused, a plain request takes no longer than they do."""
    hostile: list[Json] = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD_SCHEMAS[kind]()}}}
        for kind in ("1.9 MB", "recursive reference", "1.9 MB of one enum")
    ]

    async def run() -> tuple[list[httpx.Response], list[float]]:
        async with httpx.AsyncClient(base_url=api.client.base_url, timeout=60, trust_env=False) as client:
            path = api.path(dialect)
            attacks = [
                asyncio.create_task(client.post(path, json=api.body(dialect, **fields))) for fields in hostile * 3
            ]
            times = []
            while not all(attack.done() for attack in attacks):
                start = time.monotonic()
                answer = await client.post(path, json=api.body(dialect))
                assert answer.status_code == 200
                times.append(time.monotonic() - start)
            return [await attack for attack in attacks], times

    answers, times = asyncio.run(run())
    for answer in answers:
        clear(answer, dialect)
    assert max(times) < SECONDS


@both
def test_the_same_grammar_many_times(api: Api, dialect: Dialect) -> None:
    for seed in range(10):
        with within(SECONDS):
            api.ok(dialect, tools=[tool("f", PLACE)], tool_choice="required", max_tokens=ROOM, seed=seed)
