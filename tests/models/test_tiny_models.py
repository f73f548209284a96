"""Every architecture of the page's six models runs on the real engine, and says what transformers says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serving.core import Output, Request, Sampling
from serving.engine.host import Host
from serving.engine.link import EngineLink
from serving.models.text import ModelText
from serving.settings import EngineSettings
from tests import tiny_models

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.parametrize("name", tiny_models.TINY)
def test_its_text_side_is_of_its_family(name: str) -> None:
    text = ModelText(tiny_models.prepare(name))
    assert text.family is not None
    assert text.family.name == name
    assert text.template.source == text.family.template
    assert text.stop_token_ids == ()  # the generation config knows them all
    assert set(text.family.stop) <= set(text.special_ids)
    assert 2000 < text.tokenizer.get_vocab_size() < 4000
    said = "Say 42, é, 日本 and 🐸:\n  a\tb"
    tokens = text.encode(said)
    assert b"".join(map(text.token_bytes, tokens)).decode().removeprefix(" ") == said
    assert len(tokens) < len(said.encode())
    for token, number in text.special_ids.items():
        assert text.encode(token)[-1:] == [number]


def test_a_model_is_made_once_and_again_where_it_is_damaged(tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(model.iterdir())}

    model = tiny_models.prepare("phi-3", tmp_path)
    made, when = contents(), model.stat().st_ino
    assert tiny_models.prepare("phi-3", tmp_path).stat().st_ino == when
    (model / "model.safetensors").write_bytes(b"half")
    assert tiny_models.prepare("phi-3", tmp_path).stat().st_ino != when
    assert contents() == made  # to the byte: seeds decide everything
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["phi-3"]


@dataclass
class Rig:
    path: Path
    link: EngineLink
    prompt: list[int]

    async def tokens(self, count: int) -> list[int]:
        sampling = Sampling(max_tokens=count, temperature=0.0, ignore_eos=True)
        async with self.link.generate(Request("r", "m", self.prompt, sampling)) as stream:
            outputs: list[Output] = [output async for batch in stream for output in batch]
        return [token for output in outputs for token in output.tokens]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(tiny_models.TINY))
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    from serving.engine.vllm import VllmCore

    path = tiny_models.prepare(request.param)
    settings = EngineSettings(dtype="float32", kv_cache_gib=0.25, max_model_len=1024)
    thread = ThreadPoolExecutor(1)  # the core dies with the thread that started it
    core = await asyncio.get_running_loop().run_in_executor(thread, VllmCore, settings, str(path))
    host = Host(core, engine="e", model="m", secret=b"s", on_death=lambda: None)
    port = await host.start("127.0.0.1")
    link = await EngineLink.connect(
        "127.0.0.1", port, 5, front="f", secret=b"s", on_report=lambda _: None, on_lost=lambda _: None
    )
    text = ModelText(path)
    yield Rig(path, link, text.encode(text.template.render(CHAT)))
    link.abort()
    await host.stop()
    await asyncio.get_running_loop().run_in_executor(thread, core.close)
    thread.shutdown()


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
async def test_the_engine_says_what_transformers_says(rig: Rig) -> None:
    first, second = [await rig.tokens(8) for _ in range(2)]
    assert first == second
    assert len(first) == 8
    assert first == reference(rig.path, rig.prompt, 8)


def reference(path: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens by transformers, with the attention that leaves nothing of the architecture out."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
