"""What is known of the families, and what their templates print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.errors import TemplateRefused
from serving.models.families import FAMILIES, TOOL_FORMATS, Capabilities, Family, match, probe, tool_format_of
from serving.models.template import ChatTemplate
from serving.models.text import ModelFilesError, ModelText
from tests import tiny_models

BY_NAME = {family.name: family for family in FAMILIES}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

Message = dict[str, Any]
Chat = list[Message]

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Now", "parameters": PARAMETERS},
}
SYSTEM: Message = {"role": "system", "content": "Be terse."}
USER: Message = {"role": "user", "content": "Hi "}
ASSISTANT: Message = {"role": "assistant", "content": "Hello"}
MORE: Message = {"role": "user", "content": "And?"}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefgh1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    ],
}
RESULT: Message = {"role": "tool", "name": "weather", "tool_call_id": "abcdefgh1", "content": "21°"}
TURNS: Chat = [USER, ASSISTANT, MORE]
CALLED: Chat = [USER, CALL, RESULT]

LLAMA = "<s><|start_header_id|>system<|end_header_id|>\n\n"
LLAMA_TOOL = (
    "You can call these functions. To call one, answer with nothing but JSON of the form "
    '{"name": <name of the function>, "parameters": <object of argument names and values>}, without variables.\n\n'
    + json.dumps(TOOL, indent=4)
    + "\n\n"
)
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
TAGS = (
    "# Tools\n\nYou can call functions. These are their signatures, in <tools></tools>:\n<tools>\n"
    + json.dumps(TOOL)
    + "\n</tools>\n\nTo call one, write its name and arguments as JSON in <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <name of the function>, "arguments": <object of arguments>}\n</tool_call>'
)

EXACT: list[tuple[str, Chat, bool, str]] = [
    (
        "gemma-2",
        TURNS,
        False,
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "llama-3.1",
        TURNS,
        False,
        LLAMA + DATES + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "llama-3.1",
        [SYSTEM, *CALLED],
        True,
        LLAMA + "Environment: ipython\n" + DATES + "Be terse.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n" + LLAMA_TOOL + "Hi<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "weather", "parameters": {"city": "Köln"}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\n21°<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "phi-3",
        [SYSTEM, *TURNS],
        False,
        "<|system|>\nBe terse.<|end|>\n<|user|>\nHi <|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nAnd?<|end|>\n"
        "<|assistant|>\n",
    ),
    (
        "numinamath",
        [SYSTEM, *TURNS],
        False,
        "### Problem: Hi \n### Solution: Hello\n### Problem: And?\n### Solution: ",
    ),
    (
        "starchat2",
        [SYSTEM, *TURNS],
        False,
        "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "mistral-nemo",
        [SYSTEM, *TURNS],
        True,
        "<s>[INST] Hi [/INST] Hello</s>[AVAILABLE_TOOLS] ["
        + json.dumps(TOOL)
        + "][/AVAILABLE_TOOLS][INST] Be terse.\n\nAnd?[/INST]",
    ),
    (
        "mistral-nemo",
        [SYSTEM, *CALLED],
        False,
        '<s>[INST] Be terse.\n\nHi [/INST][TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln"}, '
        '"id": "abcdefgh1"}]</s>[TOOL_RESULTS] {"content": "21°", "call_id": "abcdefgh1"}[/TOOL_RESULTS]',
    ),
    (
        "mistral-nemo",
        [USER, CALL, RESULT | {"content": '{"degrees": 21}'}],
        False,
        '<s>[INST] Hi [/INST][TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln"}, '
        '"id": "abcdefgh1"}]</s>[TOOL_RESULTS] {"content": {"degrees": 21}, "call_id": "abcdefgh1"}[/TOOL_RESULTS]',
    ),
    (
        "smollm2",
        [SYSTEM, USER],
        True,
        "<|im_start|>system\nBe terse.\n\n" + TAGS + "<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    (
        "qwen2.5",
        [*CALLED, RESULT | {"content": "22°"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nWarm"}, MORE],
        False,
        '<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": '
        '{"city": "Köln"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n21°\n</tool_response>\n'
        "<tool_response>\n22°\n</tool_response><|im_end|>\n<|im_start|>assistant\nWarm<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "deepseek-r1",
        [SYSTEM, USER, ASSISTANT | {"content": "<think>\nhm</think>Hello"}, MORE],
        False,
        "<s>Be terse.<｜User｜>Hi <｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>And?<｜Assistant｜><think>\n",
    ),
]


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(BY_NAME[name].template, SPECIAL)


@pytest.mark.parametrize(("name", "chat", "tools", "expected"), EXACT)
def test_each_template_to_the_letter(name: str, chat: Chat, tools: bool, expected: str) -> None:
    assert template_of(name).render(chat, [TOOL] if tools else None) == expected


def test_what_callers_may_tell_a_template() -> None:
    qwen = template_of("qwen3").render([USER], enable_thinking=False)
    assert qwen.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    llama = template_of("llama-3.1").render([USER], [TOOL], tools_in_user_message=False, date_string="1 Jan 2030")
    assert llama.startswith(LLAMA + "Environment: ipython\n" + DATES.replace("26 Jul 2024", "1 Jan 2030") + LLAMA_TOOL)


@pytest.mark.parametrize("name", ["llama-3.1", "mistral-nemo", "qwen3"])
def test_arguments_as_json_text_print_as_objects_do(name: str) -> None:
    function = {"name": "weather", "arguments": '{"city": "Köln"}'}
    as_text = [USER, CALL | {"tool_calls": [{"id": "abcdefgh1", "type": "function", "function": function}]}, RESULT]
    assert template_of(name).render(as_text) == template_of(name).render(CALLED)


TOO_SHORT: Chat = [USER, CALL | {"tool_calls": [CALL["tool_calls"][0] | {"id": "call_1"}]}]
REFUSED: list[tuple[str, Chat, bool, str]] = [
    ("gemma-2", [SYSTEM, USER], False, "System role not supported"),
    ("gemma-2", [USER, USER], False, "alternate"),
    ("gemma-2", [ASSISTANT], False, "alternate"),
    ("gemma-2", CALLED, False, "alternate"),
    ("phi-3", [USER, USER], False, "alternate"),
    ("phi-3", [SYSTEM, ASSISTANT], False, "alternate"),
    ("phi-3", [USER, SYSTEM], False, "alternate"),
    ("numinamath", CALLED, False, "no role tool"),
    ("deepseek-r1", CALLED, False, "no role tool"),
    ("llama-3.1", [SYSTEM], True, "first user message"),
    ("llama-3.1", [SYSTEM, ASSISTANT], True, "first user message"),
    ("mistral-nemo", [SYSTEM, USER, USER], False, "alternate"),
    ("mistral-nemo", [USER, SYSTEM], False, "no role system"),
    ("mistral-nemo", TOO_SHORT, False, "nine letters"),
    ("mistral-nemo", [USER, CALL, RESULT | {"tool_call_id": "abcdefg-1"}], False, "nine letters"),
    ("mistral-nemo", [USER, CALL, RESULT | {"tool_call_id": 123456789}], False, "nine letters"),
]


@pytest.mark.parametrize(("name", "chat", "tools", "words"), REFUSED)
def test_what_each_template_refuses(name: str, chat: Chat, tools: bool, words: str) -> None:
    with pytest.raises(TemplateRefused, match=words):
        template_of(name).render(chat, [TOOL] if tools else None)


@pytest.mark.parametrize("name", tiny_models.TINY)
def test_our_renderer_agrees_with_transformers(name: str) -> None:
    """Over the tiny models' own files, so that the special tokens are read from them too."""
    from transformers import AutoTokenizer

    path = tiny_models.prepare(name)
    text = ModelText(path)
    reference: Any = AutoTokenizer.from_pretrained(str(path))
    agreed = 0
    for chat in ([USER], TURNS, [SYSTEM, *TURNS], CALLED, [SYSTEM, *CALLED, ASSISTANT, MORE], [USER, USER]):
        for tools in (None, [TOOL]):
            try:
                expected = reference.apply_chat_template(chat, tools, tokenize=False, add_generation_prompt=True)
            except Exception:  # whatever it is there, it is a refusal here
                with pytest.raises(TemplateRefused):
                    text.template.render(chat, tools)
                continue
            assert text.template.render(chat, tools) == expected
            assert text.encode(expected) == reference.encode(expected, add_special_tokens=False)
            agreed += 1
    assert agreed >= 4


