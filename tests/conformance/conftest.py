"""One server with the simulated device: real Ray Serve, real vLLM scheduler, nonsense for text.

`CONFORMANCE_URL=http://127.0.0.1:8000` tests a server that runs already instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.conformance.wire import CONTEXT, Api
from tests.server import Server, start_server

SETTINGS = {
    "engine.device": "simulated",
    "engine.profile.step": 0.0005,
    "engine.profile.prefill_rate": 10_000_000,
    "engine.max_model_len": CONTEXT,
    "engine.kv_cache_gib": 0.5,
}


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(SETTINGS, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="package")
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    url = os.environ.get("CONFORMANCE_URL") or request.getfixturevalue("server").url
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="package")
def api(client: httpx.Client) -> Api:
    return Api(client)
