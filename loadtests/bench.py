"""`make bench`: what the serving edge costs, ours beside `vllm serve`, in one run on one machine.

Edge cost is the CPU time of every process that a stack started, but vLLM's own EngineCore and
Worker, for each streamed token. Everything runs on loopback; the results go to
loadtests/results/bench.json. Numbers of one run compare; numbers of two machines do not.

usage: python -m loadtests.bench [--only edge|throughput|model|front] [--repeat 5] [--rust FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from loadtests import one_layer
from serving.models import embedded

RESULTS = Path(__file__).parent / "results"
START_SECONDS = 180
_TICK = os.sysconf("SC_CLK_TCK")

# The same engine on both sides.
SEQS, BATCHED, CONTEXT, KV_GIB = 256, 2048, 2048, 1
# One layer needs no second thread: two that spin for each other on a busy machine of two cores make
# an engine, and then everything that waits for it, ten times slower now and then.
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@dataclass
class Stack:
    name: str
    command: Callable[[str, str, int], list[str]]  # model directory, dtype, port
    environment: dict[str, str]
    model: Callable[[str], str]  # directory → the name that clients send


def ours(*extra: str) -> Callable[[str, str, int], list[str]]:
    def command(model: str, dtype: str, port: int) -> list[str]:
        settings = {
            "http.port": port,
            "admin.port": free_port(),
            "models.0.source": model,
            "models.0.name": "bench",
            "engine.dtype": dtype,
            "engine.max_num_seqs": SEQS,
            "engine.max_num_batched_tokens": BATCHED,
            "engine.max_model_len": CONTEXT,
            "engine.kv_cache_gib": KV_GIB,
            "engine.enforce_eager": "true",
        }
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return [sys.executable, "-m", "serving", "up", *sets, *extra]

    return command


def vllm_serve(model: str, dtype: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", model, "--served-model-name", "bench", "--dtype", dtype, "--enforce-eager"),
        *("--max-num-seqs", str(SEQS), "--max-num-batched-tokens", str(BATCHED), "--max-model-len", str(CONTEXT)),
        *("--kv-cache-memory-bytes", str(KV_GIB * 2**30), "--disable-uvicorn-access-log"),
    ]


def vllm_rust(model: str, dtype: str, port: int) -> list[str]:
    """`vllm serve` with its Rust front end, whose binary only the GPU wheel carries. It goes through the CLI."""
    _, _, *arguments = vllm_serve(model, dtype, port)
    at = arguments.index("--model")
    del arguments[at : at + 2]
    arguments.remove("--disable-uvicorn-access-log")
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, *arguments[1:]]


STACKS = {
    "ours": Stack("ours", ours(), {}, lambda _: "bench"),
    "ours-haproxy": Stack("ours-haproxy", ours("--set", "http.haproxy=true"), {}, lambda _: "bench"),
    "vllm": Stack("vllm", vllm_serve, {}, lambda _: "bench"),
}


def add_rust_front_end(binary: Path, scratch: Path) -> None:
    """Make `vllm-rust` a stack. vLLM's CLI asks for a distribution called vllm, which the CPU build is not."""
    metadata = scratch / f"vllm-{version('vllm-cpu')}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
    environment = {
        "VLLM_USE_RUST_FRONTEND": "1",
        "VLLM_RUST_FRONTEND_PATH": str(binary.resolve()),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(scratch), os.environ.get("PYTHONPATH")))),
    }
    STACKS["vllm-rust"] = Stack("vllm-rust", vllm_rust, environment, lambda _: "bench")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A started stack: its address, and the CPU of the processes that it started."""

    def __init__(self, url: str, root: int) -> None:
        self.url = url
        self._root = psutil.Process(root)

    def cpu(self) -> dict[int, tuple[str, float]]:
        """Process id → name and CPU seconds."""
        found = {}
        for process in (self._root, *self._root.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                times = process.cpu_times()
                line = " ".join(process.cmdline()) or process.name()
                found[process.pid] = (line, times.user + times.system)
        return found


@contextlib.contextmanager
def started(stack: Stack, model: str, dtype: str, environment: dict[str, str] | None = None) -> Iterator[Running]:
    port = free_port()
    log = tempfile.NamedTemporaryFile("w+", prefix=f"bench-{stack.name}-", suffix=".log", delete=False)  # noqa: SIM115
    process = subprocess.Popen(
        stack.command(model, dtype, port),
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | stack.environment | (environment or {}),
        start_new_session=True,
    )
    try:
        running = Running(f"http://127.0.0.1:{port}", process.pid)
        _wait(process, running.url + ("/ready" if stack.name.startswith("ours") else "/health"), log.name)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def _wait(process: subprocess.Popen[bytes], url: str, log: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended while starting, see {log}:\n{Path(log).read_text()[-2000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"not ready after {START_SECONDS} s, see {log}")


def load(url: str, model: str, concurrency: int, requests: int, max_tokens: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "loadtests.load", f"{url}/v1/chat/completions", model]
    options = {"--concurrency": concurrency, "--requests": requests, "--max-tokens": max_tokens}
    words = [word for name, value in options.items() for word in (name, str(value))]
    done = subprocess.run(command + words, capture_output=True, text=True, check=True, timeout=900)
    result: dict[str, Any] = json.loads(done.stdout)
    if result["failed"]:
        raise RuntimeError(f"{result['failed']} requests failed: {result['statuses']}")
    return result


def measured(running: Running, model: str, concurrency: int, requests: int, max_tokens: int) -> dict[str, Any]:
    """One load, with the CPU that it cost each role, in microseconds for each token."""
    before = running.cpu()
    result = load(running.url, model, concurrency, requests, max_tokens)
    roles: dict[str, float] = {}
    tokens = requests * max_tokens  # ignore_eos: every request runs to its end; half characters may share an event
    result["tokens_per_s"] = round(tokens / result["wall_s"], 1)
    result["events_per_s"] = round(result["tokens"] / result["wall_s"], 1)  # vLLM joins tokens when it falls behind
    for pid, (line, seconds) in running.cpu().items():
        cost = (seconds - before.get(pid, ("", 0.0))[1]) * 1e6 / tokens
        roles[_role(line)] = roles.get(_role(line), 0.0) + cost
    engine = roles.pop("engine", 0.0)
    parts = {role: round(cost, 2) for role, cost in sorted(roles.items(), key=lambda pair: -pair[1]) if cost >= 0.05}
    return result | {"edge_us": round(sum(roles.values()), 2), "engine_us": round(engine, 2), "edge_parts_us": parts}


def _role(line: str) -> str:
    for mark, role in (
        ("VLLM::EngineCore", "engine"),
        ("VLLM::Worker", "engine"),
        ("ServeReplica:serving:front", "front"),
        ("ServeReplica:serving:engine", "replica"),
        ("haproxy", "haproxy"),
        ("vllm-rs", "api_server"),
        ("cli.main serve", "api_server"),
        ("api_server", "api_server"),
        ("ServeController", "serve-controller"),
        ("raylet", "raylet"),
        ("gcs_server", "gcs"),
        ("ray::", "ray-other"),
        ("ray/", "ray-other"),
        ("serving up", "driver"),
    ):
        if mark in line:
            return role
    return "other"


def edge(names: list[str], repeat: int) -> dict[str, Any]:
    """The one-layer model: 512 requests of 128 tokens at concurrency 64 and 128."""
    with tempfile.TemporaryDirectory() as scratch:
        model = str(one_layer.prepare(Path(scratch) / one_layer.NAME))
        return side_by_side(names, model, ((64, 512, 128), (128, 512, 128)), repeat, ONE_THREAD)


def throughput(repeat: int) -> dict[str, Any]:
    """The same loads with all cores for the engine, and nothing up but the two that are compared."""
    with tempfile.TemporaryDirectory() as scratch:
        model = str(one_layer.prepare(Path(scratch) / one_layer.NAME))
        return side_by_side(["ours", "vllm"], model, ((64, 512, 128), (128, 512, 128)), repeat)


def real_model(names: list[str], repeat: int) -> dict[str, Any]:
    """The embedded model at concurrency 1, 16 and 64."""
    return side_by_side(names, str(embedded.prepare()), ((1, 20, 16), (16, 48, 48), (64, 128, 64)), repeat)


def side_by_side(
    names: list[str],
    model: str,
    loads: tuple[tuple[int, int, int], ...],
    repeat: int,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Each load (concurrency, requests, tokens) on every stack, right after one another.

    All stacks are up the whole time, so what is compared lies seconds apart and not minutes: the
    speed of a shared machine drifts. A stack that is not being loaded is idle.
    """
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as up:
        stacks = {name: up.enter_context(started(STACKS[name], model, "bfloat16", environment)) for name in names}
        for running in stacks.values():
            load(running.url, "bench", 16, 64, 32)
        for _ in range(repeat):
            for concurrency, requests, tokens in loads:
                for name in random.sample(names, len(names)):
                    found = measured(stacks[name], "bench", concurrency, requests, tokens)
                    results.setdefault(name, {}).setdefault(str(concurrency), []).append(found)
                    print(name, concurrency, json.dumps(found), flush=True)
    return results | {"ratios_to_vllm": ratios(results, "vllm")}


