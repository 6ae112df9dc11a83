"""What all tests share: the event loops that they run on, and threads to tokenize in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvloop

pytest.register_assert_rewrite("tests.fakes")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """asyncio's own loop; in a module that says `ON_BOTH_LOOPS = True`, uvloop after it."""
    loops: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    module = item.getparent(pytest.Module)
    if module is not None and getattr(module.obj, "ON_BOTH_LOOPS", False):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two threads, as an encoder gets them."""
    with ThreadPoolExecutor(2) as pool:
        yield pool
