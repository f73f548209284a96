"""What every engine must do, on the simulated device and on the real one."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from serving.core import EngineView, Output, Request, Sampling
from serving.engine.base import TokenStream
from serving.engine.host import Host
from serving.engine.link import EngineLink
from serving.errors import EngineLost, EngineRefused
from serving.models import embedded
from serving.models.text import ModelText
from serving.settings import EngineSettings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "kv_cache_gib": 0.25,
    "max_model_len": 2048,
    "block_size": 32,
    "max_num_seqs": 16,  # few seats, so that there is a queue inside the engine
}


@dataclass
class Rig:
    core: Any
    host: Host
    link: EngineLink
    prompt: list[int]
    reports: list[int]

    def request(self, prompt: list[int] | None = None, priority: int = 0, **sampling: Any) -> Request:
        chosen = Sampling(**({"temperature": 0.0} | sampling))
        return Request("r", "m", self.prompt if prompt is None else prompt, chosen, priority=priority)

    async def run(self, prompt: list[int] | None = None, **options: Any) -> list[Output]:
        async with self.link.generate(self.request(prompt, **options)) as stream:
            return [output async for batch in stream for output in batch]

    async def idle(self) -> EngineView:
        """The view once the engine has reported that nothing is left in it."""
        view = self.link.view
        assert view is not None
        async with asyncio.timeout(5):
            while view.live or view.running or view.waiting or view.free_blocks != view.total_blocks:
                await asyncio.sleep(0.005)
        return view


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["simulated", "auto"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    from serving.engine.vllm import VllmCore

    path = embedded.prepare()
    settings = EngineSettings(device=request.param, **SETTINGS)
    thread = ThreadPoolExecutor(1)  # the core dies with the thread that started it
    core = await asyncio.get_running_loop().run_in_executor(thread, VllmCore, settings, str(path))
    host = Host(core, engine="e", model="m", secret=b"s", on_death=lambda: None)
    port = await host.start("127.0.0.1")
    reports: list[int] = []

    def on_report(link: EngineLink) -> None:
        assert link.view is not None
        reports.append(link.view.reports)

    link = await EngineLink.connect(
        "127.0.0.1", port, 5, front="f", secret=b"s", on_report=on_report, on_lost=lambda _: None
    )
    text = ModelText(path)
    prompt = text.encode(text.template.render([{"role": "user", "content": "What is the capital of France?"}]))
    yield Rig(core, host, link, prompt, reports)
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
    assert [output.cached_tokens is not None for output in outputs] == [True] + [False] * 16  # on the first only


async def test_a_stop_token_ends_it(rig: Rig) -> None:
    free = tokens(await rig.run(max_tokens=12, ignore_eos=True))
    stop = free[4]
    outputs = await rig.run(max_tokens=12, ignore_eos=True, stop_token_ids=(stop,))
    assert tokens(outputs) == free[: free.index(stop) + 1]
    assert (outputs[-1].finish, outputs[-1].stop_token) == ("stop", stop)


async def test_no_stop_before_min_tokens(rig: Rig) -> None:
    stop = tokens(await rig.run(max_tokens=3, ignore_eos=True))[2]
    outputs = await rig.run(max_tokens=9, min_tokens=7, ignore_eos=True, stop_token_ids=(stop,))
    assert 7 <= len(tokens(outputs)) <= 9


async def test_the_real_model_knows_when_to_stop(rig: Rig) -> None:
    if is_simulated(rig):
        pytest.skip("the simulated device says what comes to its mind")
    outputs = await rig.run(max_tokens=50)
    assert (len(tokens(outputs)), outputs[-1].finish, outputs[-1].stop_token) == (8, "stop", None)


async def test_the_same_request_gives_the_same_tokens(rig: Rig) -> None:
    greedy = [tokens(await rig.run(max_tokens=8, ignore_eos=True)) for _ in range(2)]
    assert greedy[0] == greedy[1]
    seeded = [tokens(await rig.run(max_tokens=8, ignore_eos=True, temperature=1.3, seed=5)) for _ in range(2)]
    assert seeded[0] == seeded[1]


@pytest.mark.parametrize("best", [0, 3])
async def test_logprobs(rig: Rig, best: int) -> None:
    outputs = await rig.run(max_tokens=4, ignore_eos=True, logprobs=best)
    assert len(outputs) == 4
    for output in outputs:
        assert output.logprobs is not None
        (found,) = output.logprobs
        assert len(found.token_ids) == len(found.logprobs) == 1 + best
        assert found.token_ids[0] == output.tokens[0]
        assert all(value <= 0 for value in found.logprobs)
        assert found.logprobs[1:] == sorted(found.logprobs[1:], reverse=True)
        if best:  # greedy: the chosen token is the best one
            assert found.token_ids[1] == found.token_ids[0]


async def test_logprobs_only_for_those_who_ask(rig: Rig) -> None:
    """Beside a request that asks for more an engine may give more than was asked: the front cuts it off."""
    wanted = (0, 2, 5)
    runs = [rig.run([*rig.prompt, 700 + n], max_tokens=4, ignore_eos=True, logprobs=n) for n in wanted]
    plain = [rig.run([*rig.prompt, 800 + n], max_tokens=4, ignore_eos=True) for n in range(2)]
    *scored, first, second = await asyncio.gather(*runs, *plain)
    for best, outputs in zip(wanted, scored, strict=True):
        for output in outputs:
            assert output.logprobs is not None
            assert output.logprobs[0].token_ids[0] == output.tokens[0]
            assert len(output.logprobs[0].token_ids) >= 1 + best
    assert all(output.logprobs is None for output in first + second)


async def test_a_repeated_prefix_is_cached(rig: Rig) -> None:
    prompt = [500 + n for n in range(200)]
    first, second = [await rig.run(prompt, max_tokens=2, ignore_eos=True) for _ in range(2)]
    assert first[0].cached_tokens == 0
    assert second[0].cached_tokens == 192  # whole blocks of 32, never the whole prompt


async def test_many_at_once(rig: Rig) -> None:
    """Four times as many as have a seat."""
    results = await asyncio.gather(*(rig.run([*rig.prompt, 400 + n], max_tokens=6, ignore_eos=True) for n in range(64)))
    assert [len(tokens(outputs)) for outputs in results] == [6] * 64
    view = await rig.idle()
    assert view.received == rig.link.submitted


async def test_the_more_urgent_goes_first(rig: Rig) -> None:
    """Every seat is taken and one comes free: the lower number gets it, though it came later."""
    seats = SETTINGS["max_num_seqs"]
    finished: list[str] = []

    async def run(name: str, **options: Any) -> None:
        await rig.run(ignore_eos=True, **options)
        finished.append(name)

    async with asyncio.TaskGroup() as group:
        for seat in range(seats):
            group.create_task(run(f"seat {seat}", max_tokens=60 if seat else 20))
        assert rig.link.view is not None
        async with asyncio.timeout(10):
            while rig.link.view.running < seats:
                await asyncio.sleep(0.002)
        for name, priority in (("later", 5), ("sooner", 1), ("soonest", -1)):
            group.create_task(run(name, max_tokens=2, priority=priority))
    assert [name for name in finished if "seat" not in name] == ["soonest", "sooner", "later"]
    assert finished[0] == "seat 0"


async def test_more_than_the_cache_holds(rig: Rig) -> None:
    """Requests that outgrow the KV cache are put back and taken up again; nobody gets a token too many or too few."""
    if not is_simulated(rig):
        pytest.skip("a minute of computing")
    prompts = [[1000 + n] * 550 for n in range(SETTINGS["max_num_seqs"])]
    assert rig.link.view is not None
    assert sum(map(rig.link.view.blocks_for, (550 + 150,) * 16)) > rig.link.view.total_blocks
    alone = [tokens(await rig.run(prompt, max_tokens=150, ignore_eos=True)) for prompt in prompts[:2]]
    results = await asyncio.gather(*(rig.run(prompt, max_tokens=150, ignore_eos=True) for prompt in prompts))
    assert [len(tokens(outputs)) for outputs in results] == [150] * 16
    assert [tokens(outputs) for outputs in results[:2]] == alone
    await rig.idle()


async def test_an_abort_frees_the_blocks(rig: Rig) -> None:
    view = await rig.idle()
    async with rig.link.generate(
        rig.request([900 + n for n in range(300)], max_tokens=1500, ignore_eos=True)
    ) as stream:
        for _ in range(3):
            await anext(stream)
        assert view.free_blocks < view.total_blocks
        reports = view.reports
    await rig.idle()
    assert view.reports <= reports + 4  # the step in flight, the one that frees, heartbeats
    assert rig.host.live == 0


async def test_aborts_at_every_age(rig: Rig) -> None:
    """Still waiting, being prefilled, decoding, just finished: blocks and seats always come back."""

    async def leave(number: int) -> None:
        request = rig.request([2000 + number] * 100, max_tokens=200, ignore_eos=True)
        async with rig.link.generate(request):
            await asyncio.sleep(number * 0.01)

    await asyncio.gather(*(leave(number) for number in range(48)))
    await rig.idle()
    assert rig.host.live == 0
    assert len(tokens(await rig.run(max_tokens=2, ignore_eos=True))) == 2


async def test_the_context_is_used_to_its_end(rig: Rig) -> None:
    outputs = await rig.run([600] * 2040, max_tokens=100, ignore_eos=True)
    assert (len(tokens(outputs)), outputs[-1].finish) == (8, "length")
    outputs = await rig.run([600] * 2047, max_tokens=1, ignore_eos=True)
    assert (len(tokens(outputs)), outputs[-1].finish) == (1, "length")


@pytest.mark.parametrize(
    "sampling",
    [
        {"seed": 2**63 - 1},
        {"seed": -(2**63)},
        {"seed": -1},
        {"temperature": 2.0, "top_p": 5e-324},
        {"temperature": 5e-324},
        {"frequency_penalty": 2.0, "presence_penalty": -2.0, "repetition_penalty": 1.3},
        {"logprobs": 20},
        {"top_k": 1, "min_p": 1.0},
        {"min_tokens": 3},
    ],
    ids=str,
)
async def test_the_extremes_that_the_api_lets_through(rig: Rig, sampling: dict[str, Any]) -> None:
    outputs = await rig.run(max_tokens=3, ignore_eos=True, **({"temperature": 1.0} | sampling))
    assert len(tokens(outputs)) == 3


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ([5, 6], {"max_tokens": 3, "min_tokens": 9}),
        ([], {"max_tokens": 5}),
        ([7] * 2048, {"max_tokens": 5}),
        ([10**6], {"max_tokens": 5}),
        ([5], {"max_tokens": 0}),
        ([5], {"max_tokens": 5, "temperature": -1.0}),
        ([5], {"max_tokens": 5, "logprobs": 1000}),
        ([5], {"max_tokens": 5, "stop_token_ids": (10**6,)}),
    ],
    ids=["min_tokens", "empty", "too long", "not in the vocabulary", "max_tokens", "temperature", "logprobs", "stop"],
)
async def test_what_cannot_be_run_is_refused(rig: Rig, prompt: list[int], sampling: dict[str, Any]) -> None:
    with pytest.raises(EngineRefused):
        await rig.run(prompt, **sampling)
    assert len(tokens(await rig.run(max_tokens=2, ignore_eos=True))) == 2


async def test_reports_are_exact(rig: Rig) -> None:
    """After everything above: no number is missing, every block is free, every request was counted."""
    view = await rig.idle()
    assert rig.reports == list(range(1, len(rig.reports) + 1))
    assert view.received == rig.link.submitted
    gauges = rig.host.gauges()
    assert (gauges["running"], gauges["waiting"], gauges["fronts"]) == (0, 0, 1)
    assert gauges["free_blocks"] == gauges["total_blocks"] == view.total_blocks


def is_simulated(rig: Rig) -> bool:
    return bool(rig.core.vllm_config.additional_config)


# deaths


_REPLICA = """
import asyncio, os, sys
from concurrent.futures import ThreadPoolExecutor
from serving.engine.host import Host
from serving.engine.vllm import VllmCore
from serving.models import embedded
from serving.settings import EngineSettings

