"""From a chat to requests: what an engine is given, and what never gets that far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from serving.api.chat import Chat, ToolChoice
from serving.api.compiler import Guidance
from serving.api.grammar import Json, OneOf, Regex, lark
from serving.api.prompt import Prepared, prepare
from serving.api.tools import registry
from serving.api.tools.base import Tool
from serving.core import FinishReason, Output, Request
from serving.errors import BadField, TemplateRefused
from serving.models.text import ModelText
from serving.settings import LimitSettings

CONTEXT = 256
HELLO = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
WEATHER, CLOCK = Tool("weather", None, CITY), Tool("clock", None, {"type": "object", "properties": {}})
TOOLS = (WEATHER, CLOCK)
TAGS = registry.find("json_tags")  # the embedded model's


async def prepared(
    text: ModelText, limits: LimitSettings | None = None, context: int = CONTEXT, **fields: Any
) -> Prepared:
    chat = Chat("m", fields.pop("messages", HELLO), **fields)
    return await prepare(
        chat, text, context, limits or LimitSettings(), Guidance(), request_id="r", tenant="ann", seconds=5
    )


async def request_of(text: ModelText, **fields: Any) -> Request:
    (request,) = (await prepared(text, **fields)).requests
    return request


def model(directory: Path, base: ModelText, *, specials: tuple[str, ...] = (), **files: Any) -> ModelText:
    """A model with the embedded one's vocabulary, more special tokens, and these JSON files of its own."""
    tokenizer = Tokenizer.from_str(base.tokenizer.to_str())
    tokenizer.add_special_tokens(list(specials))
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    given = {"tokenizer_config": {"chat_template": base.template.source}, "config": {"model_type": "llama"}} | files
    for name, content in given.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return ModelText(directory)


# --- the prompt ---------------------------------------------------------------------------------------------------


async def test_a_chat_becomes_the_templates_text(text: ModelText) -> None:
    request = await request_of(text)
    assert request.prompt == text.encode(text.template.render(HELLO))
    assert (request.id, request.model, request.tenant, request.grammar) == ("r", "m", "ann", None)
    assert request.deadline - request.arrived == 5


async def test_a_raw_prompt_has_no_template(text: ModelText) -> None:
    request = await request_of(text, messages=[], prompt="Once upon a time")
    assert request.prompt == text.encode_raw("Once upon a time")


async def test_variables_reach_the_template(tmp_path: Path, text: ModelText) -> None:
    mine = model(tmp_path, text, tokenizer_config={"chat_template": "{{ mood }}: {{ messages[0].content }}"})
    request = await request_of(mine, template_variables={"mood": "glad"})
    assert request.prompt == mine.encode("glad: hi")


async def test_a_template_may_refuse(tmp_path: Path, text: ModelText) -> None:
    mine = model(tmp_path, text, tokenizer_config={"chat_template": "{{ raise_exception('not today') }}"})
    with pytest.raises(TemplateRefused, match="not today") as caught:
        await prepared(mine)
    assert caught.value.field == "messages"


async def test_long_chats_come_out_the_same_off_the_event_loop(text: ModelText) -> None:
    """The same tokens on both sides of the size from which a thread does it."""
    for words in ("a" * 7_999, "a" * 8_001):
        long = [{"role": "user", "content": words}]
        request = await request_of(text, context=99_999, messages=long)
        assert request.prompt == text.encode(text.template.render(long))


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"messages": [{"role": "user", "content": "word " * 300}]}, "messages"), ({"prompt": "word " * 300}, "inputs")],
)
async def test_a_prompt_that_fills_the_context_is_refused(text: ModelText, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField, match="the model's context holds 256") as caught:
        await prepared(text, **fields)
    assert caught.value.field == field


async def test_a_prompt_may_leave_room_for_one_token(text: ModelText) -> None:
    one = len(text.encode_raw("word"))
    request = await request_of(text, messages=[], prompt="word" + " word" * (CONTEXT - 1 - one))
    assert len(request.prompt) == CONTEXT - 1
    assert request.sampling.max_tokens == 1


# --- sampling -----------------------------------------------------------------------------------------------------


async def test_what_is_not_said_is_the_models_default(tmp_path: Path, text: ModelText) -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2}
    mine = model(tmp_path, text, generation_config=defaults | {"eos_token_id": 2})
    sampling = (await request_of(mine)).sampling
    assert {name: getattr(sampling, name) for name in defaults} == defaults
    zeros = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    sampling = (await request_of(mine, **zeros)).sampling
    assert {name: getattr(sampling, name) for name in zeros} == zeros


async def test_the_answer_fits_the_context(text: ModelText) -> None:
    request = await request_of(text)
    assert request.sampling.max_tokens == CONTEXT - len(request.prompt)
    assert (await request_of(text, max_tokens=9999)).sampling.max_tokens == CONTEXT - len(request.prompt)
    assert (await request_of(text, max_tokens=7)).sampling.max_tokens == 7


