"""An engine that is alive and does nothing: the fault that closes no connection."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server import MODEL, start_server

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]

SETTINGS = {
    "engine.device": "simulated",
    "engine.profile.step": 0.02,
    "engine.stall_seconds": 2,
    "engine.max_model_len": 2048,
    "engine.kv_cache_gib": 0.5,
}


def test_a_stalled_engine_is_replaced(tmp_path: Path) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1500, "ignore_eos": True}
    with start_server(SETTINGS, tmp_path / "log") as server:
        (core,) = server.processes("VLLM::EngineCore")
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=60) as answer:
            lines = (line for line in answer.iter_lines() if line)
            assert json.loads(next(lines)[6:])["choices"]
            core.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            rest = list(lines)
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["error"]["type"] == "server_error"
        assert time.monotonic() - stopped < 30
        assert server.wait_until(90, "serving_engines", [1]) == [1]
        again = httpx.post(url, json=body | {"max_tokens": 5}, timeout=60)
        assert again.status_code == 200
        psutil.wait_procs([core], timeout=5)
        assert not core.is_running()