NOTHING = Capabilities(tools=False, tool_calls=False, tool_role=False, system=False)
JUST_SYSTEM = Capabilities(tools=False, tool_calls=False, tool_role=False, system=True)
EVERYTHING = Capabilities(tools=True, tool_calls=True, tool_role=True, system=True)


@pytest.mark.parametrize(
    ("name", "capabilities", "tool_format"),
    [
        ("gemma-2", NOTHING, "generic"),
        ("llama-3.1", EVERYTHING, "llama3_json"),
        ("phi-3", JUST_SYSTEM, "generic"),
        ("numinamath", NOTHING, "generic"),
        ("starchat2", JUST_SYSTEM, "generic"),  # it prints the role `tool`, but as it prints any
        ("mistral-nemo", EVERYTHING, "mistral"),
        ("deepseek-r1", JUST_SYSTEM, "generic"),
        ("smollm2", EVERYTHING, "json_tags"),
        ("qwen2.5", EVERYTHING, "json_tags"),
        ("qwen3", EVERYTHING, "json_tags"),
    ],
)
def test_what_each_template_can_show(name: str, capabilities: Capabilities, tool_format: str) -> None:
    template = template_of(name)
    assert probe(template) == capabilities
    assert tool_format_of(template, None) == tool_format
    assert BY_NAME[name].tool_format == tool_format


