"""Grammars of both backends: what they let through, what is refused, and the process that compiles for xgrammar."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import pytest_asyncio
from llguidance import LLMatcher

from serving.api.child import Child, Died, TooSlow
from serving.api.compiler import Compiler, Guidance, Xgrammar
from serving.api.grammar import Json, Literal, Many, Node, OneOf, Regex, Seq, Special, Tagged, TextUnlike
from serving.api.tools import registry
from serving.core import Grammar
from serving.errors import BadField, Overloaded
from serving.models import embedded
from serving.models.text import ModelText
from tests.api.tools.answers import TOOLS, tokenizer

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

BYTES = 256_000


def guidance_accepts(grammar: Grammar, answer: str) -> bool:
    matcher = LLMatcher(tokenizer(), LLMatcher.grammar_from_lark(grammar.text), log_level=0)
    return all(map(matcher.consume_token, tokenizer().tokenize_bytes(answer.encode()))) and matcher.is_accepting()


def xgrammar_accepts(grammar: Grammar, answer: str) -> bool:
    from xgrammar import Grammar as Compiled
    from xgrammar.testing import _is_grammar_accept_string

    return _is_grammar_accept_string(Compiled.from_structural_tag(grammar.text), answer)


@dataclass
class Backend:
    compiler: Compiler
    accepts: Callable[[Grammar, str], bool]

    async def compiled(self, node: Node) -> Grammar:
        return await self.compiler.compiled(node, "f", BYTES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def xgrammar() -> AsyncIterator[Backend]:
    compiler = Xgrammar(embedded.prepare(), 2.0, BYTES)
    yield Backend(compiler, xgrammar_accepts)
    await compiler.stop()


@pytest.fixture(scope="module", params=["guidance", "xgrammar"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "guidance":
        return Backend(Guidance(), guidance_accepts)
    found: Backend = request.getfixturevalue("xgrammar")
    return found


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {}}},
    "required": ["name"],
}
TAG = (Literal("<t>"), Seq((Literal("1"), Literal("</t>"))))

RENDERED: dict[str, tuple[Node, Sequence[str], Sequence[str]]] = {
    "json": (
        Json(PERSON),
        ['{"name": "é\\n\\"", "age": 3}', '{"name": "x", "tags": [1, {"a": null}]}'],
        ['{"name":"x"}', '{ "name": "x"}', '{"name": "x" }', '{"age": 3}', '{"name": "x", "z": 1}', '{"name": "x"}\n'],
    ),
    "json open": (Json({"type": "object"}), ["{}", '{"a": 1, "b": [true]}'], ["[]", '{"a":1}']),
    "json ref": (
        Json({"$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}),
        ["{}", '{"c": {"c": {}}}'],
        ['{"c": 1}', '{"d": 1}'],
    ),
    "json one of": (
        Json(
            {
                "oneOf": [
                    {"type": "object", "properties": {"k": {"const": k}, k: {"type": "integer"}}, "required": ["k", k]}
                    for k in ("a", "b")
                ]
            }
        ),
        ['{"k": "a", "a": 1}', '{"k": "b", "b": 1}'],
        ['{"k": "a", "b": 1}', '{"k": "c"}'],
    ),
    "json types": (Json({"type": ["string", "null"], "maxLength": 2}), ["null", '"ab"'], ['"abc"', "1"]),
    "json pattern": (Json({"type": "string", "pattern": "^[a-c]+$"}), ['"abc"'], ['"abd"', '""', '"a"b"']),
    "regex": (Regex(r"[a-z]+/\d{2}"), ["ab/12"], ["ab/1", "/12", "ab/123", "ab-12"]),
    "regex ends": (Regex("^a|b$"), ["a", "b"], ["ab", "^a"]),
    "regex dot": (Regex("a.b"), ["axb", "a日b"], ["a\nb", "ab"]),
    "regex empty": (Regex(""), [""], ["a"]),
    "nothing": (Seq((Literal(""), Seq(()))), [""], ["a"]),
    "one of": (OneOf((Literal("a"), Seq((Literal("b"), OneOf((Literal("c"), Literal(""))))))), ["a", "b", "bc"], ["c"]),
    "many": (Many(Literal("a"), ", "), ["a", "a, a, a"], ["", "a, ", "a,a"]),
    "many, none between": (Many(Literal("a")), ["a", "aaa"], ["", "b"]),
    "one": (Many(Literal("a"), ", ", 1), ["a"], ["", "a, a"]),
    "three": (Many(Literal("a"), ", ", 3), ["a", "a, a, a"], ["", "a, a, a, a"]),
    "tagged": (Tagged((TAG,)), ["", "x < y <t", "x<t>1</t>y<t>1</t>", "\n日\x00"], ["<t>", "x<t>2", "<t>1</t> <t>"]),
    "tagged once": (Tagged((TAG,), 1), ["x", "x<t>1</t>y <t"], ["<t>", "<t>1</t><t>1</t>"]),
    "tagged twice": (Tagged((TAG,), 2), ["x", "x<t>1</t>y<t>1</t>z"], ["<t>1</t><t>1</t><t>1</t>", "<t>1</t><t>2"]),
    "two tags": (Tagged((TAG, (Literal("[u]"), Literal("2")))), ["[u]2 <t>1</t>"], ["[u]1", "<t>2"]),
    "unlike": (TextUnlike(("{", "[{")), ["", "x {", "[", " [1", "日{"], ["{", "\n{", "[{", " [ \n{a"]),
    "unlike words": (TextUnlike(("[f(", "[g(")), ["[", "[f", "[h(", "[f]", "f("], ["[f(", "[ f (", "[g(x"]),
    "unlike or": (OneOf((TextUnlike(("{",)), Literal("{x}"))), ["{x}", "x", ""], ["{", "{y", " {x}"]),
}


@pytest.mark.parametrize("name", RENDERED)
async def test_what_a_grammar_lets_through(backend: Backend, name: str) -> None:
    node, allowed, refused = RENDERED[name]
    grammar = await backend.compiled(node)
    assert [answer for answer in allowed if not backend.accepts(grammar, answer)] == []
    assert [answer for answer in refused if backend.accepts(grammar, answer)] == []


CALLS = [("get_weather", '{"city": "Oslo", "days": 2}'), ("clock", "{}")]


@pytest.mark.parametrize("format", ["json_tags", "llama3_json", "mistral", "pythonic", "generic"])
async def test_every_tool_format(backend: Backend, format: str) -> None:
    found = registry.find(format)
    one, two = found.write(CALLS[:1]), found.write(CALLS)
    if format == "pythonic":  # whose grammar writes values as JSON does
        one, two = (written.replace("'", '"') for written in (one, two))
    for parallel in (True, False):
        for node in (found.calls(TOOLS, {}, parallel=parallel), found.answer(TOOLS, {}, parallel=parallel)):
            grammar = await backend.compiled(node)
            assert backend.accepts(grammar, one)
            assert backend.accepts(grammar, two) is parallel
            assert not backend.accepts(grammar, one.replace("Oslo", "Oslo\n"))  # not in JSON
        assert not backend.accepts(await backend.compiled(found.calls(TOOLS, {}, parallel=parallel)), "get_weather")


async def test_a_special_token_is_that_token(xgrammar: Backend, text: ModelText) -> None:
    import xgrammar as xgr
    from transformers import AutoTokenizer

    info = xgr.TokenizerInfo.from_huggingface(AutoTokenizer.from_pretrained(str(text.directory)))
    compiler, special = xgr.GrammarCompiler(info, max_threads=1), text.special_ids["<|im_start|>"]

    async def accepts(node: Node, tokens: Sequence[int]) -> bool:
        matcher = xgr.GrammarMatcher(compiler.compile_structural_tag((await xgrammar.compiled(node)).text))
        return all(map(matcher.accept_token, [*tokens, text.special_ids["<|im_end|>"]]))

    spelled = text.tokenizer.encode("<|im", add_special_tokens=False).ids
    spelled += text.tokenizer.encode("_start|>", add_special_tokens=False).ids
    assert special not in spelled
    opening = Special(special, "<|im_start|>")
    assert await accepts(Seq((opening, Literal("1"))), [special, *text.encode("1")])
    assert not await accepts(Seq((opening, Literal("1"))), [*spelled, *text.encode("1")])
    tagged = Tagged(((opening, Literal("1")),))  # here either way: what reads it sees only how it is spelled
    for tokens in ([special], spelled):
        assert await accepts(tagged, [*text.encode("Hi "), *tokens, *text.encode("1")])
        assert not await accepts(tagged, [*text.encode("Hi "), *tokens, *text.encode("2")])
    with pytest.raises(BadField, match="out of the vocabulary"):
        await xgrammar.compiled(Special(10**6, "<x>"))


# what is refused


def of(**schema: Any) -> Node:
    return Json({"type": "object", "properties": {"a": {"type": "array", "items": schema}}})


REFUSED_BY_BOTH: dict[str, tuple[Node, str]] = {
    "one of": (of(oneOf=[{"type": "integer"}, {"type": "number"}]), "oneOf: its options may overlap"),
    "pattern": (of(type="string", pattern="("), "[Pp]attern|paren|group"),
    "regex": (Regex("a("), "paren|group"),
    "look": (Regex("(?=a)b"), "[Ll]ook"),
    "unknown type": (of(type="zebra"), "zebra"),
    "a reference to nothing": (of(**{"$ref": "#/$defs/x"}), r"x"),
    "a reference to elsewhere": (of(**{"$ref": "https://example.com/x"}), r"example\.com"),
    "if": (of(**{"type": "string", "if": {"const": "a"}, "then": {"minLength": 3}}), "if"),
    "size": (of(enum=[f"value {number}" for number in range(30_000)]), f"at most {BYTES} are allowed"),
    "nothing": (of(enum=[]), "f: "),
}


@pytest.mark.parametrize("name", REFUSED_BY_BOTH)
async def test_what_no_engine_could_enforce_is_refused(backend: Backend, name: str) -> None:
    node, says = REFUSED_BY_BOTH[name]
    if name == "nothing" and isinstance(backend.compiler, Guidance):
        pytest.skip("an empty list is an answer")
    with pytest.raises(BadField, match=says) as caught:
        await backend.compiled(node)
    assert caught.value.field == "f"
    assert not re.search(r"\.cc|\n|\d+\(\d+\)", str(caught.value)), "no one's source"


STRING = {"type": "string"}
NOT_BY_XGRAMMAR: dict[str, tuple[dict[str, Any], str]] = {
    "not": ({"not": STRING}, "not: xgrammar cannot enforce it"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "contains": ({"type": "array", "contains": STRING}, "contains"),
    "patternProperties": ({"type": "object", "patternProperties": {"x": STRING}}, "patternProperties"),
    "several at once": ({"allOf": [STRING, {"maxLength": 3}]}, "allOf"),
    "beside a reference": ({"$ref": "#", "minProperties": 1}, r"minProperties: .* beside \$ref"),
    "beside options": ({"anyOf": [STRING], "maxLength": 3}, "maxLength: .* beside anyOf"),
    "another type beside": ({"type": "string", "enum": ["a", 1]}, "type: .* beside enum"),
    "no type": ({"minLength": 3}, "minLength: needs a type"),
    "format": ({"type": "string", "format": "zebra"}, "'zebra'"),
    "format and length": ({"type": "string", "format": "date", "maxLength": 3}, "maxLength: .* beside format"),
    "multipleOf": ({"type": "number", "multipleOf": 0.5}, "multipleOf"),
    "required": ({"type": "object", "properties": {}, "required": ["x"]}, "'x' is not among the properties"),
    "quote": ({"type": "string", "pattern": 'a"'}, "in a JSON string"),
    "backslash": ({"type": "string", "pattern": r"a\\"}, "in a JSON string"),
    "line end": ({"type": "string", "pattern": r"a\n"}, "in a JSON string"),
    "anchor": ({"type": "string", "pattern": "a^b"}, "at the ends"),
    "a reference to no schema": ({"$ref": "#/properties"}, "points at what is not a schema"),
}


@pytest.mark.parametrize("name", NOT_BY_XGRAMMAR)
async def test_what_xgrammar_would_pass_over_is_refused_with_its_place(xgrammar: Backend, name: str) -> None:
    schema, says = NOT_BY_XGRAMMAR[name]
    with pytest.raises(BadField, match=rf"^f: properties\.a\.items: .*{says}|^f: .*{says}"):
        await xgrammar.compiled(of(**schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "anyOf": [{"type": "object", "properties": {"a": STRING}}, {"$ref": "#/$defs/x"}]},
        {"type": "string", "enum": ["a", "b"], "title": "T", "description": "D", "default": "a"},
        {"oneOf": [STRING, {"type": "null"}, {"enum": [1, 2]}, {"const": 3.5}]},
        {"type": "array", "uniqueItems": False, "items": {"type": "number", "minimum": 0}, "minItems": 1},
        {"properties": {"a": {"items": STRING}}},
    ],
    ids=range(5),
)
async def test_what_it_can_enforce_is_let_through(xgrammar: Backend, schema: dict[str, Any]) -> None:
    await xgrammar.compiled(Json(schema | {"$defs": {"x": {"type": "object", "properties": {}}}}))


@pytest.mark.parametrize(
    "pattern", [r"\Aa", r"\x{41}", "[[:alpha:]]", "[a&&b]", "[^]a]", "[]a]", r"a\1", "(^a)", "a$b"]
)
async def test_patterns_that_xgrammar_would_read_otherwise(xgrammar: Backend, pattern: str) -> None:
    with pytest.raises(BadField):
        await xgrammar.compiled(Regex(pattern))


BOMBS: dict[str, Node] = {
    "repetitions": Regex("((a{1,500}){1,500}){1,500}"),
    "lookback": Regex("(.*a.{20}){30}b"),
    "in a schema": Json({"type": "string", "pattern": "((a|b){1,900}c){1,900}"}),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_bombs_take_bounded_time(backend: Backend, name: str) -> None:
    ticks = 0

    async def watch() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.05)
            ticks += 1

    watching, began = asyncio.create_task(watch()), time.monotonic()
    try:
        await backend.compiled(BOMBS[name])
    except BadField as error:
        assert re.search("takes more than 2 s|too complex|too large|too big|at most|limit", str(error)), str(error)
    seconds = time.monotonic() - began
    watching.cancel()
    assert seconds < 40
    assert ticks >= seconds // 0.5, "the loop was held up"
    with pytest.raises(BadField, match="zebra"):  # and the next is served
        await backend.compiled(of(type="zebra"))


async def test_what_compiles_too_long_is_refused_and_not_tried_again(xgrammar: Backend) -> None:
    child = xgrammar.compiler._child  # type: ignore[attr-defined]
    bomb = Json({"type": "object", "properties": {f"p{number}": {} for number in range(6000)}})  # time grows as n²
    for _ in range(2):
        with pytest.raises(BadField, match=r"^f: takes more than 2 s to compile$"):
            await xgrammar.compiled(bomb)
    assert child._process is None  # started once, ended once
    await xgrammar.compiled(of(const="another process"))


async def test_results_are_remembered_and_asked_for_once(xgrammar: Backend) -> None:
    asked = 0
    child = xgrammar.compiler._child  # type: ignore[attr-defined]
    original = child.ask

    async def ask(question: dict[str, Any]) -> Any:
        nonlocal asked
        asked += 1
        return await original(question)

    child.ask = ask
    try:
        good, bad = of(const="remember"), Special(10**6 + 1, "")
        first = await asyncio.gather(*(xgrammar.compiled(good) for _ in range(5)))
        assert (await xgrammar.compiled(good)).text == first[0].text
        for _ in range(2):
            with pytest.raises(BadField):
                await xgrammar.compiled(bad)
        waiter = asyncio.create_task(xgrammar.compiled(of(const="left")))
        await asyncio.sleep(0)
        waiter.cancel()
        await xgrammar.compiled(of(const="left"))
    finally:
        child.ask = original
    assert asked == 3


# the process


def child_of(answer: str, *, first: str = '{"ready": true}', seconds: float = 20.0, most_bytes: int = 1000) -> Child:
    script = f"import json, os, signal, sys, time\nprint({first!r}, flush=True)\nfor line in sys.stdin:\n    {answer}"
    command = (sys.executable, "-S", "-c", script)
    return Child(command, seconds=seconds, start_seconds=20, most_bytes=most_bytes)


ECHO = "print(line, end='', flush=True)"


async def test_questions_are_answered_in_turn() -> None:
    child = child_of(f"time.sleep(0.02); {ECHO}")
    answers = await asyncio.gather(*(child.ask({"number": number}) for number in range(20)))
    assert answers == [{"number": number} for number in range(20)]
    await child.stop()


async def test_a_slow_child_is_killed_and_the_next_question_gets_another() -> None:
    child = child_of(f"time.sleep(100 if 'slow' in line else 0); {ECHO}", seconds=2)
    assert await child.ask({"a": 1}) == {"a": 1}
    first = child._process
    slow = asyncio.create_task(child.ask({"slow": 1}))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(child.ask({"b": 1}))  # its own time begins after the slow one's
    with pytest.raises(TooSlow) as caught:
        await slow
    assert not caught.value.sure
    assert first is not None
    assert first.returncode == -signal.SIGKILL
    assert await waiting == {"b": 1}
    await child.stop()


async def test_a_child_may_know_by_itself_that_it_is_slow() -> None:
    child = child_of("signal.setitimer(signal.ITIMER_PROF, 0.1)\n    while True: pass")
    with pytest.raises(TooSlow) as caught:
        await child.ask({})
    assert caught.value.sure


@pytest.mark.parametrize(
    "answer", ["os._exit(3)", "print('no JSON', flush=True)", "print('x' * 9000, flush=True)", "os.close(1); line * 1"]
)
async def test_a_child_that_does_not_answer_is_replaced(answer: str) -> None:
    child = child_of(f"exec({answer!r}) if 'bad' in line else {ECHO}")
    with pytest.raises(Died):
        await child.ask({"bad": 1})
    assert await child.ask({"good": 1}) == {"good": 1}
    await child.stop()


async def test_a_child_that_ends_in_between_is_replaced() -> None:
    child = child_of(ECHO)
    await child.ask({})
    assert child._process is not None
    child._process.kill()
    await child._process.wait()
    assert await child.ask({"good": 1}) == {"good": 1}
    await child.stop()


async def test_who_leaves_does_not_leave_an_answer_behind() -> None:
    child = child_of(f"time.sleep(0.5); {ECHO}")
    task = asyncio.create_task(child.ask({"a": 1}))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await child.ask({"b": 1}) == {"b": 1}
    await child.stop()


@pytest.mark.parametrize("first", ['{"failed": "no such model"}', "Traceback", ""])
async def test_a_child_that_does_not_start_is_an_internal_error(first: str) -> None:
    child = child_of(ECHO, first=first)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="did not start"):
            await child.ask({})
    await child.start()  # only says so
    assert child._process is None


async def test_only_so_many_may_wait() -> None:
    child = child_of(f"time.sleep(0.2); {ECHO}")
    tasks = [asyncio.create_task(child.ask({"number": number})) for number in range(256)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await child.ask({})
    for task in tasks[1:]:
        task.cancel()
    assert await tasks[0] == {"number": 0}
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await child.ask({"again": 1}) == {"again": 1}
    await child.stop()


async def test_a_model_that_is_not_there() -> None:
    compiler = Xgrammar(embedded.prepare() / "nothing", 2.0, BYTES)
    with pytest.raises(RuntimeError, match="did not start"):
        await compiler.compiled(Literal("a"), "f", BYTES)


_PARENT = """
import asyncio, sys
from pathlib import Path
from serving.api.compiler import Xgrammar

async def main():
    compiler = Xgrammar(Path(sys.argv[1]), 2.0, 256_000)
    await compiler.start()
    print(compiler._child._process.pid, flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


async def test_the_child_dies_with_its_parent() -> None:
    command = [sys.executable, "-c", _PARENT, str(embedded.prepare())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        line = await asyncio.to_thread(parent.stdout.readline)
        child = psutil.Process(int(line))
        os.kill(child.pid, signal.SIGSTOP)  # it can not see that its input has ended
        parent.kill()
    deadline = time.monotonic() + 5
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
