"""Tensor parallelism over two worker processes, as far as the CPU build runs it.

Pipeline parallelism it does not: with vLLM 0.32's mp executor the second stage fails on its first
step, and its ray executor refuses the platform ("current platform cpu does not support ray").
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loadtests import one_layer
from serving.core import Request, Sampling
from serving.engine.host import Host
from serving.engine.link import EngineLink
from serving.settings import EngineSettings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]


async def generate(path: Path, **settings: Any) -> list[int]:
    from serving.engine.vllm import VllmCore

    thread = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    engine = EngineSettings(dtype="float32", kv_cache_gib=0.1, max_model_len=512, **settings)
    core = await loop.run_in_executor(thread, VllmCore, engine, str(path))
    host = Host(core, engine="e", model="m", secret=b"s", on_death=lambda: None)
    port = await host.start("127.0.0.1")
    options = {"front": "f", "secret": b"s", "on_report": lambda _: None, "on_lost": lambda _: None}
    link = await EngineLink.connect("127.0.0.1", port, 5, **options)
    request = Request("r", "m", list(range(300, 330)), Sampling(max_tokens=8, temperature=0.0, ignore_eos=True))
    async with link.generate(request) as stream:
        tokens = [token async for batch in stream for output in batch for token in output.tokens]
    link.abort()
    await host.stop()
    await loop.run_in_executor(thread, core.close)
    thread.shutdown()
    return tokens


async def test_two_tensor_parallel_workers_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_layer.prepare(tmp_path / "model", layers=2)
    alone = await generate(path)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    assert await generate(path, tensor_parallel_size=2) == alone
    assert len(alone) == 8
