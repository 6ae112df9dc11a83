"""Where workers have sent prompts that no pod held: told each other before events can tell, over shared memory.

Else a burst of prompts that begin alike goes to one pod for each worker. A row has a ring of the newest ones. Of a
prompt's new blocks only some are told, at places that depend on nothing but how far they are from its start: so one who
has a prompt with the same beginning finds them among its own keys.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.blocks import Keys

_STRIDE = 16  # blocks between two that are told: at most so many less are found than there are
_Sending: TypeAlias = tuple[float, float]  # rank (its number), and until when to believe it


class Sendings:
    """The rings as one worker sees them: it writes its own, and keeps what the others have written in a dict."""

    def __init__(self, table: NDArray[Any], own: int) -> None:
        """`table`: rows with `ring_fields`."""
        ring = table[own]
        self._keys: memoryview[int] = ring["keys"].data
        self._ranks: memoryview[float] = ring["ranks"].data
        self._expires: memoryview[float] = ring["expires"].data
        self._size = len(self._keys)
        self._told = table["told"]  # sendings of each worker, since its start
        self._own = own
        self._count = 0
        self._table = table
        self._read = [0] * len(table)
        self._heard: OrderedDict[int, _Sending] = OrderedDict()  # the newest last

    def tell(self, keys: Keys, start: int, rank: float, expires: float) -> None:
        """The blocks `keys[start:]` will soon be held by `rank`."""
        told = keys[start + (_STRIDE - 1 - start) % _STRIDE :: _STRIDE].tolist()
        if len(keys) % _STRIDE and start < len(keys):
            told.append(int(keys[-1]))  # for who has just the same prompt
        count, size = self._count, self._size
        for key in told:
            place = count % size
            self._keys[place], self._ranks[place], self._expires[place] = key, rank, expires
            count += 1
        self._count = count
        self._told[self._own] = count  # last: what is counted is there

    def listen(self) -> None:
        """Have what the others have told since."""
        told = self._told.tolist()
        if told == self._read:
            return
        for worker, (start, end) in enumerate(zip(self._read, told, strict=True)):
            if start != end and worker != self._own:
                self._hear(worker, start, end)
        self._read = told

    def find(self, keys: Keys) -> tuple[int, float, float] | None:
        """(leading blocks, rank, until when) of the longest beginning of a prompt that others have told; once."""
        heard = self._heard
        if not heard or not len(keys):
            return None
        told = keys[_STRIDE - 1 :: _STRIDE].tolist()
        key, blocks = int(keys[-1]), len(keys)
        while key not in heard:
            if not told:
                return None
            key, blocks = told.pop(), _STRIDE * (len(told) + 1)
        return blocks, *heard.pop(key)

    def _hear(self, worker: int, start: int, end: int) -> None:
        """`start` and `end` count sendings; of a worker that was started anew, from 0."""
        row, size = self._table[worker], self._size
        start = max(start if start <= end else 0, end - size // 2)  # what is older may be written over as we read
        places = np.arange(start, end) % size
        keys, ranks, expires = (row[field][places].tolist() for field in ("keys", "ranks", "expires"))
        heard = self._heard
        heard.update(zip(keys, zip(ranks, expires, strict=True), strict=True))
        while len(heard) > size:
            heard.popitem(last=False)


def ring_fields(sendings_max: int) -> list[tuple[str, str] | tuple[str, str, tuple[int]]]:
    """What a row needs for them."""
    each = (sendings_max,)
    return [("told", "u8"), ("keys", "u8", each), ("ranks", "f8", each), ("expires", "f8", each)]