async def test_no_fewer_tokens_than_no_more_than(text: ModelText) -> None:
    assert (await request_of(text, max_tokens=7, min_tokens=7)).sampling.min_tokens == 7
    with pytest.raises(BadField, match=r"^min_tokens: must be at most max_tokens \(7\)"):
        await prepared(text, max_tokens=7, min_tokens=8)
    with pytest.raises(BadField, match=r"^min_tokens: "):  # more than the context has room for
        await prepared(text, min_tokens=CONTEXT)


@pytest.mark.parametrize(
    ("field", "last", "first_outside"),
    [("logit_bias", {49151: 1.0}, {49152: 1.0}), ("stop_token_ids", (49151,), (5, 49152))],
)
async def test_tokens_that_do_not_exist_are_refused(text: ModelText, field: str, last: Any, first_outside: Any) -> None:
    assert text.vocabulary == 49152
    assert getattr((await request_of(text, **{field: last})).sampling, field) == last
    with pytest.raises(BadField, match="49152 is outside the model's vocabulary") as caught:
        await prepared(text, **{field: first_outside})
    assert caught.value.field == field


async def test_a_familys_ends_are_stop_tokens_where_the_engine_does_not_know_them(
    tmp_path: Path, text: ModelText
) -> None:
    knows = model(tmp_path / "a", text, generation_config={"eos_token_id": [2]})
    assert (await request_of(knows)).sampling.stop_token_ids == ()
    does_not = model(tmp_path / "b", text, generation_config={"eos_token_id": 0})
    assert (await request_of(does_not)).sampling.stop_token_ids == (2,)
    assert (await request_of(does_not, stop_token_ids=(7,))).sampling.stop_token_ids == (7, 2)
    on = await request_of(does_not, ignore_eos=True, stop_token_ids=(7,))
    assert on.sampling.stop_token_ids == (7,)  # the caller's own still count


# --- several choices ----------------------------------------------------------------------------------------------


async def test_several_choices_are_several_requests_with_seeds_of_their_own(text: ModelText) -> None:
    got = await prepared(text, n=3, seed=7, stop=("x",))
    assert [request.id for request in got.requests] == ["r-0", "r-1", "r-2"]
    assert [request.sampling.seed for request in got.requests] == [7, 8, 9]
    assert len({id(choice.text) for choice in got.choices}) == 3
    first, *others = got.requests
    for other in others:
        assert other.prompt == first.prompt
        assert other.deadline == first.deadline


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), -1, 0])
async def test_seeds_of_choices_differ_and_fit_the_engine(text: ModelText, seed: int) -> None:
    alone = (await request_of(text, seed=seed)).sampling.seed
    seeds = [request.sampling.seed for request in (await prepared(text, n=8, seed=seed)).requests]
    assert seeds[0] == alone == seed  # the first choice is the one that there is without others
    assert len(set(seeds)) == 8
    assert all(seed is not None and -(2**63) <= seed < 2**63 for seed in seeds)


async def test_without_a_seed_no_choice_has_one(text: ModelText) -> None:
    assert [request.sampling.seed for request in (await prepared(text, n=2)).requests] == [None, None]


# --- grammars -----------------------------------------------------------------------------------------------------


async def grammar_of(text: ModelText, **fields: Any) -> str | None:
    grammar = (await request_of(text, **fields)).grammar
    assert grammar is None or grammar.kind == "grammar"
    return None if grammar is None else grammar.text


async def test_free_text_has_no_grammar(text: ModelText) -> None:
    assert await grammar_of(text) is None
    assert await grammar_of(text, tools=TOOLS, tool_choice=ToolChoice.NONE) is None


@pytest.mark.parametrize("shape", [Json(CITY), Regex("[ab]+")])
@pytest.mark.parametrize("tools", [(), TOOLS])
async def test_a_shape_is_the_grammar(text: ModelText, shape: Any, tools: tuple[Tool, ...]) -> None:
    assert await grammar_of(text, tools=tools, tool_choice=ToolChoice.NONE, shape=shape) == lark(shape)


async def test_a_named_tool_is_called_once(text: ModelText) -> None:
    got = await grammar_of(text, tools=TOOLS, tool_choice=ToolChoice.NAMED, named_tool="clock")
    assert got == lark(TAGS.calls((CLOCK,), text.special_ids, parallel=False))
    assert "weather" not in str(got)


@pytest.mark.parametrize("parallel", [True, False])
async def test_calls_that_are_required_are_one_or_more(text: ModelText, parallel: bool) -> None:
    got = await grammar_of(text, tools=TOOLS, tool_choice=ToolChoice.REQUIRED, parallel_tool_calls=parallel)
    assert got == lark(TAGS.calls(TOOLS, text.special_ids, parallel=parallel))


