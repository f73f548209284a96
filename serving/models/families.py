"""Model families, what a chat template can show, and the form in which a model writes tool calls.

A family holds what a model's own files do not say. What a template can show is not read from its text but tried: it
renders small chats, and what it cannot show does not appear (llama.cpp's minja works so).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serving.errors import TemplateRefused
from serving.models.template import ChatTemplate

TOOL_FORMATS = ("json_tags", "llama3_json", "mistral", "pythonic", "generic")

_TEMPLATES = Path(__file__).parent / "templates"
_CARDS = (16, 24, 40, 48, 80, 141)  # GB
_USABLE = 0.9  # of a card: `engine.gpu_memory_utilization`
_ACTIVATIONS = 1.5  # GB for activations and CUDA itself; an estimate


@dataclass(frozen=True)
class Family:
    """Models that are prompted alike.

    Sizes are the example's: `parameters` in billions, `kv_bytes_per_token` in bfloat16 over all layers, `context` in
    tokens; all computed from the dimensions in its config.json.
    """

    name: str
    example: str
    """Hub id."""
    model_type: str
    """config.json's."""
    signs: tuple[str, ...]
    """What its templates write, all of it: tells families of the same `model_type` apart."""
    tool_format: str
    """One of `TOOL_FORMATS`; for models that were not taught tools it is `generic`."""
    context: int
    parameters: float
    kv_bytes_per_token: int
    oddities: str
    """What it refuses or does in its own way, in a sentence."""
    stop: tuple[str, ...]
    """Special tokens that end an answer, whether or not the generation config says so."""
    think: tuple[str, str] | None = None
    """What opens and closes the text that is thought and not said."""
    also: tuple[str, ...] = ()
    """Other model types of the same family."""
    dtype: str = "bfloat16"
    file: str | None = None
    """Our own chat template in `templates/`, where it is not named after the family."""

    @cached_property
    def template(self) -> str:
        """Our own chat template, for model files that have none."""
        return (_TEMPLATES / f"{self.file or self.name}.jinja").read_text()

    @property
    def gpu(self) -> str:
        """What the example needs on a GPU, in a sentence: the smallest card that holds the weights and a sequence of
        the whole context, or of 8,192 tokens where the context is longer."""
        weights = 2 * self.parameters
        for card in _CARDS:
            room = (_USABLE * card - _ACTIVATIONS - weights) * 1e9 / self.kv_bytes_per_token
            if room >= min(self.context, 8192):
                break
        return (
            f"{weights:.1f} GB of weights and {self.kv_bytes_per_token / 1024:g} KiB of KV cache a token in bfloat16: "
            f"one GPU of {card} GB holds it with about {int(room // 1000) * 1000:,} tokens of cache."
        )


FAMILIES = (
    Family(
        name="gemma-2",
        example="google/gemma-2-2b-it",
        model_type="gemma2",
        signs=("<start_of_turn>",),
        tool_format="generic",
        context=8192,
        parameters=2.61,
        kv_bytes_per_token=106_496,
        oddities="Refuses system messages and roles that do not alternate; every second layer sees 4,096 tokens back.",
        stop=("<end_of_turn>",),
    ),
    Family(
        name="llama-3.1",
        example="meta-llama/Meta-Llama-3.1-8B-Instruct",
        model_type="llama",
        signs=("<|start_header_id|>",),
        tool_format="llama3_json",
        context=131072,
        parameters=8.03,
        kv_bytes_per_token=131_072,
        oddities="Puts tools into the first user message, which must be there, and calls a tool's role ipython.",
        stop=("<|eot_id|>", "<|eom_id|>"),
    ),
    Family(
        name="phi-3",
        example="microsoft/Phi-3-mini-4k-instruct",
        model_type="phi3",
        signs=("<|end|>",),
        tool_format="generic",
        context=4096,
        parameters=3.82,
        kv_bytes_per_token=393_216,
        oddities="Refuses roles that do not alternate after a system message, which early revisions drop.",
        stop=("<|end|>", "<|endoftext|>"),
    ),
    Family(
        name="numinamath",
        example="AI-MO/NuminaMath-7B-TIR",
        model_type="llama",
        signs=("### Problem",),
        tool_format="generic",
        context=4096,
        parameters=6.91,
        kv_bytes_per_token=491_520,
        oddities="Drops system messages without a word; its own tool is a block of Python and a block of output.",
        stop=("<｜end▁of▁sentence｜>",),
    ),
    Family(
        name="starchat2",
        example="HuggingFaceH4/starchat2-15b-v0.1",
        model_type="starcoder2",
        signs=("<|im_start|>",),
        tool_format="generic",
        context=16384,
        parameters=15.96,
        kv_bytes_per_token=81_920,
        oddities="Prints any role, also those it never saw; attention reaches 4,096 tokens back.",
        stop=("<|im_end|>", "<|endoftext|>"),
    ),
    Family(
        name="mistral-nemo",
        example="mistralai/Mistral-Nemo-Instruct-2407",
        model_type="mistral",
        signs=("[INST]",),
        tool_format="mistral",
        context=128000,
        parameters=12.25,
        kv_bytes_per_token=163_840,
        oddities="Joins the system message to the last user message, and refuses ids of calls that are not nine "
        "letters and digits; copies of its config.json claim up to 1,024,000 tokens of context.",
        stop=("</s>",),
    ),
    Family(
        name="deepseek-r1",
        example="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        model_type="qwen2",
        also=("llama", "qwen3", "deepseek_v3"),
        signs=("<｜Assistant｜>", "</think>"),
        tool_format="generic",
        context=131072,
        parameters=7.62,
        kv_bytes_per_token=57_344,
        oddities="Begins every answer with thinking, which its prompt opens, and forgets what it thought before.",
        stop=("<｜end▁of▁sentence｜>",),
        think=("<think>", "</think>"),
    ),
    Family(
        name="smollm2",
        example="HuggingFaceTB/SmolLM2-135M-Instruct",
        model_type="llama",
        signs=("<|im_start|>",),
        tool_format="json_tags",
        context=8192,
        parameters=0.135,
        kv_bytes_per_token=23_040,
        oddities="The smallest of its kind does not show tools in its template.",
        stop=("<|im_end|>",),
        file="chatml-tools",
    ),
    Family(
        name="qwen2.5",
        example="Qwen/Qwen2.5-7B-Instruct",
        model_type="qwen2",
        also=("qwen2_moe",),
        signs=("<|im_start|>",),
        tool_format="json_tags",
        context=32768,
        parameters=7.62,
        kv_bytes_per_token=57_344,
        oddities="Shows a tool's result as a message of the user.",
        stop=("<|im_end|>", "<|endoftext|>"),
        file="chatml-tools",
    ),
    Family(
        name="qwen3",
        example="Qwen/Qwen3-8B",
        model_type="qwen3",
        also=("qwen3_moe",),
        signs=("<|im_start|>",),
        tool_format="json_tags",
        context=40960,
        parameters=8.19,
        kv_bytes_per_token=147_456,
        oddities="Thinks first unless the template is told enable_thinking=false.",
        stop=("<|im_end|>", "<|endoftext|>"),
        think=("<think>", "</think>"),
        file="chatml-tools",
    ),
)


