"""From a chat to a request: template, tokens, defaults, and whether it fits the context."""

from __future__ import annotations

import asyncio
import time

from serving.api.chat import Chat
from serving.core import Request, Sampling
from serving.errors import BadField
from serving.models.text import ModelText

_INLINE_CHARACTERS = 8_000  # longer prompts are tokenised off the event loop: about 1 ms


async def make_request(
    chat: Chat, text: ModelText, max_model_len: int, *, request_id: str, tenant: str, seconds: float
) -> Request:
    """Render, tokenise and resolve. Raises `TemplateRefused` or `BadField`; nothing is queued yet."""
    prompt = await _tokens(chat, text)
    room = max_model_len - len(prompt)
    if room < 1:
        raise BadField(
            "messages",
            f"the prompt has {len(prompt)} tokens, but the model's context holds {max_model_len} with the answer",
        )
    max_tokens = min(chat.max_tokens or room, room)
    if chat.min_tokens > max_tokens:
        raise BadField("min_tokens", f"must be at most max_tokens ({max_tokens}), not {chat.min_tokens}")
    defaults = text.defaults
    now = time.monotonic()
    return Request(
        id=request_id,
        model=chat.model,
        prompt=prompt,
        tenant=tenant,
        arrived=now,
        deadline=now + seconds,
        sampling=Sampling(
            max_tokens=max_tokens,
            temperature=defaults.temperature if chat.temperature is None else chat.temperature,
            top_p=defaults.top_p if chat.top_p is None else chat.top_p,
            top_k=defaults.top_k,
            min_p=defaults.min_p,
            repetition_penalty=defaults.repetition_penalty,
            frequency_penalty=chat.frequency_penalty,
            presence_penalty=chat.presence_penalty,
            seed=chat.seed,
            min_tokens=chat.min_tokens,
            ignore_eos=chat.ignore_eos,
            logprobs=chat.logprobs,
        ),
    )


async def _tokens(chat: Chat, text: ModelText) -> list[int]:
    size = sum(len(message["content"] or "") for message in chat.messages)
    if size < _INLINE_CHARACTERS:
        return text.encode(text.template.render(chat.messages, **chat.template_variables))
    return await asyncio.to_thread(lambda: text.encode(text.template.render(chat.messages, **chat.template_variables)))
