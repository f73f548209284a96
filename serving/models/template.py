"""Chat templates: Jinja in a sandbox, as transformers renders them but without torch.

A template is a file of the model, so of a stranger: it runs in Jinja's immutable sandbox, with no
loader and a bound on what it may print. https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serving.errors import TemplateRefused

MAX_RENDERED = 32 * 2**20  # characters


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is a no-op."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


_environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
)
_environment.filters["tojson"] = _tojson
_environment.globals["raise_exception"] = _raise_exception
_environment.globals["strftime_now"] = _strftime_now


class ChatTemplate:
    """One model's template. Raises `jinja2.TemplateSyntaxError` where it cannot be compiled."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        self.source = source
        self._template = _environment.from_string(source)
        self._special_tokens = special_tokens

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **variables: Any
    ) -> str:
        """The prompt, ending where the assistant is to speak.

        Raises `TemplateRefused` with the template's own words, or when it cannot cope.
        """
        try:
            pieces, size = [], 0
            for piece in self._template.generate(
                messages=messages, tools=tools, add_generation_prompt=True, **(self._special_tokens | variables)
            ):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_RENDERED:
                    raise TemplateRefused("the chat template prints without end", "messages")
            return "".join(pieces)
        except jinja2.TemplateError as error:
            raise TemplateRefused(f"the model's chat template refuses these messages: {error}", "messages") from error
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
            raise TemplateRefused(
                f"the model's chat template cannot render these messages: {error}", "messages"
            ) from error