@pytest.mark.parametrize("parallel", [True, False])
async def test_tools_that_may_be_called_leave_room_for_text(text: ModelText, parallel: bool) -> None:
    got = await grammar_of(text, tools=TOOLS, tool_choice=ToolChoice.AUTO, parallel_tool_calls=parallel)
    assert got == lark(TAGS.answer(TOOLS, text.special_ids, parallel=parallel))


async def test_with_a_shape_the_text_has_that_shape(text: ModelText) -> None:
    got = await grammar_of(text, tools=TOOLS, tool_choice=ToolChoice.AUTO, shape=Json(CITY))
    assert got == lark(OneOf((TAGS.calls(TOOLS, text.special_ids, parallel=True), Json(CITY))))


async def test_markers_that_are_special_tokens_are_asked_for_as_such(tmp_path: Path, text: ModelText) -> None:
    mine = model(tmp_path, text, specials=("<tool_call>", "</tool_call>"))
    got = await grammar_of(mine, tools=(CLOCK,), tool_choice=ToolChoice.REQUIRED)
    assert f"<[{mine.special_ids['<tool_call>']}]>" in str(got)


@pytest.mark.parametrize("choice", [ToolChoice.AUTO, ToolChoice.REQUIRED, ToolChoice.NAMED])
async def test_the_tool_that_cannot_be_enforced_is_named(text: ModelText, choice: ToolChoice) -> None:
    wrong = Tool("odd", None, {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}})
    with pytest.raises(BadField) as caught:
        await prepared(text, tools=(WEATHER, wrong), tool_choice=choice, named_tool="odd")
    assert caught.value.field == "tools[1].function.parameters"


async def test_a_shape_that_cannot_be_enforced_is_named(text: ModelText) -> None:
    with pytest.raises(BadField, match=r"^response_format: is not a regular expression"):
        await prepared(text, shape=Regex("("))


async def test_grammars_have_a_largest_size(text: ModelText) -> None:
    limits = LimitSettings(grammar_bytes=1024)
    long = Json({"type": "object", "properties": {f"key{number}": {"type": "string"} for number in range(50)}})
    with pytest.raises(BadField, match="at most 1024 are allowed"):
        await prepared(text, limits, shape=long)


# --- what reads the answer ----------------------------------------------------------------------------------------


async def test_special_tokens_are_hidden_unless_asked_for(text: ModelText) -> None:
    tokens = [*text.encode("a<jupyter_code>b"), 2]
    for skip, shown in ((True, "ab"), (False, "a<jupyter_code>b")):
        (choice,) = (await prepared(text, skip_special_tokens=skip)).choices
        parts = choice.read([Output([token]) for token in tokens[:-1]] + [Output(tokens[-1:], FinishReason.STOP)])
        assert choice.message(parts).text == shown


async def test_a_formats_own_special_tokens_reach_its_parser(tmp_path: Path, text: ModelText) -> None:
    mine = model(tmp_path, text, specials=("<tool_call>", "</tool_call>"))
    said = 'See: <tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    outputs = [*(Output([token]) for token in mine.encode(said)), Output([2], FinishReason.STOP)]
    (choice,) = (await prepared(mine, tools=TOOLS, tool_choice=ToolChoice.AUTO)).choices
    message = choice.message(choice.read(outputs))
    assert (message.text, [call.name for call in message.calls]) == ("See: ", ["clock"])
    (choice,) = (await prepared(mine, tools=TOOLS, tool_choice=ToolChoice.NONE)).choices
    message = choice.message(choice.read(outputs))
    assert "tool_call" not in message.text  # nobody is there to read them
    assert not message.calls


@pytest.mark.parametrize(
    ("template", "splits", "said", "thought"),
    [
        ("<｜Assistant｜><think>\n", True, "hm</think>Yes.", ("hm", "Yes.")),
        ("<｜Assistant｜></think>", True, "<think>hm</think>Yes.", ("hm", "Yes.")),
        ("<｜Assistant｜><think>\n</think>", False, "<think>hm</think>Yes.", ("", "<think>hm</think>Yes.")),
    ],
    ids=["opened by the prompt", "opened by the answer", "told apart in one dialect only"],
)
async def test_thoughts_are_those_of_a_family_that_thinks(
    tmp_path: Path, text: ModelText, template: str, splits: bool, said: str, thought: tuple[str, str]
) -> None:
    template = "{#</think>#}{{ messages[0].content }}" + template
    mine = model(tmp_path, text, tokenizer_config={"chat_template": template})
    assert mine.think is not None
    (choice,) = (await prepared(mine, splits_reasoning=splits)).choices
    outputs = [*(Output([token]) for token in mine.encode(said)), Output([2], FinishReason.STOP)]
    message = choice.message(choice.read(outputs))
    assert (message.reasoning, message.text) == thought


async def test_a_plain_chat_pays_for_nothing(text: ModelText) -> None:
    (choice,) = (await prepared(text, splits_reasoning=True)).choices
    assert choice.plain
    (choice,) = (await prepared(text, tools=TOOLS, tool_choice=ToolChoice.NONE)).choices
    assert choice.plain
