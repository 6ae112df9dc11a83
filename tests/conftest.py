"""What all tests share: the event loops that they run on, threads to tokenize in, memory that is given back."""

from __future__ import annotations

import asyncio
import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvloop

from router.garbage import keep_little_memory

keep_little_memory()  # here, too
pytest.register_assert_rewrite("tests.fakes")

_Cache = type(functools.lru_cache(lambda: None))
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """asyncio's own loop; in a module that says `ON_BOTH_LOOPS = True`, uvloop after it."""
    loops: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    module = item.getparent(pytest.Module)
    if module is not None and getattr(module.obj, "ON_BOTH_LOOPS", False):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture(autouse=True, scope="module")
def _given_back() -> Iterator[None]:
    """Gateways are large. Caches of FastAPI keep each one's routes, and with them all of it."""
    yield
    gc.unfreeze()  # what a gateway in this process has set aside
    for kept in gc.get_objects():
        if isinstance(kept, _Cache) and kept.__module__.startswith("fastapi."):
            kept.cache_clear()
    with warnings.catch_warnings():  # some were only made, and never served
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two threads, as an encoder gets them."""
    with ThreadPoolExecutor(2) as pool:
        yield pool