EACH = "{% for m in messages %}{{ m.role }}:{{ m.content }}CALLS\n{% endfor %}"
CALLS = "{% for c in m.tool_calls or [] %}CALL{% endfor %}"


@pytest.mark.parametrize(
    ("call", "tool_format", "as_text"),
    [
        ('<tool_call>{"name": "NAME", "arguments": {{ ARGS | tojson }}}', "json_tags", False),
        ("[TOOL_CALLS]NAME[X]{{ ARGS | tojson }}", "mistral", False),
        ('{"name": "NAME", "parameters": {{ ARGS | tojson }}}', "llama3_json", False),
        ("<|python_tag|>NAME({{ ARGS | tojson }})", "llama3_json", False),
        ("[NAME({% for k, v in ARGS.items() %}{{ k }}={{ v | tojson }}{% endfor %})]", "pythonic", False),
        ("<call>NAME {{ ARGS | tojson }}", "json_tags", False),  # the family's
        ("<tool_call>NAME{{ '' + ARGS }}", "json_tags", True),
        ("[TOOL_CALLS]NAME{{ ARGS }}", "mistral", True),
    ],
)
def test_the_form_of_past_calls_decides(call: str, tool_format: str, as_text: bool) -> None:
    call = call.replace("NAME", "{{ c.function.name }}").replace("ARGS", "c.function.arguments")
    template = ChatTemplate(EACH.replace("CALLS", CALLS.replace("CALL", call)), {})
    assert tool_format_of(template, BY_NAME["qwen3"]) == tool_format
    assert tool_format_of(template, BY_NAME["qwen3"], "pythonic") == "pythonic"
    capabilities = probe(template)
    assert capabilities.tool_calls
    assert capabilities.string_arguments == as_text


def test_the_embedded_model_is_told_tools_in_words(text: ModelText) -> None:
    assert text.family is BY_NAME["smollm2"]
    assert (text.capabilities, text.tool_format) == (JUST_SYSTEM, "json_tags")
    assert text.special_ids["<|im_end|>"] == 2


