"""Conversations: roles, content, parts, earlier tool calls (PROTOCOL section 1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.wire import DIALECTS, QUESTION, Api, Dialect, Json, completion, refused

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
both = pytest.mark.parametrize("dialect", DIALECTS)

CALL: Json = {"id": 0, "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def text(value: Any) -> Json:
    return {"type": "text", "text": value}


def after_a_call(call: Any, **message: Any) -> list[Json]:
    return [*QUESTION, {"role": "assistant", "tool_calls": [call]} | message, user("And now?")]


def without(key: str) -> Json:
    return {name: value for name, value in CALL.items() if name != key}


def function(**changes: Any) -> Json:
    changed = CALL["function"] | changes
    return CALL | {"function": {name: value for name, value in changed.items() if value is not ...}}


@both
@pytest.mark.parametrize(
    "messages",
    [
        QUESTION,
        [{"role": "system", "content": "Be brief."}, *QUESTION],
        [user("a"), {"role": "assistant", "content": "b"}, user("c")],
        [user([text("a")])],
        [user([text("a"), text("b")])],
        [{"role": "system", "content": [text("a")]}, *QUESTION],
        [{"role": "user", "name": "ann", "content": "a"}],
        [user("é 日本 👩‍🚀 <|im_end|> {{ 1 }} {% x %}")],
        [user("")],
    ],
    ids=["user", "system", "turns", "part", "parts", "system part", "name", "unicode", "empty"],
)
def test_accepted(api: Api, dialect: Dialect, messages: list[Json]) -> None:
    api.ok(dialect, messages=messages)


@both
@pytest.mark.parametrize(
    "message",
    [
        {"content": "no role"},
        {"role": None, "content": "a"},
        {"role": 5, "content": "a"},
        {"role": ["user"], "content": "a"},
        {"role": "user"},
        user(None),
        user(5),
        user(True),
        user({"text": "a"}),
        user([5]),
        user([None]),
        user([{"type": "text"}]),
        user([text(5)]),
        user([text(None)]),
        user([{"text": "no type", "type": 5}]),
        user([{"type": "banana", "banana": "a"}]),
        user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]),
        user([text("a"), {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]),
        {"role": "assistant"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "a", "name": 5},
        {"role": "assistant", "content": "a", "tool_calls": "f"},
        {"role": "assistant", "content": "a", "tool_calls": {}},
        {"role": "assistant", "content": "a", "tool_calls": [5]},
        {"role": "tool", "content": "a", "tool_call_id": {}},
        {"role": "tool", "content": "a", "tool_call_id": 1.5},
    ],
    ids=repr,
)
def test_refused(api: Api, dialect: Dialect, message: Json) -> None:
    refused(api.chat(dialect, messages=[*QUESTION, message]), dialect, names="messages")


def test_huggingface_needs_a_message(api: Api) -> None:
    refused(api.chat("huggingface", messages=[]), "huggingface", names="messages")


@both
def test_text_parts_say_what_a_string_says(api: Api, dialect: Dialect) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 10}
    whole, part = (api.ok(dialect, messages=[user(content)], **fields) for content in ("hello", [text("hello")]))
    assert (whole["usage"], whole["choices"]) == (part["usage"], part["choices"])


@both
@pytest.mark.parametrize("role", ["critic", "function", "developer", "USER"])
def test_an_unknown_role_goes_to_the_template(api: Api, dialect: Dialect, role: str) -> None:
    answer = api.chat(dialect, messages=[*QUESTION, {"role": role, "content": "a"}])
    if answer.status_code == 200:
        completion(answer, dialect)
    else:
        refused(answer, dialect, "template_error")


@both
@pytest.mark.parametrize("identity", [0, 7, "0", "call_abc", "chatcmpl-tool-1"])
@pytest.mark.parametrize("arguments", [{"x": 1}, '{"x": 1}', {}, "{}"], ids=repr)
def test_earlier_calls_in_either_shape(api: Api, dialect: Dialect, identity: Any, arguments: Any) -> None:
    api.ok(
        dialect,
        messages=after_a_call(CALL | {"id": identity} | {"function": function(arguments=arguments)["function"]}),
    )


@both
def test_the_shape_of_earlier_arguments_is_no_matter(api: Api, dialect: Dialect) -> None:
    found = [
        api.ok(dialect, messages=after_a_call(function(arguments=arguments)), temperature=0, max_tokens=10)
        for arguments in ({"x": 1}, '{"x": 1}')
    ]
    assert found[0]["usage"] == found[1]["usage"] and found[0]["choices"] == found[1]["choices"]


@both
@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": ""}, {"content": "Let me see."}], ids=repr)
def test_content_beside_a_call(api: Api, dialect: Dialect, message: Json) -> None:
    api.ok(dialect, messages=after_a_call(CALL, **message))


@both
def test_an_earlier_call_may_describe_its_function(api: Api, dialect: Dialect) -> None:
    api.ok(dialect, messages=after_a_call(function(description="Does it.")))


@both
@pytest.mark.parametrize(
    "call",
    [
        without("id"),
        without("type"),
        without("function"),
        function(name=...),
        function(arguments=...),
        function(name=5),
        function(arguments=5),
        function(arguments=[1]),
        function(arguments=None),
        function(description=5),
        CALL | {"id": None},
        CALL | {"id": 1.5},
        CALL | {"id": [1]},
        CALL | {"type": 5},
        CALL | {"function": "f"},
    ],
    ids=repr,
)
def test_earlier_calls_refused(api: Api, dialect: Dialect, call: Json) -> None:
    refused(api.chat(dialect, messages=after_a_call(call)), dialect, names="tool_calls")


@pytest.mark.parametrize("identity", [0, "0", "call_abc"])
def test_huggingface_tool_results(api: Api, identity: Any) -> None:
    _tool_result(api, "huggingface", identity)


@pytest.mark.parametrize("identity", ["0", "call_abc"])
def test_openai_tool_results(api: Api, identity: str) -> None:
    _tool_result(api, "openai", identity)


def test_openai_tool_call_ids_are_strings(api: Api) -> None:
    messages = [*after_a_call(CALL)[:-1], {"role": "tool", "tool_call_id": 0, "content": "42"}]
    refused(api.chat("openai", messages=messages), "openai", names="tool_call_id")


def _tool_result(api: Api, dialect: Dialect, identity: Any) -> None:
    """Section 6 (c): rewritten for a template without a tool role, or refused."""
    call = CALL | {"id": identity}
    result = {"role": "tool", "tool_call_id": identity, "content": "42"}
    answer = api.chat(dialect, messages=[*after_a_call(call)[:-1], result])
    if answer.status_code == 200:
        completion(answer, dialect)
    else:
        refused(answer, dialect, "template_error")
