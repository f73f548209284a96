"""One server for all clients, and what stands beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.beside import beside as start_beside
from tests.server import EXACT_AND_SMALL, Server, start_server


# Of the package, not of the session: it is gone before the next folder starts its own.
@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(EXACT_AND_SMALL, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="package")
def beside(server: Server) -> Iterator[str]:
    with start_beside(server) as url:
        yield url
