"""From a chat to requests: template, tokens, grammar, defaults, and whether it fits the context."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass

import msgspec

from serving.api import conversation
from serving.api.answer import Choice
from serving.api.chat import Chat, ToolChoice
from serving.api.compiler import Compiler
from serving.api.grammar import Json, Node, OneOf
from serving.api.reasoning import Thinking
from serving.api.text import TextStream
from serving.api.tools import registry
from serving.api.tools.base import Format
from serving.core import Grammar, Request, Sampling
from serving.errors import BadField
from serving.models.text import ModelText
from serving.settings import LimitSettings

_INLINE_CHARACTERS = 8_000  # longer prompts are tokenised off the event loop: about 1 ms


@dataclass(slots=True)
class Prepared:
    """One request for each choice, and what reads its outputs."""

    requests: list[Request]
    choices: list[Choice]


async def prepare(
    chat: Chat,
    text: ModelText,
    max_model_len: int,
    limits: LimitSettings,
    compiler: Compiler,
    *,
    request_id: str,
    tenant: str,
    seconds: float,
) -> Prepared:
    """Render, tokenise and resolve. Raises `TemplateRefused`, `ToolRefused` or `BadField`; nothing is queued yet."""
    form = registry.find(text.tool_format)
    rendered, prompt = await _rendered(chat, text, form)
    room = max_model_len - len(prompt)
    if room < 1:
        raise BadField(
            "inputs" if chat.prompt is not None else "messages",
            f"the prompt has {len(prompt)} tokens, but the model's context holds {max_model_len} with the answer",
        )
    now = time.monotonic()
    request = Request(
        id=request_id,
        model=chat.model,
        prompt=prompt,
        sampling=_sampling(chat, text, room),
        grammar=await _grammar(chat, text, form, limits, compiler),
        tenant=tenant,
        arrived=now,
        deadline=now + seconds,
    )
    return Prepared(
        [request] if chat.n == 1 else [_nth(request, number) for number in range(chat.n)],
        [_choice(chat, text, form, rendered) for _ in range(chat.n)],
    )


def _nth(request: Request, number: int) -> Request:
    """The same request with a seed of its own: several choices are meant to differ."""
    sampling = request.sampling
    if sampling.seed is not None:
        seed = (sampling.seed + number + 2**63) % 2**64 - 2**63  # the engine's seeds have 64 bits and a sign
        sampling = msgspec.structs.replace(sampling, seed=seed)
    return dataclasses.replace(request, id=f"{request.id}-{number}", sampling=sampling)


async def _rendered(chat: Chat, text: ModelText, form: Format) -> tuple[str, list[int]]:
    def run() -> tuple[str, list[int]]:
        if chat.prompt is not None:
            return chat.prompt, text.encode_raw(chat.prompt)
        messages, tools = conversation.shown(chat, text.capabilities, form)
        rendered = text.template.render(messages, tools, **chat.template_variables)
        return rendered, text.encode(rendered)

    size = len(chat.prompt or "") + sum(len(message["content"]) for message in chat.messages)
    if size < _INLINE_CHARACTERS and len(chat.messages) < 100 and not chat.tools:
        return run()
    return await asyncio.to_thread(run)


def _sampling(chat: Chat, text: ModelText, room: int) -> Sampling:
    max_tokens = min(chat.max_tokens or room, room)
    if chat.min_tokens > max_tokens:
        raise BadField("min_tokens", f"must be at most max_tokens ({max_tokens}), not {chat.min_tokens}")
    for field, ids in (("logit_bias", chat.logit_bias or ()), ("stop_token_ids", chat.stop_token_ids)):
        if wrong := [token for token in ids if token >= text.vocabulary]:
            raise BadField(field, f"token id {wrong[0]} is outside the model's vocabulary of {text.vocabulary}")
    defaults = text.defaults
    return Sampling(
        max_tokens=max_tokens,
        temperature=defaults.temperature if chat.temperature is None else chat.temperature,
        top_p=defaults.top_p if chat.top_p is None else chat.top_p,
        top_k=defaults.top_k if chat.top_k is None else chat.top_k,
        min_p=defaults.min_p if chat.min_p is None else chat.min_p,
        repetition_penalty=defaults.repetition_penalty if chat.repetition_penalty is None else chat.repetition_penalty,
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
        logit_bias=chat.logit_bias,
        seed=chat.seed,
        min_tokens=chat.min_tokens,
        ignore_eos=chat.ignore_eos,
        logprobs=chat.logprobs,
        stop_token_ids=(*chat.stop_token_ids, *(() if chat.ignore_eos else text.stop_token_ids)),
    )


async def _grammar(
    chat: Chat, text: ModelText, form: Format, limits: LimitSettings, compiler: Compiler
) -> Grammar | None:
    if chat.tool_choice is ToolChoice.NONE:
        if chat.shape is None:
            return None
        return await compiler.compiled(chat.shape, chat.shape_field, limits.grammar_bytes)
    for position, tool in enumerate(chat.tools):  # one by one first: to say which is wrong
        field = f"tools[{position}].function.{tool.schema_field}"
        await compiler.compiled(Json(tool.parameters), field, limits.grammar_bytes)
    return await compiler.compiled(_calls(chat, text, form), "tools", limits.grammar_bytes)


def _calls(chat: Chat, text: ModelText, form: Format) -> Node:
    tools, specials, parallel = chat.callable_tools, text.special_ids, chat.parallel_tool_calls
    if chat.tool_choice is ToolChoice.NAMED:
        return form.calls(tools, specials, parallel=False)
    if chat.tool_choice is ToolChoice.REQUIRED:
        return form.calls(tools, specials, parallel=parallel)
    if chat.shape is None:
        return form.answer(tools, specials, parallel=parallel)
    return OneOf((form.calls(tools, specials, parallel=parallel), chat.shape))


def _choice(chat: Chat, text: ModelText, form: Format, rendered: str) -> Choice:
    tools = chat.callable_tools
    only_said = chat.forces_call or chat.shape is not None  # the grammar leaves no room for a thought
    think = text.think if chat.splits_reasoning and not only_said else None
    thinking = Thinking(*think, inside=rendered.rstrip().endswith(think[0])) if think is not None else None
    shown = set(form.specials() if tools else ()) | set(think or ())
    hidden = None
    if not chat.skip_special_tokens:
        hidden = frozenset[int]()
    elif shown & text.special_ids.keys():
        hidden = frozenset(token for special, token in text.special_ids.items() if special not in shown)
    stream = TextStream(text, chat.stop, chat.min_tokens, chat.logprobs, hidden=hidden)
    return Choice(stream, form.parser(tools) if tools else None, thinking, only_calls=chat.forces_call)
