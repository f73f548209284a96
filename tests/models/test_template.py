from __future__ import annotations

from typing import Any

import pytest

from serving.errors import TemplateRefused
from serving.models import template
from serving.models.template import ChatTemplate
from serving.models.text import ModelText

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "Be <terse>."}, {"role": "user", "content": 'é"\n'}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}],
]


@pytest.fixture(scope="session")
def reference(text: ModelText) -> Any:
    """The embedded model's tokenizer as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(text.directory))


@pytest.mark.parametrize("messages", CHATS, ids=range(len(CHATS)))
def test_the_embedded_model_renders_as_transformers_does(
    text: ModelText, reference: Any, messages: list[dict[str, Any]]
) -> None:
    rendered = text.template.render(messages)
    assert rendered == reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.encode(rendered) == reference.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n    {{- m.content }}\n  {% endif %}\n{% endfor %}\n",
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ tools[0] | tojson(sort_keys=true) }}",
        "{{ messages | tojson(separators=(',', ':')) }}{{ messages[0] | tojson(ensure_ascii=true) }}",
        "{% for m in messages %}{% if not loop.first %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %} {% endfor %}",
        "{{ bos_token }}{{ eos_token }}{% if add_generation_prompt %}go{% endif %}{{ unknown }}{{ tools | length }}",
        "{{ '<a & b>' | e }}{{ '<a & b>' }}{{ messages[-1]['content'][::-1].upper() }}{{ namespace(x=1).x }}",
        "{%- macro say(m) %}[{{ m.role }}] {% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    ],
    ids=range(8),
)
def test_any_template_renders_as_in_transformers(reference: Any, source: str) -> None:
    tools = [{"type": "function", "function": {"name": "é<f>", "parameters": {"type": "object", "properties": {}}}}]
    special = {"bos_token": reference.bos_token, "eos_token": reference.eos_token}
    for messages in CHATS:
        expected = reference.apply_chat_template(
            messages, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=True
        )
        assert ChatTemplate(source, special).render(messages, tools) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system role') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages.clear() }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ ''['__cl' ~ 'ass__'].mro() }}",
        "{{ (messages | attr('__class__')).mro() }}",
        "{{ '{0.__class__.__mro__[1].x}'.format(messages) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context.environment.loader.x }}",
        "{% include 'other' %}",
        "{% import 'os' as os %}",
        "{{ strftime_now(5) }}",
        "{{ range(10**9) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ messages[9].content.x }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(TemplateRefused) as caught:
        ChatTemplate(source, {}).render(CHATS[0])
    assert caught.value.field == "messages"


def test_the_templates_own_words_are_passed_on() -> None:
    with pytest.raises(TemplateRefused, match="no system role"):
        ChatTemplate("{{ raise_exception('no system role') }}", {}).render(CHATS[0])


def test_endless_printing_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_RENDERED", 10_000)
    with pytest.raises(TemplateRefused, match="without end"):
        ChatTemplate("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}", {}).render(CHATS[0])


def test_what_templates_expect_is_there() -> None:
    source = (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% endfor %}{{ bos_token }}"
    )
    chat = [{"role": "a"}, {"role": "é"}]
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(chat) == '{"role": "é"}<s>'
    assert ChatTemplate("{% generation %}x{% endgeneration %}", {}).render(chat) == "x"
    assert len(ChatTemplate("{{ strftime_now('%Y') }}", {}).render(chat)) == 4
