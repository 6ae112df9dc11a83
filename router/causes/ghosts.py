"""What is remembered of blocks that no pod may hold any more: who was asked for them, and who gave them up. Pure.

A table of fixed size, by block key: where two keys have one place, the newer has it. So memory is bounded, and what is
forgotten is what came long ago, or by bad luck; of a chain, that is seldom all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, get_args

import numpy as np

from indexer.blocks import Keys
from indexer.losses import LossReason

ROW_BYTES = 8 + 8 + 8 + 1 + 4 + 4
_LOSSES: tuple[LossReason | None, ...] = (None, *get_args(LossReason))
_NEVER = float("-inf")
_HOLE_MAX = 16  # blocks in a row that were forgotten, with others behind them that were not


class Fate(NamedTuple):
    """What is known of some consecutive blocks of a chain: all have the same.

    `asked`: when somebody asked for them first, in a prompt that was served; `who`: the number of whom it was sent to,
    or who lost them: `why`, at `gone`. `note`: what was noted beside that.
    """

    blocks: int
    asked: float
    gone: float
    why: LossReason | None
    who: int
    note: int


class Ghosts:
    """See the module. Times are monotonic; -inf: never."""

    def __init__(self, blocks_max: int) -> None:
        """`blocks_max`: rounded down to a power of two; 0: nothing is remembered."""
        places = 1 << (blocks_max.bit_length() - 1) if blocks_max else 0
        self._mask = places - 1
        self._keys = np.zeros(places, np.uint64).data  # memory is not taken before it is used
        self._asked = np.zeros(8 * places, np.uint8).data.cast("d")
        self._gone = np.zeros(8 * places, np.uint8).data.cast("d")
        self._why = np.zeros(places, np.uint8).data
        self._who = np.zeros(places, np.uint32).data
        self._note = np.zeros(places, np.uint32).data
        self._on = places > 0

    def ask(self, keys: Keys, at: float, who: int) -> None:
        """A prompt with these blocks was served by `who`, as was decided `at`."""
        if not self._on:
            return
        mask, asked, gone, why, whose = self._mask, self._asked, self._gone, self._why, self._who
        for key in keys.tolist():
            place = key & mask
            if self._keys[place] != key:
                self._keys[place], asked[place], gone[place] = key, at, _NEVER
                why[place], whose[place], self._note[place] = 0, who, 0
                continue
            if asked[place] == _NEVER:
                asked[place] = at
            if gone[place] <= at:  # what was lost since is lost
                gone[place], why[place], whose[place], self._note[place] = _NEVER, 0, who, 0

    def lose(self, keys: Iterable[int], at: float, why: LossReason, who: int, note: int) -> None:
        """`who` has given these blocks up, not long before `at`."""
        if not self._on:
            return
        mask, reason, names = self._mask, _LOSSES.index(why), self._keys
        for key in keys:
            place = key & mask
            if names[place] != key:
                names[place], self._asked[place] = key, _NEVER
            self._gone[place], self._why[place] = at, reason
            self._who[place], self._note[place] = who, note

    def look(self, keys: Keys, before: float) -> list[Fate]:
        """The leading blocks of which something is known that was not asked for `before` then only, in order.

        Who has asked for a block, or lost it, has those before it in its chain, too: so what was forgotten between two
        that are known had the fate of the one before.
        """
        fates: list[Fate] = []
        if not self._on:
            return fates
        mask, names, asked, why, who = self._mask, self._keys, self._asked, self._why, self._who
        last, first, known = None, 0, -1
        for number, key in enumerate(keys.tolist()):
            place = key & mask
            if names[place] != key or asked[place] >= before:
                if number - known > _HOLE_MAX:
                    break
                continue
            fate = (why[place], who[place], self._note[place])
            if fate != last:
                if last is not None:
                    fates.append(self._fate(keys, first, known, number))
                    first = number
                last = fate
            known = number
        if last is not None:
            fates.append(self._fate(keys, first, known, known + 1))
        return fates

    def _fate(self, keys: Keys, first: int, known: int, end: int) -> Fate:
        """Of the blocks from `first` to `end`: that of the block `known`."""
        place = int(keys[known]) & self._mask
        why = _LOSSES[self._why[place]]
        return Fate(end - first, self._asked[place], self._gone[place], why, self._who[place], self._note[place])

    @property
    def nbytes(self) -> int:
        """Bytes of the table, once all of it is used."""
        return ROW_BYTES * len(self._keys)
