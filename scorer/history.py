"""What each pod was sent: blocks of prompts, the newest of each pod, where nothing else tells what pods hold.

A prompt's first block is used last, so a pod's oldest blocks are ends of prompts: nothing is known of one behind a gap.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from indexer.blocks import Keys


class History:
    """See the module. A block is known by its key, which stands for all before it."""

    def __init__(self) -> None:
        self._sent: dict[Hashable, OrderedDict[int, None]] = {}

    def matched(self, blocks: Sequence[int], pods: Sequence[Hashable]) -> list[int]:
        """How many leading ones each pod was sent, and would still have."""
        return [0 if (kept := self._sent.get(pod)) is None else _leading(blocks, kept) for pod in pods]

    def sent(self, blocks: Sequence[int], pod: Hashable, blocks_max: int) -> None:
        """A prompt of these goes to a pod that holds so many of them."""
        kept = self._sent.get(pod)
        if kept is None:
            kept = self._sent[pod] = OrderedDict()
        for block in reversed(blocks):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > blocks_max:
            kept.popitem(last=False)

    def forget(self, pod: Hashable) -> None:
        """It is gone, or started anew."""
        self._sent.pop(pod, None)


def hash_blocks(keys: Keys, size: int, hash_block_size: int, blocks_max: int) -> list[int]:
    """A prompt's keys of blocks of `size` tokens as those of larger blocks, `blocks_max` of them at most."""
    step = max(1, hash_block_size // size)
    found: list[int] = keys[step - 1 : step * blocks_max : step].tolist()
    return found


def _leading(blocks: Sequence[int], kept: OrderedDict[int, None]) -> int:
    if not blocks or blocks[0] not in kept:
        return 0
    low, high = 1, len(blocks)
    while low < high:
        middle = (low + high + 1) // 2
        if blocks[middle - 1] in kept:
            low = middle
        else:
            high = middle - 1
    return low
