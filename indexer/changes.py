"""What became of one pod's confirmed blocks since it was last asked: for whoever keeps a copy of them elsewhere.

Blocks are named by their keys, each by its last word only, so it does not matter in which order they are copied.
Predicted blocks are left out: they are this process's own belief.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple

from indexer.events import TIERS, Tier

TIER_BITS = MappingProxyType({"gpu": 1, "cpu": 2, "disk": 4})
"""In a code, tiers that hold the block now are in the low four bits, those that have given it up in the next four."""
_GIVEN_UP = 4


class Delta(NamedTuple):
    """`blocks`: key -> code. `cleared`: everything was given up before. `lost`: more has changed than was kept."""

    blocks: dict[int, int]
    cleared: bool = False
    lost: bool = False


class Changes:
    """Keeps `blocks_max` blocks of a tier; beyond them all are dropped and counted, the delta is lost."""

    def __init__(self, blocks_max: int) -> None:
        self.dropped = 0
        self._blocks_max = blocks_max
        self._codes: dict[Tier, dict[int, int]] = {tier: {} for tier in TIERS}
        self._cleared = False
        self._lost = False

    def hold(self, tier: Tier, keys: Iterable[int]) -> None:
        """The pod holds these blocks in `tier`."""
        self._note(tier, keys, TIER_BITS[tier])

    def unhold(self, tier: Tier, keys: Iterable[int]) -> None:
        """It holds them there no more."""
        self._note(tier, keys, TIER_BITS[tier] << _GIVEN_UP)

    def clear(self) -> None:
        """It holds nothing."""
        self._forget()
        self._cleared, self._lost = True, False

    def take(self) -> Delta:
        """All that is new, once."""
        blocks, *others = self._codes.values()
        for codes in others:
            for key, code in codes.items():
                blocks[key] = blocks.get(key, 0) | code
        delta = Delta(blocks, self._cleared, self._lost)
        self._forget()
        self._cleared = self._lost = False
        return delta

    def _note(self, tier: Tier, keys: Iterable[int], code: int) -> None:
        codes = self._codes[tier]
        codes.update(dict.fromkeys(keys, code))  # without a loop: this is on the way of every event
        if len(codes) > self._blocks_max:
            self.dropped += sum(map(len, self._codes.values()))
            self._forget()
            self._lost = True

    def _forget(self) -> None:
        self._codes = {tier: {} for tier in TIERS}
