"""Rows of the board that other hosts' workers have: what one tells of its own row, and where it is written elsewhere.

Clocks differ between hosts, so times go as seconds from now. Cells hold what is, not what has changed: who misses some
is right again with the next ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scorer.board import FIELDS
from scorer.hold import turn_at
from scorer.uses import NumberedUse, UseRing, packed_bytes

CELL = np.dtype(
    [("place", "<u2"), ("name", "<f8"), ("requests", "<u4"), ("tokens", "<u4"), ("promised_s", "<f4"),
     ("owed_s", "<f4"), ("front_for_s", "<f4"), ("front_s", "<f4"), ("busy_s", "<f4"), ("turn_s", "<f8"),
     ("turn_for_s", "<f4")]
)  # fmt: skip
"""Of one rank: as in the board, with the seconds for which its first stream is computed already (negative: not yet),
those that it is busy for from now on, the turn beside that of who comes now, and how long to believe it."""
SENDING = np.dtype([("key", "<u8"), ("rank", "<f8"), ("left_s", "<f4")])
"""A block of a prompt that was sent to a rank, and how long to believe it."""

_AS_IN_THE_BOARD = tuple(name for name in CELL.fields or () if name != "place")
_BUSY_MAX_S = 3600.0  # what is more is not believed


class News(NamedTuple):
    """What is told at one time."""

    cells: NDArray[Any]
    sendings: NDArray[Any]
    uses: Sequence[NumberedUse]


class OwnRow:
    """What one worker has to tell of its row: first what has changed, then the rest in turns."""

    def __init__(self, memory: memoryview, own: int, row: np.dtype[Any]) -> None:
        table = np.frombuffer(memory, row)
        self._used, self._loads = table["used"], table["loads"]
        self._row = table[own]
        self._own = own
        self._told: NDArray[np.float64] = np.zeros((0, self._loads.shape[2]))
        self._next = 0
        self._sent = int(self._row["told"])
        self._uses = UseRing(table, own)
        self._sent_uses = self._uses.count

    def news(self, now: float, bytes_max: int) -> News:
        """What has changed since the last time, then what was sent and what prompts use, then cells in turns, as far as
        there is room."""
        used = int(self._used[self._own])
        cells, before = self._loads[self._own, :used].copy(), self._told[:used]
        changed = np.flatnonzero((cells[: len(before)] != before).any(axis=1)).tolist()
        changed += range(len(before), used)
        cells_max = bytes_max // CELL.itemsize
        chosen = changed[:cells_max]
        self._told = cells.copy()
        self._told[changed[cells_max:], 0] = np.nan  # again next time
        sendings = self._sendings(now, (bytes_max - len(chosen) * CELL.itemsize) // SENDING.itemsize)
        uses, left = self._news_of_uses(bytes_max - len(chosen) * CELL.itemsize - len(sendings) * SENDING.itemsize)
        cells_max = len(chosen) + left // CELL.itemsize
        if len(chosen) < min(cells_max, used):
            turn = [(self._next + step) % used for step in range(min(used, cells_max - len(chosen)))]
            self._next = (turn[-1] + 1) % used
            chosen = list(dict.fromkeys([*chosen, *turn]))
        return News(_packed(cells, chosen, now), sendings, uses)

    @property
    def changed(self) -> bool:
        """Is there something that was not told?"""
        used = int(self._used[self._own])
        if int(self._row["told"]) != self._sent or self._uses.count != self._sent_uses or used != len(self._told):
            return True
        return bool((self._loads[self._own, :used] != self._told).any())

    def _news_of_uses(self, room: int) -> tuple[Sequence[NumberedUse], int]:
        """As many as there is room for, in bytes, and the room that is left."""
        ring, end = self._uses, self._uses.count
        start = max(min(self._sent_uses, end), end - ring.size // 2)  # what is older may be written over
        self._sent_uses, told = end, []
        for number, use in ring.read(start, end):
            size = packed_bytes(use)
            if size > room:
                self._sent_uses = number
                break
            told.append((number, use))
            room -= size
        return told, room

    def _sendings(self, now: float, most: int) -> NDArray[Any]:
        size, end = len(self._row["keys"]), int(self._row["told"])
        start = max(min(self._sent, end), end - size // 2)  # what is older may be written over
        self._sent = end = min(end, start + most)
        places = np.arange(start, end) % size
        told = np.zeros(len(places), SENDING)
        told["key"], told["rank"] = self._row["keys"][places], self._row["ranks"][places]
        told["left_s"] = self._row["expires"][places] - now
        return told[told["left_s"] > 0]


class Guests:
    """The rows for others: each has one as long as it is heard."""

    def __init__(self, memory: memoryview, workers: int, row: np.dtype[Any]) -> None:
        """They are those behind the `workers`' own; whatever was in them is wiped."""
        table = np.frombuffer(memory, row)
        self._rows = table[workers:]
        self._rows[...] = np.zeros(1, row)[0]
        self._uses = [UseRing(table, number) for number in range(workers, len(table))]
        self._free = list(range(len(self._rows)))[::-1]
        self._places: dict[object, int] = {}
        self._heard_at: dict[object, float] = {}

    def __len__(self) -> int:
        return len(self._places)

    def hear(self, guest: object, news: News, now: float) -> bool:
        """What a guest tells; False: there is no row left."""
        place = self._places.get(guest)
        if place is None:
            if not self._free:
                return False
            place = self._places[guest] = self._free.pop()
        self._heard_at[guest] = now
        row, cells = self._rows[place], news.cells
        cells = cells[cells["place"] < len(row["loads"])]
        if len(cells):
            row["loads"][cells["place"]] = _unpacked(cells, now)
            row["used"] = max(int(row["used"]), int(cells["place"].max()) + 1)
        self._keep(row, news.sendings, now)
        for number, use in news.uses:
            self._uses[place].put(number, use)
        return True

    def wipe(self, guest: object) -> None:
        """It has nothing in flight."""
        place = self._places.pop(guest, None)
        if place is not None:
            self._heard_at.pop(guest)
            self._rows[place] = np.zeros(1, self._rows.dtype)[0]
            self._free.append(place)

    def silent(self, now: float, silence_s: float) -> Sequence[object]:
        """Those that were not heard for so long."""
        return [guest for guest, heard_at in self._heard_at.items() if now - heard_at > silence_s]

    def _keep(self, row: Any, sendings: NDArray[Any], now: float) -> None:
        size, told = len(row["keys"]), int(row["told"])
        sendings = sendings[np.isfinite(sendings["left_s"])][-(size // 2) :]
        places = np.arange(told, told + len(sendings)) % size
        row["keys"][places], row["ranks"][places] = sendings["key"], sendings["rank"]
        row["expires"][places] = now + np.clip(sendings["left_s"], 0.0, _BUSY_MAX_S)
        row["told"] = told + len(sendings)  # last: what is counted is there


def _packed(cells: NDArray[np.float64], places: Sequence[int], now: float) -> NDArray[Any]:
    told = np.zeros(len(places), CELL)
    chosen = cells[list(places)] if places else cells[:0]
    told["place"], told["name"] = places, chosen[:, 0]
    told["requests"], told["tokens"] = np.clip(chosen[:, 1], 0, 1e9), np.clip(chosen[:, 2], 0, 4e9)
    told["promised_s"], told["owed_s"], told["front_s"] = chosen[:, 3], chosen[:, 4], chosen[:, 6]
    told["front_for_s"] = now - chosen[:, 5]
    told["busy_s"] = np.maximum(0.0, chosen[:, 7] - now)
    told["turn_s"], told["turn_for_s"] = chosen[:, 8] - turn_at(now), np.maximum(0.0, chosen[:, 9] - now)
    return told


def _unpacked(cells: NDArray[Any], now: float) -> NDArray[np.float64]:
    heard = np.zeros((len(cells), FIELDS))
    for field, name in enumerate(_AS_IN_THE_BOARD):
        heard[:, field] = np.nan_to_num(cells[name], nan=0.0, posinf=0.0, neginf=0.0)
    heard[:, [3, 4, 6, 7, 9]] = np.clip(heard[:, [3, 4, 6, 7, 9]], 0.0, _BUSY_MAX_S)
    heard[:, 5] = now - np.clip(heard[:, 5], -_BUSY_MAX_S, _BUSY_MAX_S)
    heard[:, [7, 9]] += now
    heard[:, 8] += turn_at(now)
    return heard
