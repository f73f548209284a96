"""Each client does each thing that it can do, unmodified, in its own environment.

A client's program runs once and does all its scenarios; each is a test of its own. With
RECORD_CLIENTS=1 what came of them is written to `loadtests/results/clients.json`, of which
`python -m tests.clients.matrix` makes docs/clients.md. Clients that run on Node are skipped where
there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.clients import environments
from tests.clients.catalogue import CASES, CLIENTS, Client, record
from tests.server import MODEL, Server

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(600)]

PROGRAMS = Path(__file__).parent / "scripts"
PROGRAM_SECONDS = 300


@pytest.fixture(scope="package")
def outcomes(server: Server, beside: str, request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """What came of a client's scenarios."""
    chosen = (item.callspec.params.get("client") for item in request.session.items if hasattr(item, "callspec"))
    environments.make_all(CLIENTS[name].environment for name in chosen if name in CLIENTS)

    @cache
    def run(name: str) -> dict[str, Any]:
        client = CLIENTS[name]
        place = environments.PLACE / client.environment
        words = [server.url, MODEL, beside, *client.words]
        done = subprocess.run(
            [*_program(client, place), *words],
            cwd=place,
            env=_only_here(server),
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found = {line["scenario"]: {"ok": line["ok"], "detail": line["detail"]} for line in lines}
        if done.returncode or set(found) != client.scenarios:
            pytest.fail(f"{done.args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-3000:]}")
        if "RECORD_CLIENTS" in os.environ:
            record(client, _version(client, place), found)
        return found

    return run


def _program(client: Client, place: Path) -> list[str]:
    interpreter = "node" if client.environment == environments.NODE else str(environments.python(place))
    return [interpreter, str(PROGRAMS / client.program)]


def _only_here(server: Server) -> dict[str, str]:
    """The environment of a program that is to ask nobody but this server."""
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    kept = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    return kept | {
        "HF_INFERENCE_ENDPOINT": server.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
    }


def _version(client: Client, place: Path) -> str:
    if client.environment == environments.NODE:
        return str(json.loads((place / "node_modules" / client.package / "package.json").read_text())["version"])
    code = f"from importlib.metadata import version; print(version({client.package!r}), end='')"
    command = [str(environments.python(place)), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("client", "scenario"), CASES, ids=lambda word: word)
def test_a_client(client: str, scenario: str, outcomes: Callable[[str], dict[str, Any]]) -> None:
    if CLIENTS[client].environment == environments.NODE and not environments.has_node():
        pytest.skip("node and npm are not on this machine")
    outcome = outcomes(client)[scenario]
    assert outcome["ok"], outcome["detail"]