def match(config: dict[str, Any], template: str) -> Family | None:
    """The family of a model with this config.json and this chat template.

    For a model without a template give its special tokens instead: they tell families apart nearly as well.
    """
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind in (family.model_type, *family.also) and all(sign in template for sign in family.signs):
            return family
    return None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a template shows. Where it does not, the words must come in other messages, or the caller is refused."""

    tools: bool
    """It shows the tools that may be called."""
    tool_calls: bool
    """It shows the calls of past answers."""
    tool_role: bool
    """It has a form of its own for results: role `tool`."""
    system: bool
    """It shows a first message of role `system`."""
    string_arguments: bool = False
    """Arguments of past calls must be JSON text; every other template takes, or even wants, an object."""


# Words that no template writes by itself.
_TOOL, _KEY, _VALUE, _RESULT, _SYSTEM, _ROLE = "probe_tool", "probe_key", "probe_value", "3.14159", "Probed.", "prober"
_USER = {"role": "user", "content": "hi"}
_CALL_ID = "probe1234"  # nine letters and digits, as Mistral wants them


def probe(template: ChatTemplate) -> Capabilities:
    """Try what `template` shows. What it refuses it does not have. Renders some ten small chats."""
    past = _past_call(template)
    return Capabilities(
        tools=_TOOL in _rendered(template, [_USER], tools=[_definition()]),
        tool_calls=past is not None,
        tool_role=_has_tool_role(template, string_arguments=past is not None and past[1]),
        system=_SYSTEM in _rendered(template, [{"role": "system", "content": _SYSTEM}, _USER]),
        string_arguments=past is not None and past[1],
    )


def tool_format_of(template: ChatTemplate, family: Family | None, setting: str | None = None) -> str:
    """The form of a model's tool calls, one of `TOOL_FORMATS`.

    `setting` wins; then the form in which the template writes past calls, which is what the model was taught; then
    the family's.
    """
    if setting is not None:
        return setting
    past = _past_call(template)
    written = _format_of(past[0]) if past is not None else None
    return written or (family.tool_format if family is not None else "generic")


def _format_of(past: str) -> str | None:
    if "[TOOL_CALLS]" in past:
        return "mistral"
    if "<tool_call>" in past:
        return "json_tags"
    if "<|python_tag|>" in past or re.search(rf'"parameters"\s*:\s*{{\s*"{_KEY}"', past):
        return "llama3_json"
    if re.search(rf"\[\s*{_TOOL}\(\s*{_KEY}\s*=", past):
        return "pythonic"
    return None


def _past_call(template: ChatTemplate) -> tuple[str, bool] | None:
    """A chat with a call as `template` renders it, and whether it wants the arguments as text. None: not shown."""
    for as_text in (False, True):
        for result in ([_result("tool")], []):  # some templates refuse a call without its result, some any result
            chat = [_USER, _call(as_text), *result]
            text = _rendered(template, chat)
            if all(word in text for word in (_TOOL, _KEY, _VALUE)) and f"{{'{_KEY}" not in text:
                return text, as_text  # and not with the arguments as Python prints an object
    return None


def _has_tool_role(template: ChatTemplate, *, string_arguments: bool) -> bool:
    """Whether results appear, and not merely as any role's messages do."""
    for before in ([_USER, _call(string_arguments)], [_USER]):
        text = _rendered(template, [*before, _result("tool")])
        if _RESULT in text:
            return text != _rendered(template, [*before, _result(_ROLE)]).replace(_ROLE, "tool")
    return False


def _rendered(template: ChatTemplate, chat: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    try:
        return template.render(chat, tools)
    except TemplateRefused:
        return ""


def _definition() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {_KEY: {"type": "string", "description": "a key"}}, "required": []}
    return {"type": "function", "function": {"name": _TOOL, "description": "a tool", "parameters": parameters}}


def _call(as_text: bool) -> dict[str, Any]:
    arguments = {_KEY: _VALUE}
    function = {"name": _TOOL, "arguments": json.dumps(arguments) if as_text else arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": _CALL_ID, "type": "function", "function": function}],
    }


def _result(role: str) -> dict[str, Any]:
    return {"role": role, "content": _RESULT, "name": _TOOL, "tool_call_id": _CALL_ID}
