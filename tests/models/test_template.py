# ruff: noqa: E501 - a template reads best on one line

from __future__ import annotations

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
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
        # what the meter touches, and must not change
        "{{ 1 + 2 }}{{ 1 + 2.5 * 3 - 7 // 2 }}{{ 7 % 3 }}{{ 2 ** 10 }}{{ -2 ** 2 }}{{ 2 ** -1 }}{{ 'ab' * 3 }}{{ [1] * 2 }}",
        "{% set x = 'a' + 'b' ~ 1 ~ none ~ u ~ [1, 'c'] %}{{ x + '|' + x }}{{ x ~ (1 + 2) }}{{ [1] + [2, x] }}{{ (1,) + (2,) }}",
        "{{ 'a' + 'b' + messages[0].role + 'c' + 'd' + '1' + '2' + '3' + messages[0].role + '4' + messages[0].role + '5' }}",
        "{{ 'a' + m + m + m + m + m + m + m + m + m + m }}{{ m ~ m ~ m ~ m ~ m ~ m ~ m ~ m ~ m ~ m ~ m }}".replace(
            " m", " bos_token"
        ),
        "{{ '%s: %5.1f%% of %(x)s' if false else '%-4s|%03d|%s' % ('a', 7, [1, 'b']) }}{{ '%(a)s' % {'a': 1} }}{{ '%s-%s' | format(1, 2) }}",
        "{{ 'a{}b{x:>4}{!r}'.format([1], 'z', x='y') }}{{ '{a}'.format_map({'a': 1}) }}{{ '<b>' | safe + '<' }}{{ '<' ~ ('>' | e) }}",
        "{% set ns = namespace(n=0, all=[]) %}{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + loop.index %}"
        "{% set ns.all = ns.all + [m.content] %}{{ loop.cycle('a', 'b') }}{% else %}none{% endfor %}{{ ns.n }}{{ ns.all }}",
        "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}{{ dict(a=1, **{'b': [2]}) }}",
        "{% set x %}<{% for m in messages %}{{ m.role }}{% endfor %}>{% endset %}{{ x | length }}{{ x }}{% filter upper %}{{ x }}y{% endfilter %}",
        "{% macro m(a, b='z') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{{ caller('!') if caller }}{% endmacro %}"
        "{{ m(1, 2, 3, k=[4]) }}{% call(x) m('q') %}{{ x }}?{% endcall %}",
        "{% block a %}[{{ messages | length }}]{% endblock %}{{ self.a() }}{% for m in messages %}{% block b scoped %}{{ m.role }}{% endblock %}{% endfor %}",
        "{{ messages[1:] }}{{ messages[::-1] }}{{ messages[0].content[-2:] }}{{ 'a,b'.split(',')[0] }}{{ '-'.join(['a', 'b']) }}{{ 'x'.ljust(5) }}|",
        "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | tojson(indent=2) }}",
        "{{ messages | map('length') | sum }}{{ 'a b' | replace(' ', '_') | title | indent(2, true) }}{{ [3, 1] | sort }}{{ {'b': 1, 'a': 2} | dictsort }}",
        "{{ messages[0].items() | list }}{{ messages[0].get('role') }}{{ messages[0].get('x', 'd') }}{{ 3.7 | round | int }}{{ '7' | int + 1 }}",
        "{{ range(3) | list }}{{ (messages | groupby('role') | first)[0] }}{{ messages | map(attribute='content') | unique | list }}{{ 'aXa'.replace('X', '-') }}",
    ],
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


def test_the_templates_own_words_have_an_end() -> None:
    with pytest.raises(TemplateRefused) as caught:
        ChatTemplate("{{ raise_exception('no' * 10000) }}", {}).render(CHATS[0])
    assert len(str(caught.value)) < 1100


NEVER_ENDS = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% continue %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% generation %}{% endgeneration %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m() %}{% for i in range(10**5) %}{% for j in range(10**5) %}{{ caller() }}{% endfor %}{% endfor %}{% endmacro %}"
    "{% call m() %}{% endcall %}",
    "{% for x in [30] recursive %}{{ loop([x - 1]) ~ loop([x - 1]) if x }}{% endfor %}",
    "{% block a %}{% for i in range(10**5) %}{% for i in range(10**5) %}{% endfor %}{% endfor %}{% endblock %}",
    "{% for k in messages %}{% block a scoped %}{% for i in range(10**5) %}{% for i in range(10**5) %}{% endfor %}{% endfor %}"
    "{% endblock %}{% endfor %}",
    "{% set b = 'a' * 8000000 + 'b' %}{{ range(100000) | map('string') | select('in', b) | list }}",
    # without a loop
    "{% set r = range(100000) %}" + "{{ r | max }}" * 10000,
    "{% set a = ['a'] * 100000 %}{% set b = ['a'] * 99999 + ['b'] %}" + "{{ a == b }}" * 10000,
    "{% set a = 'a' * 8000000 %}" + "{{ 'ab' is in a }}" * 10000,
    "{% set a = 'a' * 8000000 %}" + "{{ a.count('ab') }}" * 10000,
]


