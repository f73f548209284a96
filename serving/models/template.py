"""Chat templates: Jinja in a sandbox, as transformers renders them but without torch.

A template is a file of the model, so of a stranger: it runs in a sandbox with no loader and with
bounds on its time, its memory and what it may print (`sandbox.py`).
https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from serving.errors import TemplateRefused
from serving.models.meter import BoundReached
from serving.models.sandbox import Sandbox

MAX_RENDERED = 32 * 2**20  # characters
MAX_SECONDS = 2.0  # for one render
MAX_SOURCE = 2**18  # characters of a template: the longest in use have some thirty thousand
_WORDS = 1000  # of what a template says when it refuses


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is a no-op."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


_environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
_environment.globals["raise_exception"] = _raise_exception
_environment.globals["strftime_now"] = _strftime_now


class ChatTemplate:
    """One model's template. Raises `TemplateRefused` where it cannot be compiled within the bounds."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        self.source = source
        if len(source) > MAX_SOURCE:
            raise TemplateRefused(f"the chat template has {len(source)} characters, more than {MAX_SOURCE}")
        try:
            self._template = _environment.from_string(source)
        except Exception as error:  # the source is anything: Jinja's parser and Python's compiler give up in many ways
            raise TemplateRefused(f"the chat template cannot be compiled: {_said(error)}") from error
        self._special_tokens = special_tokens

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **variables: Any
    ) -> str:
        """The prompt, ending where the assistant is to speak.

        Raises `TemplateRefused` with the template's own words, or when it cannot cope or goes over its bounds.
        """
        given = {"messages": messages, "tools": tools, "add_generation_prompt": True}
        try:
            pieces, size = [], 0
            for piece in _environment.render(self._template, MAX_SECONDS, given | self._special_tokens | variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_RENDERED:
                    raise BoundReached("it prints without end")
            return "".join(pieces)
        except BoundReached as error:
            raise TemplateRefused(f"the model's chat template goes too far: {error}", "messages") from error
        except jinja2.TemplateError as error:
            raise TemplateRefused(
                f"the model's chat template refuses these messages: {_said(error)}", "messages"
            ) from error
        except (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            raise TemplateRefused(
                f"the model's chat template cannot render these messages: {_said(error)}", "messages"
            ) from error


def _said(error: Exception) -> str:
    words = str(error)
    return words if len(words) <= _WORDS else words[:_WORDS] + "…"
