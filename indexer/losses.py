"""What pods' own caches gave up since somebody last asked, and why: for whoever says where a hit has gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from indexer.blocks import Keys
from indexer.match import Holder

LossReason: TypeAlias = Literal["evicted", "cleared", "restarted", "left", "forgotten", "no room"]
"""The pod gave the block up for another one; gave up all that it had; is another process now; is no pod of ours any
more. Or only we did: its events were doubted, or the index had no room for them."""


class GivenUp(NamedTuple):
    """Keys of blocks that a pod's own cache has no more."""

    pod: Holder
    why: LossReason
    keys: list[int] | Keys


class Losses:
    """Keeps what was lost until it is taken: `blocks_max` blocks, the newest."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._lost: deque[GivenUp] = deque()
        self._one: tuple[Holder, list[int]] | None = None  # who gave up what, one by one, last
        self.blocks = 0

    def note(self, pod: Holder, why: LossReason, keys: list[int] | Keys) -> None:
        """The pod has lost these. A list is not ours: it is copied."""
        self.blocks += len(keys)
        if not isinstance(keys, list):
            self._lost.append(GivenUp(pod, why, keys))
            self._one = None
        elif self._one is not None and self._one[0] is pod and why == "evicted" and self.blocks <= self._blocks_max:
            self._one[1].extend(keys)  # pods mostly say it one by one
        else:
            kept = list(keys)
            self._lost.append(GivenUp(pod, why, kept))
            self._one = (pod, kept) if why == "evicted" else None
        while self.blocks > self._blocks_max and len(self._lost) > 1:
            self.blocks -= len(self._lost.popleft().keys)

    def take(self) -> Sequence[GivenUp]:
        """All that is new, once, the oldest first."""
        lost = list(self._lost)
        self._lost.clear()
        self._one, self.blocks = None, 0
        return lost
