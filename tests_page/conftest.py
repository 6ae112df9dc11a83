"""A fleet of many simulated pods and gateways in front of it, as processes; and a browser for each test."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.processes import ROOT, GatewayProcess, gateway
from tests_page.browser import Browser, browser

PODS = 256
_CALM = {"probe": {"interval": 30, "timeout": 10}}  # what costs is the page alone


@pytest.fixture(scope="session")
def fleet() -> Iterator[list[dict[str, Any]]]:
    """The pods, as a configuration names them."""
    process = subprocess.Popen([sys.executable, "-m", "tests_page.fleet", str(PODS)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def served(fleet: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway in front of all of them."""
    with gateway(tmp_path_factory.mktemp("gateway"), fleet, **_CALM) as process:
        yield process


@pytest.fixture
def gateways(fleet: list[dict[str, Any]], tmp_path: Path) -> Iterator[Any]:
    """Makes gateways in front of a few of them, configured as asked."""
    with contextlib.ExitStack() as stack:
        yield lambda count=4, **sections: stack.enter_context(gateway(tmp_path, fleet[:count], **{**_CALM, **sections}))


@pytest_asyncio.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Browser]:
    """A browser that was never here."""
    async with browser(tmp_path) as opened:
        await opened.size(1280, 900)
        yield opened