@pytest.mark.parametrize("source", NEVER_ENDS, ids=range(len(NEVER_ENDS)))
def test_a_template_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(template, "MAX_SECONDS", 0.1)
    compiled = ChatTemplate(source, {})
    began = time.monotonic()
    with pytest.raises(TemplateRefused, match="goes too far: it takes too long") as caught:
        compiled.render(CHATS[0])
    assert 0.1 <= time.monotonic() - began < 2
    assert caught.value.field == "messages"


def test_every_render_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at once in threads, and on this one: a slow one takes nothing from a quick one."""
    monkeypatch.setattr(template, "MAX_SECONDS", 0.3)
    slow, quick = ChatTemplate(NEVER_ENDS[0], {}), ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}", {})
    with ThreadPoolExecutor(4) as threads:
        slow_ones = [threads.submit(slow.render, CHATS[0]) for _ in range(2)]
        quick_ones = [threads.submit(quick.render, CHATS[0]) for _ in range(100)]
        assert quick.render(CHATS[0]) == "user"
        assert [one.result() for one in quick_ones] == ["user"] * 100
        assert all(isinstance(one.exception(), TemplateRefused) for one in slow_ones)


TOO_LARGE = [
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    "{{ [0] * 10**9 }}",
    "{{ (2**60000) * (2**60000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%(a(b))1000000000d' % {'a(b)': 1} }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%(a)1000000000d' | format(a=1) }}",
    "{{ ('%s' * 100000) % (['x' * 1000] * 100000) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.rjust(10**9) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ '1'.zfill(10**9) }}",
    "{{ '\\t'.expandtabs(10**9) }}",
    "{{ '\\t'.expandtabs(tabsize=10**9) }}",
    "{% set f = 'x'.ljust %}{{ f(10**9) }}",
    "{{ ('x' | attr('ljust'))(10**9) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**9) }}",
    "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "{{ ('{0}' * 100000).format('x' * 1000000) }}",
    "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 1000000) | replace('', 'y' * 1000000) }}",
    "{{ ('y' * 1000000).join('x' * 1000000) }}",
    "{{ ('x' * 1000000) | join('y' * 1000000) }}",
    "{{ range(100000) | join('y' * 1000000) }}",
    "{{ ('y' * 1000000).join(range(100000) | map('string')) }}",
    "{{ ('\\n' * 1000000) | indent(1000000) }}",
    "{{ ('\\n' * 1000000) | indent('x' * 1000000) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ messages | tojson(indent=' ' * 10**6) }}",
    "{{ 1.5 | round(10**9, 'ceil') }}",
    "{{ 1 | round(10**9, 'floor') }}",
    "{{ ('f' * 1000000) | int(0, 16) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ 'x'.encode('utf-32') }}",
    "{{ 'x'.translate({120: 'y' * 1000000}) }}",
    "{{ [[1], [2]] | sum(start=[]) }}",
    "{% set x = 'x' * 1000 %}" + "{% set x = x + x %}" * 40,
    "{% set x = 'x' * 1000 %}" + "{% set x = x ~ x %}" * 40,
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x %}{% endfor %}",
    "{% set s = 'x' * 1000000 %}{% set x %}{% for i in range(100000) %}{{ s }}{% endfor %}{% endset %}",
    "{% set x %}{% for i in range(100000) %}{% for j in range(1000) %}"
    + "x" * 10000
    + "{% endfor %}{% endfor %}{% endset %}",
    "{% macro m() %}{% for i in range(100000) %}" + "x" * 10000 + "{% endfor %}{% endmacro %}{% set x = m() %}",
    "{% macro m() %}{% for i in range(100000) %}{{ '" + "x" * 10000 + "' }}{% endfor %}{% endmacro %}{% set x = m() %}",
    "{% for i in range(100000) if ('a' * 1000000) in ('a' * 999999 + 'b') %}{% endfor %}",
    "{% for x in ['xxxxxxxx'] recursive %}{{ loop([x + x]) }}{% endfor %}",
    "{% set b = 'a' * 8000000 %}{{ range(100000) | map('replace', '1', b) | list | length }}",
    "{% set b = ['a' * 1000] * 100 %}{{ ([none] * 100000) | map('default', b, true) | list }}",
    "{% set b = 'a' * 8000000 %}" + "".join(f"{{% set x{n} = b[{n}:] %}}" for n in range(99)),
    "{% set b = 'a' * 8000000 %}" + "".join(f"{{% set x{n} = b | upper %}}" for n in range(99)),
    "{% set b = 'a ' * 4000000 %}{{ b.split() | length }}",
    "{% set b = 'a ' * 4000000 %}{{ b.split(' ') | length }}",
    "{{ ('é' * 8000000) | list | length }}",
    "{% set b = ('&' * 10000000) | e %}{{ b }}",
    "{{ '{}'.format('x' * 10) | safe }}{{ ('{0}' | safe).format(1) }}",
    "{{ ['a'] | join((['b' * 1000000] * 1000) | string) }}",
    "{{ {}.fromkeys(range(100000), ['x' * 1000] * 10) }}",
    "{{ 2 ** (10**9) }}{{ 2 ** 100000 }}",
    "{{ 10 ** -100000 }}",
    "{{ ('{0}' * 600000).format('') }}",
    "{{ [10 ** 4000] * 100000 }}",
]


@pytest.mark.parametrize("source", TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_what_would_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(template, "MAX_SECONDS", 60.0)  # tracing makes it slow
    compiled = ChatTemplate(source, {})  # and nothing is computed here
    tracemalloc.start()
    try:
        with pytest.raises(TemplateRefused, match=r"goes too far: it (makes|pads|computes|calls|adds|formats)"):
            compiled.render(CHATS[0])
        assert tracemalloc.get_traced_memory()[1] < 400 * 2**20
    finally:
        tracemalloc.stop()


# Lists that hold one list many times: small until they are printed, compared or hashed.
TOO_DEEP = [
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ ns.x == ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = {'a': [ns.x, ns.x]}.items() %}{% endfor %}{{ ns.x }}",
    "{% macro m() %}{{ m(varargs, varargs) }}{% endmacro %}{{ m(1) }}",
]


@pytest.mark.parametrize("source", TOO_DEEP, ids=range(len(TOO_DEEP)))
def test_what_is_small_but_prints_large_is_refused_when_it_is_made(source: str) -> None:
    with pytest.raises(TemplateRefused, match="goes too far: it makes too large a list"):
        ChatTemplate(source, {}).render(CHATS[0])


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ 1 | nothing_like_it }}",
        "{% if true %}",
        "{% autoescape true %}{{ messages }}{% endautoescape %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "-" * 3000 + "1 }}",
        "{% if 1 %}" * 150 + "{% endif %}" * 150,
        "{% for x in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "9" * 5000 + " }}",
        "x" * (template.MAX_SOURCE + 1),
        "{{ 1 | slice(10**9) }}",
    ],
    ids=lambda source: source[:20],
)
def test_what_cannot_be_compiled_is_said(source: str) -> None:
    with pytest.raises(TemplateRefused, match=r"the chat template (cannot be compiled|has)"):
        ChatTemplate(source, {})


def test_the_longest_chats_that_the_server_takes_are_rendered() -> None:
    """Two million characters, as one message and as many, through every kind of operation."""
    source = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set said = m.content | trim %}{% set ns.n = ns.n + 1 %}"
        "{% set line = '<' + m.role + '>' ~ said.split('</think>')[-1] %}{{ line + said[:5] | upper }}{% endfor %}"
        "{{ messages | tojson | length }}{{ messages[1:] | map(attribute='content') | join('|') | replace('b', 'c') | length }}"
    )
    for count in (1, 4096):
        size = 2_000_000 // count
        chat = [{"role": "user", "content": "ab " * (size // 3)}] * count
        assert len(ChatTemplate(source, {}).render(chat)) > 1_900_000


def test_what_templates_expect_is_there() -> None:
    source = (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% endfor %}{{ bos_token }}"
    )
    chat = [{"role": "a"}, {"role": "é"}]
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(chat) == '{"role": "é"}<s>'
    assert ChatTemplate("{% generation %}x{% endgeneration %}", {}).render(chat) == "x"
    assert len(ChatTemplate("{{ strftime_now('%Y') }}", {}).render(chat)) == 4
