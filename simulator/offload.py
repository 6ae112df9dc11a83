"""The tier below a pod's own cache: vLLM's OffloadingConnector, what it keeps and what its events say.

Sources: vLLM 0.33.0's events with and without `self_describing_kv_events` and a recording of a pod that had them.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence

from simulator.events import Event, Origin, Removed, Stored

MEDIUM = "CPU"
_PLAIN = Origin()  # neither salt nor adapter is told


class FarTier:
    """`blocks_max` blocks beside the pool, those used last go last. What is computed is copied here a step later.

    `described`: a store tells the block's tokens and parent; without it, its hash alone, as a block of size 0. Either
    way each block has an event of its own, in any order: drawn from `seed`.
    """

    def __init__(self, blocks_max: int, described: bool, seed: int = 0) -> None:
        self._blocks_max = blocks_max
        self._described = described
        self._random = random.Random(seed)
        self._kept: OrderedDict[bytes, None] = OrderedDict()
        self._copying: dict[bytes, Stored] = {}  # since this step
        self._copied: dict[bytes, Stored] = {}  # since the one before: they are there when it ends

    def __len__(self) -> int:
        return len(self._kept)

    def run(self, digests: Sequence[bytes], start: int, end: int) -> int:
        """Where the blocks that are kept here from `start` on without a gap end, at most at `end`."""
        while start < end and digests[start] in self._kept:
            start += 1
        return start

    def use(self, digests: Sequence[bytes]) -> None:
        """A prompt of these blocks is served: those that are kept stay for longest, its first block longest of all."""
        for digest in reversed(digests):
            if digest in self._kept:
                self._kept.move_to_end(digest)

    def store(self, chain: Sequence[bytes], token_ids: Sequence[int], span: range, size: int) -> None:
        """The blocks of a sequence that `span` numbers were computed: they will be copied."""
        for number in span:
            digest, parent = chain[number], chain[number - 1] if number and self._described else None
            tokens = tuple(token_ids[number * size : (number + 1) * size]) if self._described else ()
            if digest not in self._kept and digest not in self._copied:
                self._copying[digest] = Stored((digest,), parent, tokens, number, _PLAIN, medium=MEDIUM)

    def take_events(self) -> list[Event]:
        """A step has ended: what the copies since the one before have stored, and what was given up for them."""
        stored: list[Event] = list(self._copied.values())
        self._random.shuffle(stored)
        self._kept.update(dict.fromkeys(self._copied))
        self._copied, self._copying = self._copying, {}
        gone: list[Event] = []
        while len(self._kept) > self._blocks_max:
            digest, _ = self._kept.popitem(last=False)
            gone.append(Removed(digest, medium=MEDIUM))
        return [*stored, *gone]

    def clear(self) -> None:
        """Forget all, and say nothing of it."""
        self._kept.clear()
        self._copying.clear()
        self._copied.clear()
