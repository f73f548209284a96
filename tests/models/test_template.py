from __future__ import annotations

from typing import Any

import pytest

from serving.errors import TemplateRefused
from serving.models import embedded, template
from serving.models.template import ChatTemplate
from serving.models.text import ModelText

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "Be <terse>."}, {"role": "user", "content": 'é"\n'}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}],
]


@pytest.mark.parametrize("messages", CHATS, ids=range(len(CHATS)))
def test_the_embedded_model_renders_as_transformers_does(messages: list[dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    path = embedded.prepare()
    text = ModelText(path)
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    rendered = text.template.render(messages)
    assert rendered == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.encode(rendered) == tokenizer.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system role') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
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