def test_a_template_that_shows_no_calls_leaves_the_form_to_the_family() -> None:
    template = ChatTemplate(EACH.replace("CALLS", ""), {})
    assert tool_format_of(template, None) == "generic"
    assert tool_format_of(template, BY_NAME["llama-3.1"]) == "llama3_json"
    assert probe(template) == JUST_SYSTEM


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no') }}", "{% for m in messages %}{{ loop(m) }}{% endfor %}", "words"]
)
def test_a_template_that_refuses_everything_can_nothing(source: str) -> None:
    assert probe(ChatTemplate(source, {})) == NOTHING


def test_a_tool_role_may_be_all_there_is() -> None:
    source = "{% for m in messages %}{% if m.role == 'tool' %}<result>{{ m.content }}{% endif %}{% endfor %}"
    assert probe(ChatTemplate(source, {})) == Capabilities(tools=False, tool_calls=False, tool_role=True, system=False)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_is_found_by_its_type_and_template(family: Family) -> None:
    for kind in (family.model_type, *family.also):
        assert match({"model_type": kind}, family.template) is family
    assert match({"model_type": "bert"}, family.template) is None
    assert match({}, family.template) is None
    assert match({"model_type": family.model_type}, "{{ messages }}") is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_written_of_every_family_holds_together(family: Family) -> None:
    assert family.tool_format in TOOL_FORMATS
    assert family.oddities.endswith(".")
    assert (f"{2 * family.parameters:.1f} GB of weights") in family.gpu
    assert family.gpu.endswith("tokens of cache.")
    if family.name in tiny_models.TINY:
        tiny = tiny_models.TINY[family.name]
        assert {*family.stop} <= {*tiny.ends}


def test_the_card_a_family_needs() -> None:
    assert BY_NAME["llama-3.1"].gpu == (
        "16.1 GB of weights and 128 KiB of KV cache a token in bfloat16: "
        "one GPU of 24 GB holds it with about 30,000 tokens of cache."
    )
    assert "one GPU of 40 GB" in BY_NAME["starchat2"].gpu
    assert "one GPU of 16 GB" in BY_NAME["gemma-2"].gpu


# the text side of a model


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """The tokenizer and config of the tiny Llama, without a template."""
    model = tiny_models.prepare("llama-3.1")
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    return tmp_path


def test_the_familys_template_stands_in_where_the_files_have_none(llama: Path) -> None:
    text = ModelText(llama)
    assert text.family is BY_NAME["llama-3.1"]
    assert text.template.source == text.family.template
    assert (text.capabilities, text.tool_format, text.think) == (EVERYTHING, "llama3_json", None)
    (llama / "chat_template.jinja").write_text("<|start_header_id|>{{ messages[0].content }}")
    assert ModelText(llama).template.render([USER]) == "<|start_header_id|>Hi "
    assert ModelText(llama).tool_format == "llama3_json"
    assert ModelText(llama, "pythonic").tool_format == "pythonic"


def test_stop_tokens_are_those_the_generation_config_leaves_out(llama: Path) -> None:
    ids = ModelText(llama).special_ids
    eot, eom = ids["<|eot_id|>"], ids["<|eom_id|>"]
    assert ModelText(llama).stop_token_ids == (eot, eom)
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": eot}))
    assert ModelText(llama).stop_token_ids == (eom,)
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [eot, eom]}))
    assert ModelText(llama).stop_token_ids == ()


def test_a_stranger_without_a_template_is_not_served(llama: Path) -> None:
    (llama / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with pytest.raises(ModelFilesError, match="no chat template"):
        ModelText(llama)


def test_a_template_that_is_none_is_a_fault_of_the_files(llama: Path) -> None:
    (llama / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelFilesError, match="template"):
        ModelText(llama)


def test_thinking_models_have_their_markers(llama: Path) -> None:
    (llama / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (llama / "chat_template.jinja").write_text(BY_NAME["qwen3"].template)
    text = ModelText(llama)
    assert (text.think, text.tool_format) == (("<think>", "</think>"), "json_tags")
    assert text.stop_token_ids == ()  # this vocabulary has none of Qwen's tokens
