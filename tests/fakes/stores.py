"""Prefix stores with faults."""

from typing import Any

from indexer.blocks import KeySpace
from indexer.prefixes import PrefixStore
from tests.fakes.limits import prefix_limits


def broken_store(space: KeySpace) -> PrefixStore:
    """A store that fails whenever something is to be kept: nothing can be compared with its bound."""
    no_number: Any = "much"
    return PrefixStore(space, 5, lambda match: False, prefix_limits(bytes_max=no_number))
