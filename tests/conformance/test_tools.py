"""Tools: their shapes, the eight forms of a choice, calls whole and in fragments (PROTOCOL sections 1 to 4)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.wire import (
    DIALECTS,
    OMIT,
    PLACE,
    QUESTION,
    ROOM,
    Api,
    Dialect,
    Json,
    Said,
    completion,
    obj,
    refused,
    stream,
    tool,
    valid,
)

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
both = pytest.mark.parametrize("dialect", DIALECTS)
streamed_or_not = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])

F, G, H = tool("f"), tool("g", obj(x={"type": "boolean"}), "Gees."), tool("h", obj(), None)
NAMED: Json = {"type": "function", "function": {"name": "f"}}


def ask(api: Api, dialect: Dialect, streamed: bool = False, **fields: Any) -> Said:
    return api.ask(dialect, streamed, **({"max_tokens": ROOM} | fields))


# ------------------------------------------------------------------------------------------------------ their shapes


@both
@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_a_schema_under_either_key_is_kept_to(api: Api, dialect: Dialect, key: str) -> None:
    """A7."""
    (call,) = ask(api, dialect, tools=[tool("f", PLACE, key=key)], tool_choice=NAMED).calls
    valid(call.arguments, PLACE)


@both
@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"type": "function"},
        {"function": F["function"]},
        F | {"type": "banana"},
        F | {"type": 5},
        F | {"type": None},
        F | {"function": None},
        F | {"function": "f"},
        F | {"function": []},
        {"type": "function", "function": {"parameters": PLACE}},
        tool("f") | {"function": {"name": 5, "parameters": PLACE}},
        tool("f") | {"function": {"name": None, "parameters": PLACE}},
        tool("f", "an object"),
        tool("f", []),
        tool("f", 5),
        tool("f", description=None) | {"function": {"name": "f", "description": 5, "parameters": PLACE}},
    ],
    ids=repr,
)
def test_a_tool_of_another_shape(api: Api, dialect: Dialect, broken: Json) -> None:
    refused(api.chat(dialect, tools=[F, broken]), dialect, names="tools")


@pytest.mark.parametrize("choice", [OMIT, "auto", "required"], ids=["none", "auto", "required"])
def test_huggingface_tools_need_a_schema(api: Api, choice: Any) -> None:
    bare = {"type": "function", "function": {"name": "f", "description": "d"}}
    refused(api.chat("huggingface", tools=[bare], tool_choice=choice), "huggingface", names="tools")


def test_openai_tools_need_no_schema(api: Api) -> None:
    api.ok("openai", tools=[{"type": "function", "function": {"name": "f"}}])


def test_huggingface_no_tools(api: Api) -> None:
    fields: Json = {"temperature": 0, "max_tokens": 5}
    bare = api.ok("huggingface", **fields)
    empty = api.ok("huggingface", tools=[], **fields)
    assert (empty["usage"], empty["choices"]) == (bare["usage"], bare["choices"])


def test_openai_no_tools_is_an_error(api: Api) -> None:
    refused(api.chat("openai", tools=[]), "openai", names="tools")


# ------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    "choice",
    [{"FunctionName": "f"}, "f", NAMED, {"function": {"name": "f"}}],
    ids=["FunctionName", "bare", "object", "object without type"],
)
@streamed_or_not
def test_huggingface_names_a_tool(api: Api, choice: Any, streamed: bool) -> None:
    said = ask(api, "huggingface", streamed, tools=[H, F, G], tool_choice=choice)
    (call,) = said.calls
    assert (call.name, said.finish_reason, said.content) == ("f", "stop", None)
    valid(call.arguments, PLACE)


@streamed_or_not
def test_openai_names_a_tool(api: Api, streamed: bool) -> None:
    said = ask(api, "openai", streamed, tools=[H, F, G], tool_choice=NAMED)
    (call,) = said.calls
    assert (call.name, said.finish_reason) == ("f", "stop")
    valid(call.arguments, PLACE)


@both
@streamed_or_not
@pytest.mark.parametrize("seed", range(4))
def test_a_call_is_required(api: Api, dialect: Dialect, streamed: bool, seed: int) -> None:
    schemas = {"f": PLACE, "g": G["function"]["parameters"], "h": H["function"]["parameters"]}
    said = ask(api, dialect, streamed, tools=[F, G, H], tool_choice="required", seed=seed)
    assert said.calls
    assert said.finish_reason == ("stop" if dialect == "huggingface" else "tool_calls")
    for call in said.calls:
        valid(call.arguments, schemas[call.name])


@both
@streamed_or_not
def test_no_call(api: Api, dialect: Dialect, streamed: bool) -> None:
    said = ask(api, dialect, streamed, tools=[F, G], tool_choice="none", max_tokens=50)
    assert not said.calls and said.content
    assert said.finish_reason == "length"


@both
@streamed_or_not
def test_the_model_may_call(api: Api, dialect: Dialect, streamed: bool) -> None:
    said = ask(api, dialect, streamed, tools=[F, G], tool_choice="auto", max_tokens=50)
    assert said.calls or said.content


@pytest.mark.parametrize("choice", [OMIT, None, "OneOf"], ids=["absent", "null", "OneOf"])
@streamed_or_not
def test_huggingface_one_of_is_auto(api: Api, choice: Any, streamed: bool) -> None:
    """A3."""
    fields: Json = {"tools": [F, G], "temperature": 0, "max_tokens": 40}
    expected = ask(api, "huggingface", streamed, tool_choice="auto", **fields)
    assert ask(api, "huggingface", streamed, tool_choice=choice, **fields) == expected


@pytest.mark.parametrize("choice", [OMIT, None], ids=["absent", "null"])
def test_openai_no_choice_is_auto(api: Api, choice: Any) -> None:
    fields: Json = {"tools": [F, G], "temperature": 0, "max_tokens": 40}
    expected = ask(api, "openai", tool_choice="auto", **fields)
    assert ask(api, "openai", tool_choice=choice, **fields) == expected


@pytest.mark.parametrize("name", ["OneOf", "auto", "none", "required"])
@pytest.mark.parametrize("form", ["FunctionName", "object", "object without type"])
def test_huggingface_tool_with_a_reserved_name(api: Api, name: str, form: str) -> None:
    """A4."""
    choice: Json = {
        "FunctionName": {"FunctionName": name},
        "object": {"type": "function", "function": {"name": name}},
        "object without type": {"function": {"name": name}},
    }[form]
    (call,) = ask(api, "huggingface", tools=[F, tool(name)], tool_choice=choice).calls
    assert call.name == name


def test_huggingface_a_reserved_word_is_no_tool(api: Api) -> None:
    """A4: the bare word keeps its meaning."""
    assert not ask(api, "huggingface", tools=[F, tool("none")], tool_choice="none", max_tokens=20).calls


@pytest.mark.parametrize("choice", [5, True, [], ["f"], {}, {"FunctionName": 5}, {"function": "f"}, {"function": {}}])
def test_huggingface_choice_of_another_shape(api: Api, choice: Any) -> None:
    refused(api.chat("huggingface", tools=[F], tool_choice=choice), "huggingface", names="tool_choice")


@pytest.mark.parametrize(
    "choice",
    [
        "OneOf",
        "f",
        "any",
        5,
        True,
        [],
        {},
        {"FunctionName": "f"},
        {"type": "function"},
        {"type": "function", "function": {}},
    ],
    ids=repr,
)
def test_openai_choice_of_another_shape(api: Api, choice: Any) -> None:
    refused(api.chat("openai", tools=[F], tool_choice=choice), "openai", names="tool_choice")


@pytest.mark.parametrize(
    "choice",
    [{"FunctionName": "x"}, "x", {"type": "function", "function": {"name": "x"}}, {"function": {"name": "x"}}],
    ids=repr,
)
@pytest.mark.parametrize("tools", [[F], [], None, OMIT], ids=["others", "empty", "null", "absent"])
def test_huggingface_unknown_tool(api: Api, choice: Any, tools: Any) -> None:
    answer = api.chat("huggingface", tools=tools, tool_choice=choice)
    refused(answer, "huggingface", "tool_error")


@pytest.mark.parametrize("tools", [[F], None, OMIT], ids=["others", "null", "absent"])
def test_openai_unknown_tool(api: Api, tools: Any) -> None:
    refused(api.chat("openai", tools=tools, tool_choice={"type": "function", "function": {"name": "x"}}), "openai")


@both
@pytest.mark.parametrize("tools", [None, OMIT], ids=["null", "absent"])
def test_required_without_tools(api: Api, dialect: Dialect, tools: Any) -> None:
    refused(api.chat(dialect, tools=tools, tool_choice="required"), dialect, "tool_error")


@both
@pytest.mark.parametrize("streamed", [False, True])
def test_errors_come_before_a_stream(api: Api, dialect: Dialect, streamed: bool) -> None:
    choice = {"type": "function", "function": {"name": "x"}}
    refused(api.chat(dialect, tools=[F], tool_choice=choice, stream=streamed), dialect, "tool_error")


# --------------------------------------------------------------------------------------------------------- the call


def test_huggingface_calls_tell_the_description(api: Api) -> None:
    (call,) = ask(api, "huggingface", tools=[F, G], tool_choice={"FunctionName": "g"}).calls
    assert call.description == "Gees."


def test_huggingface_no_description_is_no_key(api: Api) -> None:
    body = api.ok("huggingface", tools=[H], tool_choice="required", max_tokens=ROOM)
    for call in body["choices"][0]["message"]["tool_calls"]:
        assert "description" not in call["function"]


@streamed_or_not
def test_huggingface_ids_count_from_zero(api: Api, streamed: bool) -> None:
    """A1: an integer, in a stream its string."""
    calls = ask(api, "huggingface", streamed, tools=[F, G], tool_choice="required").calls
    assert [call.id for call in calls] == [str(n) if streamed else n for n in range(len(calls))]


@streamed_or_not
@pytest.mark.parametrize("highest", [0, 4, 41])
def test_huggingface_ids_continue_the_conversation(api: Api, streamed: bool, highest: int) -> None:
    earlier = [
        {"id": number, "type": "function", "function": {"name": "f", "arguments": {}}} for number in (highest, 0)
    ]
    messages = [*QUESTION, {"role": "assistant", "tool_calls": earlier}, {"role": "user", "content": "And now?"}]
    (call,) = ask(api, "huggingface", streamed, messages=messages, tools=[F], tool_choice=NAMED).calls
    assert call.id == (str(highest + 1) if streamed else highest + 1)


@streamed_or_not
def test_openai_ids_are_unique(api: Api, streamed: bool) -> None:
    headers = {"x-use-cache": "false"}
    fields: Json = {"tools": [F], "tool_choice": NAMED, "max_tokens": ROOM}
    ids = set()
    for _ in range(4):
        if streamed:
            ids |= {call.id for call in api.stream("openai", headers, **fields).calls()}
        else:
            ids |= {call["id"] for call in api.ok("openai", headers, **fields)["choices"][0]["message"]["tool_calls"]}
    assert len(ids) == 4


@both
def test_a_call_streamed_is_the_call_whole(api: Api, dialect: Dialect) -> None:
    fields: Json = {"tools": [F, G, H], "tool_choice": "required", "seed": 9}
    whole, parts = (ask(api, dialect, streamed, **fields) for streamed in (False, True))
    assert [(c.name, c.arguments) for c in whole.calls] == [(c.name, c.arguments) for c in parts.calls]
    assert whole.finish_reason == parts.finish_reason


@both
def test_the_usage_of_a_streamed_call(api: Api, dialect: Dialect) -> None:
    fields: Json = {"tools": [F], "tool_choice": NAMED, "seed": 9, "max_tokens": ROOM}
    found = api.stream(dialect, stream_options={"include_usage": True}, **fields)
    whole = api.ok(dialect, **fields)["usage"]
    assert {key: found.usage[0]["usage"][key] for key in ("prompt_tokens", "completion_tokens")} == {
        key: whole[key] for key in ("prompt_tokens", "completion_tokens")
    }


def test_huggingface_later_fragments_have_no_name(api: Api) -> None:
    found = api.stream("huggingface", tools=[F], tool_choice=NAMED, max_tokens=ROOM)
    functions = [delta["tool_calls"]["function"] for delta in found.deltas() if "tool_calls" in delta]
    assert functions[0] == {"name": "f", "arguments": ""}
    assert len(functions) > 2 and all(function["name"] is None for function in functions[1:])
    valid(json.loads("".join(function["arguments"] for function in functions)), PLACE)


def test_openai_fragments_are_lists(api: Api) -> None:
    found = api.stream("openai", tools=[F], tool_choice=NAMED, max_tokens=ROOM)
    lists = [delta["tool_calls"] for delta in found.deltas() if "tool_calls" in delta]
    assert len(lists) > 1 and all(isinstance(calls, list) for calls in lists)
    assert sum("id" in call for calls in lists for call in calls) == 1
    assert sum("name" in call["function"] for calls in lists for call in calls) == 1
    valid(json.loads("".join(call["function"]["arguments"] for calls in lists for call in calls)), PLACE)


@both
@streamed_or_not
@pytest.mark.parametrize("parallel", [True, False, None])
def test_parallel_tool_calls_are_taken(api: Api, dialect: Dialect, streamed: bool, parallel: Any) -> None:
    said = ask(api, dialect, streamed, tools=[G, H], tool_choice="required", parallel_tool_calls=parallel)
    assert {call.name for call in said.calls} <= {"g", "h"} and said.calls


@pytest.mark.parametrize("n", [2, 4])
@streamed_or_not
def test_openai_calls_of_each_choice(api: Api, n: int, streamed: bool) -> None:
    fields: Json = {"tools": [F], "tool_choice": NAMED, "n": n, "max_tokens": ROOM}
    if streamed:
        found = api.stream("openai", **fields)
        calls = [found.calls(index) for index in range(n)]
        arguments = [call.arguments for choice in calls for call in choice]
    else:
        choices = api.ok("openai", **fields)["choices"]
        arguments = [json.loads(c["message"]["tool_calls"][0]["function"]["arguments"]) for c in choices]
    assert len(arguments) == n
    for value in arguments:
        valid(value, PLACE)


@pytest.mark.parametrize("tokens", [1, 4, 8, 12, 16, 20])
def test_huggingface_cut_call_is_an_error(api: Api, tokens: int) -> None:
    """A19."""
    answer = api.chat("huggingface", tools=[F], tool_choice=NAMED, max_tokens=tokens)
    refused(answer, "huggingface", "tool_error")


@both
def test_cut_call_in_a_stream(api: Api, dialect: Dialect) -> None:
    """A19: the fragment, and the reason."""
    assert api.stream(dialect, tools=[F], tool_choice=NAMED, max_tokens=4).finish_reason() == "length"


def test_openai_cut_call(api: Api) -> None:
    assert api.ok("openai", tools=[F], tool_choice=NAMED, max_tokens=4)["choices"][0]["finish_reason"] == "length"


def test_the_dialect_decides_the_shape_of_a_call(api: Api) -> None:
    """A2."""
    fields: Json = {"tools": [F], "tool_choice": "required", "max_tokens": ROOM}
    for path, wanted in ((0, 1), (1, 0)):
        headers = {"x-dialect": DIALECTS[wanted]}
        body = api.body("openai", **fields)
        answer = api.client.post(api.path(DIALECTS[path]), json=body, headers=headers)
        assert completion(answer, DIALECTS[wanted])["choices"][0]["message"]["tool_calls"]
        answer = api.client.post(api.path(DIALECTS[path]), json=body | {"stream": True}, headers=headers)
        assert stream(answer, DIALECTS[wanted]).calls()


# ----------------------------------------------------------------------------------------- arguments keep to schemas

SCHEMAS: dict[str, Json] = {
    "nothing": obj(),
    "enum": obj(x={"enum": ["a", "b", 5, None, True]}),
    "const": obj(x={"const": "only"}),
    "boolean": obj(x={"type": "boolean"}),
    "null": obj(x={"type": "null"}),
    "integer": obj(x={"type": "integer", "minimum": -5, "maximum": 300}),
    "number": obj(x={"type": "number", "minimum": 0, "maximum": 1}),
    "string": obj(x={"type": "string", "maxLength": 8}),
    "string of a length": obj(x={"type": "string", "minLength": 3, "maxLength": 5}),
    "pattern": obj(x={"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{2}$"}),
    "array": obj(x={"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 3}),
    "tuple": obj(
        x={"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 1}], "items": False, "minItems": 2}
    ),
    "nested": obj(x=obj(y=obj(z={"type": "boolean"}))),
    "objects in an array": obj(x={"type": "array", "items": PLACE, "maxItems": 2}),
    "any of": obj(x={"anyOf": [{"type": "boolean"}, {"enum": ["a"]}]}),
    "types": obj(x={"type": ["boolean", "null"]}),
    "reference": obj(x={"$ref": "#/$defs/place"}) | {"$defs": {"place": PLACE}},
    "optional": obj([], x={"type": "boolean"}, y={"type": "boolean"}),
    "some optional": obj(["y"], x={"type": "boolean"}, y={"type": "boolean"}),
    "unicode": obj(**{"é 日本": {"enum": ["ü", "👩‍🚀"]}}),
    "quotes": obj(**{'a"b\\c\n': {"enum": ['"', "\\", "\n"]}}),
    "date": obj(x={"type": "string", "format": "date"}),
}


@both
@streamed_or_not
@pytest.mark.parametrize("kind", SCHEMAS)
def test_arguments_keep_to_the_schema(api: Api, dialect: Dialect, streamed: bool, kind: str) -> None:
    said = ask(api, dialect, streamed, tools=[tool("f", SCHEMAS[kind])], tool_choice=NAMED, seed=2)
    (call,) = said.calls
    assert said.finish_reason == "stop"
    valid(call.arguments, SCHEMAS[kind])


@both
@pytest.mark.parametrize("name", ["get_weather", "get-weather", "getWeather2", "a" * 64])
def test_names(api: Api, dialect: Dialect, name: str) -> None:
    (call,) = ask(
        api, dialect, tools=[F, tool(name)], tool_choice={"type": "function", "function": {"name": name}}
    ).calls
    assert call.name == name


@both
@pytest.mark.parametrize("count", [2, 20, 40])
def test_many_tools(api: Api, dialect: Dialect, count: int) -> None:
    tools = [tool(f"tool_{number}", obj(), None) for number in range(count)]
    said = ask(api, dialect, tools=tools, tool_choice="required", max_tokens=200)
    assert said.calls and all(call.name in {f"tool_{number}" for number in range(count)} for call in said.calls)


# ------------------------------------------------------------------------------------------------------ tool_prompt


def prompt_tokens(api: Api, **fields: Any) -> int:
    return int(api.ok("huggingface", tools=[F], max_tokens=1, tool_choice="auto", **fields)["usage"]["prompt_tokens"])


def test_tools_are_part_of_the_prompt(api: Api) -> None:
    bare = api.ok("huggingface", max_tokens=1)["usage"]["prompt_tokens"]
    assert prompt_tokens(api) > bare + 20


@pytest.mark.parametrize("value", ["", None])
def test_no_tool_prompt_is_the_default_one(api: Api, value: Any) -> None:
    assert prompt_tokens(api, tool_prompt=value) == prompt_tokens(api)


def test_a_tool_prompt_takes_the_place_of_the_default(api: Api) -> None:
    assert prompt_tokens(api, tool_prompt="Go.") < prompt_tokens(api)
    assert prompt_tokens(api, tool_prompt="Go. " * 200) > prompt_tokens(api) + 200


def test_a_tool_prompt_without_tools_changes_nothing(api: Api) -> None:
    bare, prompted = (api.ok("huggingface", max_tokens=1, tool_prompt=value) for value in (OMIT, "Go. " * 50))
    assert bare["usage"] == prompted["usage"]
