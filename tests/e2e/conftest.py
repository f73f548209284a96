"""Two engines of the embedded model behind one front."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server import EXACT_AND_SMALL, Server, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with start_server({"engine.replicas": 2, **EXACT_AND_SMALL}, log) as server:
        yield server