def ratios(results: dict[str, Any], base: str) -> dict[str, Any]:
    """Median over the repeats of what a stack has, divided by what `base` had in the same repeat."""
    measures: dict[str, Callable[[dict[str, Any]], float]] = {
        "edge_us": lambda found: found["edge_us"],
        "tokens_per_s": lambda found: found["tokens_per_s"],
        "events_per_s": lambda found: found["events_per_s"],
        "ttft_p50": lambda found: found["ttft_ms"]["p50"],
        "itl_p99": lambda found: found["itl_ms"]["p99"],
    }
    return {
        name: {
            concurrency: {
                measure: round(
                    statistics.median(of(a) / of(b) for a, b in zip(runs, results[base][concurrency], strict=True)), 3
                )
                for measure, of in measures.items()
            }
            for concurrency, runs in loads.items()
        }
        for name, loads in results.items()
        if name != base and base in results
    }


IDLE_CONNECTIONS, REQUESTS = 10_000, 20_000


def front() -> dict[str, Any]:
    """The front's own size: at the start, with idle connections, and over many requests (simulated device)."""
    simulated = ("--set", "engine.device=simulated", "--set", "engine.profile.step=0.001")
    stack = Stack(
        "ours-front", ours(*simulated, "--set", "engine.profile.prefill_rate=10000000"), {}, lambda _: "bench"
    )
    with started(stack, str(embedded.prepare()), "auto") as running:
        pid = next(pid for pid, (line, _) in running.cpu().items() if _role(line) == "front")
        found: dict[str, Any] = {"resident_mb": {"start": _resident(pid)}}
        host, port = running.url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(IDLE_CONNECTIONS)]
        for connection in idle:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: bench\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        found["idle_connections"] = len(idle)
        found["resident_mb"]["idle_connections"] = _resident(pid)
        found["served_beside_them"] = load(running.url, "bench", 16, 256, 8)["failed"] == 0
        for connection in idle:
            connection.close()
        quarter = REQUESTS // 4
        for done in range(quarter, REQUESTS + 1, quarter):
            load(running.url, "bench", 64, quarter, 2)
            found["resident_mb"][f"{done}_requests"] = _resident(pid)
        print("front", json.dumps(found), flush=True)
        return found


def _resident(pid: int) -> float:
    return round(psutil.Process(pid).memory_info().rss / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["edge", "throughput", "model", "front"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--stacks", help="comma-separated; default: all, which are: " + ", ".join(STACKS))
    parser.add_argument("--rust", type=Path, metavar="FILE", help="vllm-rs of a vllm wheel: measure that front end too")
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    if options.rust is not None:
        add_rust_front_end(options.rust, Path(scratch.name))
    names = options.stacks.split(",") if options.stacks else list(STACKS)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if options.only in (None, "front"):
        report["front"] = front()
    if options.only in (None, "edge"):
        report["edge"] = edge(names, options.repeat)
    if options.only in (None, "throughput"):
        report["throughput"] = throughput(options.repeat)
    if options.only in (None, "model"):
        report["model"] = real_model(names, options.repeat)
    RESULTS.mkdir(exist_ok=True)
    if options.only and (RESULTS / "bench.json").exists():
        report = json.loads((RESULTS / "bench.json").read_text()) | report
    (RESULTS / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {RESULTS / 'bench.json'}")


if __name__ == "__main__":
    main()
