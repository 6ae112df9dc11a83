"""What became of one pod's confirmed blocks since it was last asked: for whoever keeps a copy of them elsewhere.

Blocks are named by their keys, each by its last word only, so it does not matter in which order they are copied.
Predicted blocks are left out: they are this process's own belief.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple

from indexer.events import Tier

TIER_BITS = MappingProxyType({"gpu": 1, "cpu": 2, "disk": 4})
"""In a code, tiers that hold the block now are in the low four bits, those that have given it up in the next four."""
_GIVEN_UP = 4


class Delta(NamedTuple):
    """`blocks`: key -> code. `cleared`: before that, everything was given up. `lost`: more has changed than was kept."""

    blocks: dict[int, int]
    cleared: bool = False
    lost: bool = False


class Changes:
    """See the module. Keeps at most `blocks_max` blocks; beyond them all are dropped, counted, and the delta is lost."""

    def __init__(self, blocks_max: int) -> None:
        self.dropped = 0
        self._blocks_max = blocks_max
        self._blocks: dict[int, int] = {}
        self._cleared = False
        self._lost = False

    def hold(self, tier: Tier, keys: Iterable[int]) -> None:
        """The pod holds these blocks in `tier`."""
        bit, blocks = TIER_BITS[tier], self._blocks
        keep = ~(bit << _GIVEN_UP)
        for key in keys:
            blocks[key] = blocks.get(key, 0) & keep | bit
        self._bound()

    def unhold(self, tier: Tier, keys: Iterable[int]) -> None:
        """It holds them there no more."""
        bit, blocks = TIER_BITS[tier], self._blocks
        for key in keys:
            blocks[key] = blocks.get(key, 0) & ~bit | bit << _GIVEN_UP
        self._bound()

    def clear(self) -> None:
        """It holds nothing."""
        self._blocks = {}
        self._cleared, self._lost = True, False

    def take(self) -> Delta:
        """All that is new, once."""
        delta = Delta(self._blocks, self._cleared, self._lost)
        self._blocks, self._cleared, self._lost = {}, False, False
        return delta

    def _bound(self) -> None:
        if len(self._blocks) > self._blocks_max:
            self.dropped += len(self._blocks)
            self._blocks, self._lost = {}, True