async def main():
    settings = EngineSettings(device=sys.argv[1], dtype="float32", kv_cache_gib=0.25, max_model_len=2048)
    thread = ThreadPoolExecutor(1)
    core = await asyncio.get_running_loop().run_in_executor(thread, VllmCore, settings, str(embedded.prepare()))
    host = Host(core, engine="e", model="m", secret=b"s", on_death=lambda: os._exit(1))
    port = await host.start("127.0.0.1")
    print("replica", core.resources.engine_manager.processes[0].pid, port, flush=True)
    await asyncio.sleep(100)

if __name__ == "__main__":
    asyncio.run(main())
"""


@dataclass
class Replica:
    """A process that holds a core and a host, as a Ray Serve replica does."""

    process: subprocess.Popen[bytes]
    core: psutil.Process
    port: int

    async def busy_link(self, stack: AsyncExitStack) -> tuple[EngineLink, TokenStream]:
        """A link, and a request that runs on it."""
        link = await EngineLink.connect(
            "127.0.0.1", self.port, 5, front="f", secret=b"s", on_report=lambda _: None, on_lost=lambda _: None
        )
        stack.callback(link.abort)
        sampling = Sampling(max_tokens=1500, ignore_eos=True)
        stream = await stack.enter_async_context(link.generate(Request("r", "m", [5, 6, 7], sampling)))
        await anext(stream)
        return link, stream


@contextmanager
def replica(directory: Path, device: str) -> Iterator[Replica]:
    script, log = directory / "replica.py", directory / "log"
    script.write_text(_REPLICA)
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, str(script), device], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while not (ready := re.search(r"^replica (\d+) (\d+)$", log.read_text(), re.M)):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the replica did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield Replica(process, psutil.Process(int(ready[1])), int(ready[2]))
    finally:
        process.kill()
        process.wait()


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


GONE_SECONDS = 10  # the core is gone at once; a worker ends its step and unloads what it had imported


async def all_gone(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not all(map(gone, processes)):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


@pytest.mark.parametrize("device", ["simulated", "auto"])
async def test_the_core_dies_with_its_replica(tmp_path: Path, device: str) -> None:
    async with AsyncExitStack() as stack:
        there = stack.enter_context(replica(tmp_path, device))
        family = [there.core, *there.core.children(recursive=True)]
        _, stream = await there.busy_link(stack)
        there.process.kill()
        with pytest.raises(EngineLost):
            async for _ in stream:
                pass
        assert await all_gone(family, GONE_SECONDS), [process for process in family if not gone(process)]


@pytest.mark.parametrize(("device", "busy"), [("simulated", False), ("auto", True)])
async def test_the_replica_ends_with_its_core(tmp_path: Path, device: str, busy: bool) -> None:
    async with AsyncExitStack() as stack:
        there = stack.enter_context(replica(tmp_path, device))
        family = there.core.children(recursive=True)
        if busy:
            link, stream = await there.busy_link(stack)
        there.core.kill()
        if busy:
            async with asyncio.timeout(2):
                with pytest.raises(EngineLost):
                    async for _ in stream:
                        pass
            assert link.transport is None
        assert there.process.wait(2) == 1
        assert await all_gone(family, GONE_SECONDS), [process for process in family if not gone(process)]
