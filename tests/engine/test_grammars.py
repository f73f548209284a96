"""What real engines say under a grammar, with each of the grammar backends that the settings know."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from serving.api.compiler import Compiler, Guidance, Xgrammar
from serving.api.grammar import Json, Node, Regex
from serving.api.tools import registry
from serving.core import FinishReason, Request, Sampling
from serving.engine.host import Host
from serving.engine.link import EngineLink
from serving.errors import BadField
from serving.models import embedded
from serving.models.text import ModelText
from serving.settings import EngineSettings
from tests.api.tools.answers import TOOLS, WEATHER, calls, read, shown

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

BYTES = 256_000
FORMAT = registry.find("json_tags")


@dataclass
class Rig:
    link: EngineLink
    compiler: Compiler
    text: ModelText

    async def says(self, node: Node, words: str, tools: Any = (), **sampling: Any) -> tuple[str, FinishReason | None]:
        """What the model says to these words, and why it stopped."""
        messages = [{"role": "user", "content": words}]
        if tools:
            shown = json.dumps([{"name": tool.name, "parameters": tool.parameters} for tool in tools])
            messages.insert(0, {"role": "system", "content": FORMAT.instructions() + shown})
        prompt = self.text.encode(self.text.template.render(messages))
        grammar = await self.compiler.compiled(node, "f", BYTES)
        chosen = Sampling(**({"temperature": 0.0, "max_tokens": 100} | sampling))
        async with self.link.generate(Request("r", "m", prompt, chosen, grammar)) as stream:
            outputs = [output async for batch in stream for output in batch]
        tokens = [token for output in outputs for token in output.tokens]
        return self.text.tokenizer.decode(tokens), outputs[-1].finish


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["guidance", "xgrammar"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    from serving.engine.vllm import VllmCore

    path = embedded.prepare()
    settings = EngineSettings(
        dtype="float32", kv_cache_gib=0.25, max_model_len=2048, max_num_seqs=16, grammar_backend=request.param
    )
    compiler: Compiler = Guidance() if request.param == "guidance" else Xgrammar(path, 2.0, BYTES)
    starting = asyncio.create_task(compiler.start())
    thread = ThreadPoolExecutor(1)  # the core dies with the thread that started it
    core = await asyncio.get_running_loop().run_in_executor(thread, VllmCore, settings, str(path))
    host = Host(core, engine="e", model="m", secret=b"s", on_death=lambda: None)
    port = await host.start("127.0.0.1")
    link = await EngineLink.connect(
        "127.0.0.1", port, 5, front="f", secret=b"s", on_report=lambda _: None, on_lost=lambda _: None
    )
    await starting
    yield Rig(link, compiler, ModelText(path))
    await compiler.stop()
    link.abort()
    await host.stop()
    await asyncio.get_running_loop().run_in_executor(thread, core.close)
    thread.shutdown()


# Bounded everywhere, so that every answer is whole whatever the model thinks of it.
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "sort": {"anyOf": [{"enum": ["cat", "dog"]}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "sort", "tags"],
}


@pytest.mark.parametrize("sampling", [{}, *({"temperature": 1.5, "seed": seed} for seed in range(3))], ids=str)
async def test_a_schema_is_obeyed(rig: Rig, sampling: dict[str, Any]) -> None:
    answer, finish = await rig.says(Json(PERSON), "Describe a person in JSON.", **sampling)
    assert finish == "stop"
    person = json.loads(answer)
    assert list(person) == PERSON["required"]
    assert isinstance(person["name"], str)
    assert 0 <= person["age"] <= 150
    assert person["sort"] in ("cat", "dog", None)
    assert 1 <= len(person["tags"]) <= 2
    assert answer.startswith('{"name": ')
    assert "\n" not in answer


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 1}], ids=str)
async def test_a_pattern_is_obeyed(rig: Rig, sampling: dict[str, Any]) -> None:
    answer, finish = await rig.says(Regex(r"(Paris|Rome) in \d{4}\."), "Where and when?", **sampling)
    assert finish == "stop"
    assert re.fullmatch(r"(Paris|Rome) in \d{4}\.", answer)


BOUNDED = WEATHER.parameters | {
    "properties": WEATHER.parameters["properties"]
    | {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}
}


@pytest.mark.parametrize("words", ["What is the weather in Oslo?", "Tell me a joke."])
async def test_a_named_call_is_made(rig: Rig, words: str) -> None:
    tool = type(WEATHER)(WEATHER.name, WEATHER.description, BOUNDED)
    answer, finish = await rig.says(FORMAT.calls([tool], {}, parallel=False), words, [tool])
    assert finish == "stop"
    ((name, arguments),) = calls(read(FORMAT, [answer], [tool]))
    assert name == "get_weather"
    assert isinstance(arguments["city"], str)
    assert arguments.keys() <= {"city", "days", "units"}


@pytest.mark.parametrize("sampling", [{}, *({"temperature": 1.2, "seed": seed} for seed in range(4))], ids=str)
async def test_an_answer_may_hold_calls_but_none_that_is_wrong(rig: Rig, sampling: dict[str, Any]) -> None:
    node = FORMAT.answer(TOOLS, {}, parallel=True)
    words = "What is the weather in Oslo? Begin with <tool_call>."
    answer, finish = await rig.says(node, words, TOOLS, max_tokens=120, **sampling)
    events = read(FORMAT, [answer], TOOLS)
    if finish == "stop":
        for name, arguments in calls(events):
            assert name in ("get_weather", "clock")
            assert arguments.keys() <= {"city", "days", "units"}
            assert name == "clock" or isinstance(arguments["city"], str)
        assert "<tool_call>" not in shown(events)
    else:  # cut short within text or within a call; what was said until then was allowed
        assert finish == "length"
        assert answer


async def test_engines_refuse_what_the_compiler_refuses(rig: Rig) -> None:
    with pytest.raises(BadField):
        await rig.compiler.compiled(Regex("(?=a)"), "f", BYTES)
    assert (await rig.says(Regex("[ab]{3}"), "Hi."))[1] == "stop"
