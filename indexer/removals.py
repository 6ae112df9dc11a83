"""What one pod has removed from its own cache of late, by its engine hashes.

So what was rightly believed of it a moment ago can be told from what was wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

KEPT_MAX = 4096
"""Blocks whose removal is remembered: some seconds of a pod that is full and computes as fast as it can."""


class Removals:
    """See the module. `count`: blocks, since ever."""

    __slots__ = ("_kept", "_newest", "count")

    def __init__(self) -> None:
        self.count = 0
        self._newest: deque[tuple[int, Sequence[int]]] = deque()  # the count before, and what was removed then
        self._kept = 0

    def note(self, engine_hashes: Sequence[int], known: int) -> None:
        """So many of these were known."""
        self._newest.append((self.count, engine_hashes))
        self.count += known
        self._kept += len(engine_hashes)
        while self._kept > KEPT_MAX and len(self._newest) > 1:
            self._kept -= len(self._newest.popleft()[1])

    def since(self, count: int) -> Sequence[int] | None:
        """What was removed since there were so many; None: that is not known any more."""
        if count >= self.count:
            return [] if count == self.count else None
        found: list[int] = []
        for before, engine_hashes in reversed(self._newest):
            found += engine_hashes
            if before <= count:
                return found
        return None
