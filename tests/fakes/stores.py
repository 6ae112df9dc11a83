"""Prefix stores with faults; texts that are cut at bars, and whose bytes are their ids."""

from typing import Any

import numpy as np

from indexer.blocks import KeySpace, Tokens
from indexer.prefixes import PrefixStore
from tests.fakes.limits import prefix_limits


def broken_store(space: KeySpace) -> PrefixStore:
    """A store that fails whenever something is to be kept: nothing can be compared with its bound."""
    no_number: Any = "much"
    return PrefixStore(space, 5, lambda match: False, prefix_limits(bytes_max=no_number))


class Bars:
    """Cuts before the first bar of each window of eight bytes; windows may have none."""

    window_bytes = 8

    def first(self, data: bytes, window: int) -> int:
        start = window * 8
        return max(0, data.find(b"|", start, start + 8)) if window else 0

    def ends(self, data: bytes, start: int = 0) -> list[int]:
        cuts = (self.first(data, window) for window in range(start // 8 + 1, len(data) // 8 + 1))
        return [*(cut for cut in cuts if cut), len(data)]


def ids(data: bytes) -> Tokens:
    """A tokenizer for tests: the bytes are the ids."""
    return np.frombuffer(data, dtype=np.uint8).astype(np.uint32)


def as_many(tokens: Tokens, nbytes: int) -> int:
    """How many tokens so many bytes are."""
    assert nbytes < len(tokens)
    return nbytes
