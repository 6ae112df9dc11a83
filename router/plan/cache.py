"""What a virtual pod keeps of prompts: whole blocks, the least recently used of which go first. Pure.

A block is known by a number that stands for its content and all before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

NewBlocks: TypeAlias = Sequence[tuple[int, int]]
"""Stretches of them: the number of the first, and of the one behind the last."""


class Taken(NamedTuple):
    """What becomes of the cache when a request is admitted."""

    cached: int  # tokens that are not computed
    stored: NewBlocks = ()  # of its own
    removed: Sequence[int] = ()


class BlockCache:
    """One pod's. All memory of a request is taken when it is admitted."""

    def __init__(self, tokens_max: int, size: int) -> None:
        """`size`: tokens a block."""
        self._tokens_max = tokens_max
        self._size = size
        self._used: dict[int, int] = {}  # block -> requests that use it
        self._free: OrderedDict[int, None] = OrderedDict()  # the first goes first
        self._private = 0  # tokens that are in no whole block of a prompt

    @property
    def used_tokens(self) -> int:
        """What can't be given up now."""
        return len(self._used) * self._size + self._private

    def held(self, blocks: Sequence[int]) -> int:
        """How many leading ones it has."""
        used, free = self._used, self._free
        for number, block in enumerate(blocks):
            if block not in used and block not in free:
                return number
        return len(blocks)

    def take(self, blocks: Sequence[int], tokens: int, answer: int) -> Taken | None:
        """Admit a prompt of so many `tokens`, `blocks` of them whole, and its answer; None: there is no room now."""
        used, free, size = self._used, self._free, self._size
        private = tokens - len(blocks) * size + answer
        needed = sum([block not in used for block in blocks])
        if self.used_tokens + needed * size + private > self._tokens_max and self.used_tokens:
            return None
        cached = self.held(blocks[: (tokens - 1) // size]) * size
        new = []
        for number, block in enumerate(blocks):
            if block in used:
                used[block] += 1
                continue
            used[block] = 1
            if block in free:
                del free[block]
            else:
                new.append(number)
        self._private += private
        removed = []
        while free and (len(used) + len(free)) * size + self._private > self._tokens_max:
            removed.append(free.popitem(last=False)[0])
        return Taken(cached, _new_blocks(new), removed)

    def give_back(self, blocks: Sequence[int], tokens: int, answer: int, said: Sequence[int] = ()) -> NewBlocks:
        """Such a request is over: its blocks stay, as long as nothing else needs their place; the last goes first.

        So do those that its answer filled, `said`: which of them are new, counted from the first of `blocks`.
        """
        used, free = self._used, self._free
        new = [number for number, block in enumerate(said, len(blocks)) if block not in used and block not in free]
        for block in reversed(said):
            if block not in used:
                free[block] = None
                free.move_to_end(block)
        for block in reversed(blocks):
            users = used[block] - 1
            if users:
                used[block] = users
            else:
                del used[block]
                free[block] = None
        self._private -= tokens - len(blocks) * self._size + answer
        return _new_blocks(new)


def _new_blocks(numbers: Sequence[int]) -> NewBlocks:
    """Of numbers in order."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


class Pool:
    """The cached blocks of all pods as if they were one: what no router can reach."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def held(self, blocks: Sequence[int]) -> int:
        for number, block in enumerate(blocks):
            if block not in self._blocks:
                return number
        return len(blocks)

    def use(self, blocks: Sequence[int]) -> None:
        kept = self._blocks
        for block in reversed(blocks):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > self._blocks_max:
            kept.popitem(last=False)


class PooledCache:
    """One pod's share: room of its own for what runs, and cached blocks of all."""

    def __init__(self, tokens_max: int, size: int, pool: Pool) -> None:
        self._tokens_max = tokens_max
        self._size = size
        self._pool = pool
        self.used_tokens = 0

    def held(self, blocks: Sequence[int]) -> int:
        return self._pool.held(blocks)

    def take(self, blocks: Sequence[int], tokens: int, answer: int) -> Taken | None:
        """As `BlockCache.take`."""
        if self.used_tokens and self.used_tokens + tokens + answer > self._tokens_max:
            return None
        self.used_tokens += tokens + answer
        cached = self._pool.held(blocks[: (tokens - 1) // self._size]) * self._size
        self._pool.use(blocks)
        return Taken(cached)

    def give_back(self, blocks: Sequence[int], tokens: int, answer: int, said: Sequence[int] = ()) -> NewBlocks:
        """As `BlockCache.give_back`, but of answers nothing stays."""
        self.used_tokens -= tokens + answer
        return ()
