"""The way of believing events that the tests of the index and its feeds are run with."""

from __future__ import annotations

import functools
import os

from indexer.way import PLAIN, Way
from router.ways import way_of


@functools.cache
def way_under_test() -> Way:
    """The plain one; with WARMROUTE_TEST_COMPILED=1 (`make test-compiled`) the compiled one."""
    return way_of(True) if os.environ.get("WARMROUTE_TEST_COMPILED") == "1" else PLAIN
