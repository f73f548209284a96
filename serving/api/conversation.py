"""A conversation as a model's chat template can show it.

Templates differ in what they know: tools, past calls, results. What a template does not know goes
into the messages that it does, as the tool's format writes it.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import orjson

from serving.api.chat import Chat, ToolChoice
from serving.api.tools.base import Format, Tool
from serving.models.families import Capabilities

Message = dict[str, Any]


def shown(chat: Chat, can: Capabilities, form: Format) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The messages and the tools to render. The chat's own messages are left as they are."""
    messages = chat.messages
    if any("tool_calls" in message or message["role"] == "tool" for message in messages):
        messages = _with_past_calls(messages, can, form)
    if not chat.tools or chat.tool_choice is ToolChoice.NONE:
        return messages, None
    if can.tools:
        if chat.tool_prompt:
            messages = _appended(messages, chat.tool_prompt)
        return messages, [_definition(tool) for tool in chat.tools]
    listed = json.dumps([_definition(tool)["function"] for tool in chat.tools], ensure_ascii=False)
    return _appended(messages, f"{chat.tool_prompt or form.instructions()}\n{listed}"), None


def _definition(tool: Tool) -> dict[str, Any]:
    described = {} if tool.description is None else {"description": tool.description}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": tool.parameters}}


def _appended(messages: list[Message], text: str) -> list[Message]:
    last = messages[-1]
    return [*messages[:-1], last | {"content": f"{last['content']}\n---\n{text}"}]


def _with_past_calls(messages: list[Message], can: Capabilities, form: Format) -> list[Message]:
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls", ())}
    waiting: list[dict[str, Any]] = []  # calls whose results have not come
    out: list[Message] = []
    for message in messages:
        if "tool_calls" in message:
            waiting = list(message["tool_calls"])
            message = _shown_calls(message, form) if not can.tool_calls else _template_calls(message, can, form)
        elif message["role"] == "tool":
            message = _of_its_call(message, waiting)
            name = message.get("name") or names.get(message.get("tool_call_id", ""))
            if not can.tool_role:
                _say_as_user(out, form.result(name, message["content"]))
                continue
            message = _template_result(message, name, form)
        elif message["role"] == "user" and out and out[-1].get("rewritten"):
            _say_as_user(out, message["content"])
            continue
        out.append(message)
    return [{key: value for key, value in message.items() if key != "rewritten"} for message in out]


def _of_its_call(message: Message, waiting: list[dict[str, Any]]) -> Message:
    """The result with the id of its call. Without one it is of the first that waits, of its name if it has one."""
    identifier, name = message.get("tool_call_id"), message.get("name")
    for call in waiting:
        if call["id"] == identifier if identifier is not None else name in (None, call["function"]["name"]):
            waiting.remove(call)
            return message | {"tool_call_id": call["id"]}
    return message


def _say_as_user(out: list[Message], content: str) -> None:
    """As the user's words, joined to those right before: many templates want roles to alternate."""
    if out and out[-1]["role"] == "user":
        out[-1] = out[-1] | {"content": f"{out[-1]['content']}\n{content}", "rewritten": True}
    else:
        out.append({"role": "user", "content": content, "rewritten": True})


def _shown_calls(message: Message, form: Format) -> Message:
    calls = [
        (call["function"]["name"], orjson.dumps(call["function"]["arguments"]).decode())
        for call in message["tool_calls"]
    ]
    content = "\n".join(filter(None, (message["content"], form.write(calls))))
    return {"role": message["role"], "content": content}


def _template_calls(message: Message, can: Capabilities, form: Format) -> Message:
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        if can.string_arguments:
            function = function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        calls.append(call | {"id": _id(call["id"], form), "function": function})
    return message | {"tool_calls": calls}


def _template_result(message: Message, name: str | None, form: Format) -> Message:
    result = dict(message)
    if name is not None:
        result["name"] = name
    if "tool_call_id" in message or form.name == "mistral":
        result["tool_call_id"] = _id(message.get("tool_call_id", ""), form)
    return result


def _id(identifier: str, form: Format) -> str:
    """Mistral's templates refuse ids that are not nine letters and digits; a hash of any other is one."""
    if form.name != "mistral" or (len(identifier) == 9 and identifier.isascii() and identifier.isalnum()):
        return identifier
    return blake2b(identifier.encode(), digest_size=5).hexdigest()[:9]
