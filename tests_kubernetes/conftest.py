"""A real API server for all tests of a run; what they write goes after each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests_kubernetes.api_server import ApiServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One that runs, with its watch cache, as servers do by default."""
    made = ApiServer(tmp_path_factory.mktemp("apiserver"))
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def api(server: ApiServer) -> Iterator[ApiServer]:
    """The same, without Pods."""
    yield server
    server.clear()
