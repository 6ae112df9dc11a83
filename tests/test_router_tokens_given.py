"""Token ids to keys, through the prefix store."""

import numpy as np

from indexer.blocks import KeySpace
from indexer.prefixes import PrefixStore
from router.tokens.given import GivenTokens
from tests.fakes.limits import prefix_limits
from tests.fakes.stores import broken_store

SPACE = KeySpace(7)


def a_store() -> PrefixStore:
    return PrefixStore(SPACE, 5, lambda match: False, prefix_limits())


def test_token_ids_are_taken_as_they_are() -> None:
    """Only keys are computed, and longer lists resume."""
    keys = GivenTokens(SPACE, a_store())
    ids = np.arange(9_000, dtype=np.uint32)
    for count, lookup in ((5_000, "miss"), (5_000, "partial"), (9_000, "partial"), (0, "miss"), (3, "miss")):
        encoded = keys.encode_now(ids[:count], 16, lora="l", salt="s")
        assert encoded.tokens.tolist() == list(range(count))
        assert encoded.keys.tolist() == SPACE.chain(ids[:count], 16, None, "l", "s").tolist()
        assert encoded.lookup == lookup


def test_a_fault_of_the_store_costs_no_answer() -> None:
    """The keys are computed without it, and the fault is counted."""
    store = broken_store(SPACE)
    ids = np.arange(40, dtype=np.uint32)
    encoded = GivenTokens(SPACE, store).encode_now(ids, 16)
    assert encoded.keys.tolist() == SPACE.chain(ids, 16).tolist()
    assert store.stats().failures == 1
