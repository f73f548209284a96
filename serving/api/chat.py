"""A chat completion as the caller asked for it, in no dialect."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serving.api.grammar import Node
from serving.api.tools.base import Tool


class ToolChoice(StrEnum):
    NONE = "none"  # the model is not shown the tools
    AUTO = "auto"  # text or calls, as the model likes
    REQUIRED = "required"  # at least one call
    NAMED = "named"  # one call of the one tool that is left in `Chat.callable_tools`


@dataclass(slots=True)
class Chat:
    """Checked, but not yet rendered. None means that the caller said nothing.

    `messages` are plain dicts as a chat template reads them: role, content, and what else was sent;
    ids of tool calls are strings, their arguments objects. `prompt`, where set, is the whole prompt
    as it is, and there are no messages.
    """

    model: str
    messages: list[dict[str, Any]]
    prompt: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None  # None: none; n: the n best beside the chosen one
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    n: int = 1
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.NONE
    named_tool: str | None = None
    parallel_tool_calls: bool = True
    tool_prompt: str | None = None  # None: the format's own, where the template does not show tools
    shape: Node | None = None  # what `shape_field` asks for
    shape_field: str = "response_format"
    splits_reasoning: bool = False  # text between a family's think markers is told apart
    returns_prompt: bool = False  # with a raw prompt: the answer repeats it
    use_cache: bool = False
    wait_for_model: bool = False
    user: str | None = None
    template_variables: dict[str, Any] = field(default_factory=dict)

    @property
    def forces_call(self) -> bool:
        return self.tool_choice in (ToolChoice.REQUIRED, ToolChoice.NAMED)

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the model may call in its answer."""
        match self.tool_choice:
            case ToolChoice.NONE:
                return ()
            case ToolChoice.NAMED:
                return tuple(tool for tool in self.tools if tool.name == self.named_tool)
            case _:
                return self.tools
