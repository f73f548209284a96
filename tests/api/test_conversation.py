"""What a template is given to show: tools, past calls and results, in its own words or in a user's."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from serving.api import conversation, messages
from serving.api.chat import Chat, ToolChoice
from serving.api.tools import registry
from serving.api.tools.base import Format, Tool
from serving.models.families import FAMILIES, Capabilities, probe
from serving.models.template import ChatTemplate

NOTHING = Capabilities(tools=False, tool_calls=False, tool_role=False, system=True)
ALL = Capabilities(tools=True, tool_calls=True, tool_role=True, system=True)
GENERIC, TAGS, MISTRAL = (registry.find(name) for name in ("generic", "json_tags", "mistral"))
FORMATS = pytest.mark.parametrize("form", [GENERIC, TAGS, MISTRAL], ids=lambda form: form.name)

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = Tool("weather", "Now, in Köln or elsewhere", SCHEMA)
CLOCK = Tool("clock", None, {"type": "object"})
DEFINED = [
    {"type": "function", "function": {"name": "weather", "description": WEATHER.description, "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}},
]


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(identifier: str, city: str, content: str = "") -> dict[str, Any]:
    function = {"name": "weather", "arguments": {"city": city}}
    return said("assistant", content, tool_calls=[{"id": identifier, "type": "function", "function": function}])


def ask(*chat: dict[str, Any], choice: ToolChoice = ToolChoice.AUTO, **more: Any) -> Chat:
    given = list(chat) or [said("user", "Hi")]
    return Chat("m", given, tools=(WEATHER, CLOCK), tool_choice=choice, **more)


def contents(chat: Chat, can: Capabilities = NOTHING, form: Format = GENERIC) -> list[tuple[str, str]]:
    shown, _ = conversation.shown(chat, can, form)
    return [(message["role"], message["content"]) for message in shown]


# --- tools --------------------------------------------------------------------------------------------------------


@FORMATS
def test_a_template_that_knows_tools_gets_them_as_they_are(form: Format) -> None:
    shown, tools = conversation.shown(ask(), ALL, form)
    assert shown == [said("user", "Hi")]
    assert tools == DEFINED


@FORMATS
def test_another_template_finds_them_in_the_last_message(form: Format) -> None:
    first = said("system", "Be terse.")
    (system, last), tools = conversation.shown(ask(first, said("user", "Hi")), NOTHING, form)
    assert tools is None
    assert system == first
    before, listed = last["content"].rsplit("\n", 1)
    assert before == f"Hi\n---\n{form.instructions()}"
    assert json.loads(listed) == [tool["function"] for tool in DEFINED]
    assert "Köln" in listed  # as it is, not escaped


@pytest.mark.parametrize("prompt", [None, ""])
def test_without_a_tool_prompt_the_formats_own_text_comes_before_the_tools(prompt: str | None) -> None:
    ((_, content),) = contents(ask(tool_prompt=prompt))
    assert content.startswith(f"Hi\n---\n{GENERIC.instructions()}\n[")


def test_a_tool_prompt_takes_the_place_of_that_text_before_the_tools() -> None:
    ((_, content),) = contents(ask(tool_prompt="Choose well:"))
    assert content.startswith('Hi\n---\nChoose well:\n[{"name": "weather"')
    assert GENERIC.instructions() not in content


def test_a_template_that_knows_tools_gets_a_tool_prompt_only_when_there_is_one() -> None:
    assert contents(ask(), ALL) == contents(ask(tool_prompt=""), ALL) == [("user", "Hi")]
    assert contents(ask(tool_prompt="Choose well:"), ALL) == [("user", "Hi\n---\nChoose well:")]


@pytest.mark.parametrize("can", [NOTHING, ALL], ids=["no template for tools", "a template for tools"])
def test_tools_that_may_not_be_called_are_not_shown(can: Capabilities) -> None:
    chat = ask(choice=ToolChoice.NONE, tool_prompt="Choose well:")
    assert conversation.shown(chat, can, GENERIC) == ([said("user", "Hi")], None)


@pytest.mark.parametrize("choice", [ToolChoice.AUTO, ToolChoice.REQUIRED, ToolChoice.NAMED])
def test_all_tools_are_shown_whichever_may_be_called(choice: ToolChoice) -> None:
    chat = ask(choice=choice, named_tool="clock")
    assert conversation.shown(chat, ALL, GENERIC)[1] == DEFINED


def test_without_tools_a_tool_prompt_says_nothing() -> None:
    chat = Chat("m", [said("user", "Hi")], tool_prompt="Choose well:")
    assert contents(chat) == contents(chat, ALL) == [("user", "Hi")]


# --- past calls and results ---------------------------------------------------------------------------------------

PAST = (
    said("user", "Weather?"),
    call("0", "Köln", "Let me see."),
    said("tool", "21", tool_call_id="0"),
    said("tool", "22", tool_call_id="0", name="other"),
    said("user", "And now?"),
)


def test_calls_and_results_are_rewritten_into_turns_that_alternate() -> None:
    chat = Chat("m", list(PAST))
    written = 'Let me see.\n{"name": "weather", "arguments": {"city":"Köln"}}'
    results = "The result of calling weather is: 21\nThe result of calling other is: 22"
    assert contents(chat) == [
        ("user", "Weather?"),
        ("assistant", written),
        ("user", f"{results}\nAnd now?"),
    ]
    shown, _ = conversation.shown(chat, NOTHING, GENERIC)
    assert all(set(message) == {"role", "content"} for message in shown)


@FORMATS
def test_calls_are_rewritten_as_the_format_has_them(form: Format) -> None:
    chat = Chat("m", [said("user", "Weather?"), call("0", "Oslo"), said("tool", "3", tool_call_id="0")])
    assert contents(chat, NOTHING, form)[1:] == [
        ("assistant", form.write([("weather", '{"city":"Oslo"}')])),
        ("user", form.result("weather", "3")),
    ]


def test_turns_of_two_users_in_a_row_are_left_for_the_template_to_refuse() -> None:
    chat = Chat("m", [said("user", "a"), said("user", "b"), call("0", "x"), said("tool", "1", tool_call_id="0")])
    assert [content for role, content in contents(chat) if role == "user"][:2] == ["a", "b"]


def test_results_and_then_tools_share_the_last_turn() -> None:
    chat = ask(said("user", "Weather?"), call("0", "Oslo"), said("tool", "3", tool_call_id="0"))
    (*_, (role, last)) = contents(chat)
    assert role == "user"
    assert last.startswith("The result of calling weather is: 3\n---\n")
    assert '"clock"' in last


def test_a_result_whose_call_is_unknown_still_has_its_content() -> None:
    chat = Chat("m", [said("user", "x"), said("assistant", "y"), said("tool", "3", tool_call_id="lost")])
    assert contents(chat)[-1] == ("user", "The result of calling the function is: 3")


def test_a_template_that_knows_them_gets_calls_and_results_as_they_are() -> None:
    chat = Chat("m", [said("user", "Weather?"), call("call_abc", "Köln"), said("tool", "21", tool_call_id="call_abc")])
    shown, _ = conversation.shown(chat, ALL, TAGS)
    assert shown[:2] == chat.messages[:2]
    assert shown[2] == chat.messages[2] | {"name": "weather"}  # which templates want at times


def test_a_template_that_wants_arguments_as_text_gets_them_so() -> None:
    can = Capabilities(tools=True, tool_calls=True, tool_role=True, system=True, string_arguments=True)
    shown, _ = conversation.shown(Chat("m", [said("user", "?"), call("0", "Köln")]), can, TAGS)
    assert shown[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Köln"}'


@pytest.mark.parametrize("can", [NOTHING, ALL, Capabilities(True, True, True, True, string_arguments=True)])
@FORMATS
def test_the_callers_messages_are_left_as_they_are(can: Capabilities, form: Format) -> None:
    chat = ask(*PAST, tool_prompt="Choose well:")
    before = copy.deepcopy(chat.messages)
    conversation.shown(chat, can, form)
    assert chat.messages == before


def test_what_has_no_calls_is_given_on_without_a_copy() -> None:
    chat = Chat("m", [said("user", "Hi"), said("assistant", "Ho"), said("user", "Hi")])
    assert conversation.shown(chat, NOTHING, GENERIC)[0] is chat.messages


@pytest.mark.parametrize(
    ("results", "answered"),
    [
        ([{"name": "clock"}, {"name": "weather"}], ["1", "0"]),  # each has the id of its own call
        ([{}, {}], ["0", "1"]),  # one after the other
        ([{"name": "weather"}, {}], ["0", "1"]),
        ([{"tool_call_id": "1"}, {}], ["1", "0"]),
        ([{}, {}, {}], ["0", "1", None]),  # nobody asked for that one
    ],
)
def test_a_result_that_does_not_say_so_is_of_the_call_that_waits(results: Any, answered: list[str | None]) -> None:
    both = call("0", "Oslo")
    both["tool_calls"] += call("1", "x")["tool_calls"]
    both["tool_calls"][1]["function"]["name"] = "clock"
    chat = Chat("m", [said("user", "?"), both, *(said("tool", "1", **result) for result in results)])
    shown, _ = conversation.shown(chat, ALL, TAGS)
    assert [message.get("tool_call_id") for message in shown[2:]] == answered
    names = {"0": "weather", "1": "clock", None: None}
    assert [message.get("name") for message in shown[2:]] == [names[identifier] for identifier in answered]


# --- ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "identifier", ["0", "call_abc", "chatcmpl-tool-0123456789abcdef", "abc-defgh", "ÄÖÜabcdef", ""]
)
def test_mistral_gets_ids_of_nine_letters_and_digits_the_same_every_time(identifier: str) -> None:
    def mapped() -> tuple[str, str]:
        chat = Chat("m", [said("user", "?"), call(identifier, "x"), said("tool", "1", tool_call_id=identifier)])
        shown, _ = conversation.shown(chat, ALL, MISTRAL)
        return shown[1]["tool_calls"][0]["id"], shown[2]["tool_call_id"]

    called, answered = mapped()
    assert called == answered
    assert len(called) == 9
    assert called.isascii()
    assert called.isalnum()
    assert mapped() == (called, answered)


def test_ids_that_will_do_stay_and_others_stay_apart() -> None:
    def id_of(identifier: str, form: Format) -> str:
        shown, _ = conversation.shown(Chat("m", [call(identifier, "x")]), ALL, form)
        return str(shown[0]["tool_calls"][0]["id"])

    assert id_of("abcdefgh1", MISTRAL) == "abcdefgh1"
    assert id_of("call_abc", TAGS) == "call_abc"
    assert len({id_of(str(number), MISTRAL) for number in range(100)}) == 100


# --- the six families ---------------------------------------------------------------------------------------------

SEED = [  # in the seed's shape: an integer id, arguments as an object, no tool_call_id
    {"role": "user", "content": "Weather in Köln?"},
    {
        "role": "assistant",
        "tool_calls": [{"id": 0, "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}],
    },
    {"role": "tool", "name": "weather", "content": "21 degrees"},
    {"role": "assistant", "content": "It is warm."},
    {"role": "user", "content": "Thanks!"},
]
SIX = [family for family in FAMILIES if family.name not in ("deepseek-r1", "smollm2", "qwen2.5", "qwen3")]


@pytest.mark.parametrize("family", SIX, ids=lambda family: family.name)
@pytest.mark.parametrize("with_id", [True, False], ids=["with the call's id", "without"])
@pytest.mark.parametrize("tools", [(WEATHER,), ()], ids=["tools", "no tools"])
def test_every_family_shows_a_whole_conversation_with_calls(family: Any, with_id: bool, tools: tuple[Tool]) -> None:
    template = ChatTemplate(family.template, {"bos_token": "<s>", "eos_token": "</s>"})
    form = registry.find(family.tool_format)
    given = copy.deepcopy(SEED)
    if with_id:
        given[2]["tool_call_id"] = 0
    for end in (3, 5):  # after the result, and later
        chat = Chat("m", messages.check("messages", given[:end], 99, counted_results=True), tools=tools)
        chat.tool_choice = ToolChoice.AUTO if tools else ToolChoice.NONE
        rendered = template.render(*conversation.shown(chat, probe(template), form))
        shown = [message["content"] for message in given[:end] if "content" in message]
        assert all(content in rendered for content in [*shown, "weather", "Köln"])
