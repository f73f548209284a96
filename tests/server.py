"""The real thing, started as a user starts it, and what its listeners say of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

START_SECONDS, STOP_SECONDS = 180, 20
MODEL = "SmolLM2-135M-Instruct"  # the embedded one
EXACT_AND_SMALL: Mapping[str, object] = {
    "engine.dtype": "float32",  # in bfloat16 a greedy text depends on the batch it was made in
    "engine.kv_cache_gib": 0.5,
    "engine.max_model_len": 2048,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running server and what its listeners say of it."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pages(self) -> list[str]:
        """The metrics of each process that exports them."""
        found = []
        for port in range(self.admin_port, self.admin_port + 6):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics/", timeout=2) as answer:
                    found.append(answer.read().decode())
            except OSError:
                continue
        return found

    def metric(self, name: str, *labels: str) -> list[float]:
        """The values of the series with these labels (`key="value"`), one for each process that exports it."""
        return [
            float(line.rsplit(" ", 1)[1])
            for page in self.pages()
            for line in page.splitlines()
            if line.startswith(name + "{") and all(label in line for label in labels)
        ]

    def wait_until(self, seconds: float, name: str, wanted: list[float]) -> list[float]:
        """The series' values when they are `wanted`, or what they were when the time was up."""
        deadline = time.monotonic() + seconds
        while (found := sorted(self.metric(name))) != sorted(wanted) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def processes(self, mark: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if mark in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def start_server(settings: Mapping[str, object], log: Path) -> Iterator[Server]:
    """`serving up` with these settings on free ports, once all its engines are there; afterwards all of it is gone."""
    settings = {"engine.replicas": 1, "http.port": free_port(), "admin.port": free_port(), **settings}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", "up", *sets],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = Server(process, int(str(settings["http.port"])), int(str(settings["admin.port"])), log)
    try:
        _wait(server, float(str(settings["engine.replicas"])))
        yield server
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        _, left = psutil.wait_procs(family, timeout=2)
        for survivor in left:
            survivor.kill()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, f"`serving up` ended with {status}:\n{log.read_text()[-3000:]}"
    assert not left, f"left behind: {left}"


def _wait(server: Server, engines: float) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        started = "Ctrl-C stops everything" in server.log.read_text()
        if started and server.wait_until(60, "serving_engines", [engines]) == [engines]:
            return
        time.sleep(0.3)
    pytest.fail(f"the server did not start:\n{server.log.read_text()[-3000:]}")
