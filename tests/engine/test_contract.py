"""What every engine must do, on the simulated device and on the real one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import pytest_asyncio

from serving.core import Output, Request, Sampling
from serving.engine.host import Host
from serving.engine.link import EngineLink
from serving.errors import EngineRefused
from serving.models import embedded
from serving.models.text import ModelText
from serving.settings import EngineSettings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

SETTINGS: dict[str, Any] = {"dtype": "float32", "kv_cache_gib": 0.25, "max_model_len": 2048, "block_size": 32}


@dataclass
class Rig:
    core: Any
    host: Host
    link: EngineLink
    prompt: list[int]

    async def run(self, prompt: list[int] | None = None, **sampling: Any) -> list[Output]:
        request = Request("r", "m", prompt or self.prompt, Sampling(**({"temperature": 0.0} | sampling)))
        async with self.link.generate(request) as stream:
            return [output async for batch in stream for output in batch]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["simulated", "auto"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    from serving.engine.vllm import VllmCore

    path = embedded.prepare()
    settings = EngineSettings(device=request.param, **SETTINGS)
    thread = ThreadPoolExecutor(1)  # the core dies with the thread that started it
    core = await asyncio.get_running_loop().run_in_executor(thread, VllmCore, settings, str(path))
    host = Host(core, engine="e", model="m", secret=b"s", on_death=lambda: None)
    port = await host.start("127.0.0.1")
    options = {"front": "f", "secret": b"s", "on_report": lambda _: None, "on_lost": lambda _: None}
    link = await EngineLink.connect("127.0.0.1", port, 5, **options)
    text = ModelText(path)
    prompt = text.encode(text.template.render([{"role": "user", "content": "What is the capital of France?"}]))
    yield Rig(core, host, link, prompt)
    link.abort()
    await host.stop()
    await asyncio.get_running_loop().run_in_executor(thread, core.close)
    thread.shutdown()


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


async def test_as_many_tokens_as_asked(rig: Rig) -> None:
    outputs = await rig.run(max_tokens=17, ignore_eos=True)
    assert len(tokens(outputs)) == 17
    assert outputs[-1].finish == "length"
    assert all(output.finish is None for output in outputs[:-1])


async def test_the_same_request_gives_the_same_tokens(rig: Rig) -> None:
    greedy = [tokens(await rig.run(max_tokens=8, ignore_eos=True)) for _ in range(2)]
    assert greedy[0] == greedy[1]
    seeded = [tokens(await rig.run(max_tokens=8, ignore_eos=True, temperature=1.3, seed=5)) for _ in range(2)]
    assert seeded[0] == seeded[1]


@pytest.mark.parametrize("best", [0, 3])
async def test_logprobs(rig: Rig, best: int) -> None:
    outputs = await rig.run(max_tokens=4, ignore_eos=True, logprobs=best)
    for output in outputs:
        assert output.logprobs is not None
        (found,) = output.logprobs
        assert len(found.token_ids) == len(found.logprobs) == 1 + best
        assert found.token_ids[0] == output.tokens[0]
        assert all(value <= 0 for value in found.logprobs)


async def test_a_repeated_prefix_is_cached(rig: Rig) -> None:
    prompt = [500 + n for n in range(200)]
    first, second = [await rig.run(prompt, max_tokens=2, ignore_eos=True) for _ in range(2)]
    assert first[0].cached_tokens == 0
    assert second[0].cached_tokens == 192  # whole blocks of 32, never the whole prompt


async def test_many_at_once(rig: Rig) -> None:
    results = await asyncio.gather(*(rig.run([*rig.prompt, 400 + n], max_tokens=6, ignore_eos=True) for n in range(64)))
    assert [len(tokens(outputs)) for outputs in results] == [6] * 64


async def test_an_abort_frees_the_blocks(rig: Rig) -> None:
    assert rig.link.view is not None
    request = Request("r", "m", [900 + n for n in range(300)], Sampling(max_tokens=1500, ignore_eos=True))
    async with rig.link.generate(request) as stream:
        for _ in range(3):
            await anext(stream)
        assert rig.link.view.free_blocks < rig.link.view.total_blocks
        reports = rig.link.view.reports
    async with asyncio.timeout(5):
        while rig.link.view.free_blocks != rig.link.view.total_blocks:
            await asyncio.sleep(0.01)
    assert rig.link.view.reports <= reports + 4  # the step in flight, the one that frees, heartbeats
    assert rig.host.live == 0
    assert rig.link.view.running == 0


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [([5, 6], {"max_tokens": 3, "min_tokens": 9}), ([7] * 2048, {"max_tokens": 5}), ([10**6], {"max_tokens": 5})],
    ids=["min_tokens", "too long", "not in the vocabulary"],
)
async def test_what_cannot_be_run_is_refused(rig: Rig, prompt: list[int], sampling: dict[str, Any]) -> None:
    with pytest.raises(EngineRefused):
        await rig.run(prompt, **sampling)
    assert len(tokens(await rig.run(max_tokens=2, ignore_eos=True))) == 2


async def test_a_report_says_what_is_there(rig: Rig) -> None:
    view = rig.link.view
    assert view is not None
    await rig.run(max_tokens=2, ignore_eos=True)
    async with asyncio.timeout(3):
        while view.live or view.running:
            await asyncio.sleep(0.01)
    assert view.free_blocks == view.total_blocks
    assert view.received == rig.link.submitted


_REPLICA = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from serving.engine.vllm import VllmCore
from serving.models import embedded
from serving.settings import EngineSettings

if __name__ == "__main__":
    settings = EngineSettings(device="simulated", kv_cache_gib=0.25, max_model_len=2048)
    core = ThreadPoolExecutor(1).submit(VllmCore, settings, str(embedded.prepare())).result()
    print("core", core.resources.engine_manager.processes[0].pid, flush=True)
    time.sleep(60)
"""


async def test_the_core_dies_with_its_replica(tmp_path: Any) -> None:
    script = tmp_path / "replica.py"
    script.write_text(_REPLICA)
    replica = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert replica.stdout is not None
    pid = next(int(line.split()[1]) for line in replica.stdout if line.startswith("core "))
    core = psutil.Process(pid)
    os.kill(replica.pid, signal.SIGKILL)
    replica.wait()
    replica.stdout.close()
    deadline = time.monotonic() + 3
    while core.is_running() and core.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not core.is_running() or core.status() == psutil.STATUS_ZOMBIE
