"""`POST /models/{id}` with `{"inputs", "parameters", "options"}`: text generation as the Hub's snippets call it.

The inputs are the whole prompt: no chat template. The answer is `[{"generated_text": …}]`. The
rest is the huggingface dialect's. https://huggingface.co/docs/api-inference/tasks/text-generation
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from serving.api import fields, tool_fields
from serving.api.chat import Chat
from serving.api.dialect import Answer, Encoder, Message, Usage
from serving.api.huggingface import failure, failure_event
from serving.errors import BadField
from serving.settings import LimitSettings

__all__ = ["encoder", "failure", "failure_event", "name", "parse", "usage_event", "whole"]

name = "raw"

PARAMETERS: dict[str, fields.Check] = {
    "max_new_tokens": fields.integer(1, 2**31 - 1),
    "temperature": fields.number(0, 2),
    "top_p": fields.number(0, 1, above=True),
    "top_k": fields.integer(0, 2**31 - 1),
    "repetition_penalty": fields.number(0, 10, above=True),
    "frequency_penalty": fields.number(-2, 2),
    "seed": fields.integer(0, 2**64 - 1),
    "stop": fields.stops,
    "do_sample": fields.boolean,
    "return_full_text": fields.boolean,
    "grammar": fields.mapping,
}
OPTIONS: dict[str, fields.Check] = {
    "use_cache": fields.boolean,
    "wait_for_model": fields.boolean,
    "use_gpu": fields.boolean,  # of no effect
}


def parse(body: dict[str, Any], model: str | None, limits: LimitSettings) -> Chat:
    """Parameters are named in errors as `parameters.top_p`. Raises `BadField`."""
    inputs = fields.text("inputs", body.get("inputs"))
    if not inputs:
        raise BadField("inputs", "must not be empty")
    if body.get("stream") not in (None, False):
        raise BadField("stream", "is not to be had for raw text: send messages to stream a chat")
    got = _section(body, "parameters", PARAMETERS)
    options = _section(body, "options", OPTIONS)
    sampled = got.pop("do_sample", None)
    if sampled is False:
        got["temperature"] = 0.0
    grammar = got.pop("grammar", None)
    if "seed" in got:
        got["seed"] &= 2**63 - 1  # vLLM's seeds are signed
    full_text = got.pop("return_full_text", False)
    chat = Chat(
        model=model or "",
        messages=[],
        prompt=inputs,
        max_tokens=got.pop("max_new_tokens", limits.huggingface_max_tokens),
        use_cache=options.get("use_cache", True),
        wait_for_model=options.get("wait_for_model", False),
        returns_prompt=full_text,
        **got,
    )
    if grammar is not None:
        chat.shape_field = "parameters.grammar"
        chat.shape = tool_fields.huggingface_shape("parameters.grammar", grammar, limits)
    return chat


def _section(body: dict[str, Any], section: str, table: dict[str, fields.Check]) -> dict[str, Any]:
    values = body.get(section)
    if values is None:
        return {}
    values = fields.mapping(section, values)
    return {key: check(f"{section}.{key}", values[key]) for key, check in table.items() if values.get(key) is not None}


def encoder(answer: Answer, index: int) -> Encoder:
    raise AssertionError("raw text is not streamed")  # `parse` refuses


def usage_event(answer: Answer, usage: Usage) -> bytes:
    raise AssertionError("raw text is not streamed")


def whole(answer: Answer, choices: Sequence[Message], usage: Usage) -> bytes:
    return orjson.dumps([{"generated_text": (answer.prompt or "") + choice.text} for choice in choices])
