"""What prompts use of pods' caches, told among the workers of one host: which chain each continues or begins, where it
goes, and that it is over.

Turns of one conversation come to any worker. So each hears of all: else it would take what others use for idle, and
fill caches that are full. A row has a ring of the newest ones, as of sendings; who has not read for too long begins
anew with what is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray

_KEYS_EACH = 8  # in the ring of keys, for each use: turns have few new ones, first prompts many
_FIGURES = 5  # of a use: its first key's place, how many there are (0: it is an end), and what else is told


class UseBegan(NamedTuple):
    """A prompt has gone to a rank (its number), which computes so many tokens of it.

    `at`: the last of its chain's keys that were known, 0 if none was; `keys`: those that follow; `known`: tokens up to
    `at`; `tokens`: all of its own.
    """

    rank: float
    at: int
    keys: list[int]
    known: int
    tokens: int
    computed: int


class UseEnded(NamedTuple):
    """The request of this number is over. Not `served`: the pod has done nothing for it."""

    number: int
    served: bool


UseNews: TypeAlias = tuple[int, int, UseBegan | UseEnded | None]
"""Of a worker, the how manieth; None: what it has in use is not known any more."""


class _Ring:
    """One worker's."""

    __slots__ = ("keys", "ranks", "uses")

    def __init__(self, row: Any) -> None:
        self.uses: memoryview[int] = row["uses"].reshape(-1).data
        self.ranks: memoryview[float] = row["use_ranks"].data
        self.keys: memoryview[int] = row["use_keys"].data


class Uses:
    """The rings as one worker sees them."""

    def __init__(self, table: NDArray[Any], own: int) -> None:
        """`table`: rows with `use_fields`."""
        self._told = table["uses_told"]
        self._own = own
        self._rings = [_Ring(row) for row in table]
        self._ring = self._rings[own]
        self._size, self._keys_size = len(self._ring.ranks), len(self._ring.keys)
        self._count = self._keys_count = 0
        self._read = [0] * len(table)

    def begin(self, use: UseBegan) -> int:
        """Tell it. Returns its number, to `end` it."""
        keys, size, begins = self._ring.keys, self._keys_size, self._keys_count
        for key in (use.at, *use.keys[1 - size // 2 :]):  # of a prompt that is longer than all, the end
            keys[self._keys_count % size] = key
            self._keys_count += 1
        self._tell(use.rank, begins, self._keys_count - begins, use.known, use.tokens, use.computed)
        return self._count - 1

    def end(self, number: int, served: bool) -> None:
        """It is over."""
        self._tell(0.0, number, 0, int(served), 0, 0)

    def listen(self) -> Iterator[UseNews]:
        """What the others have told since, each in its order."""
        told = self._told.tolist()
        if told == self._read:
            return
        before, self._read = self._read, told
        for worker, (start, end) in enumerate(zip(before, told, strict=True)):
            if start != end and worker != self._own:
                yield from self._hear(worker, start, end)

    def _tell(self, rank: float, *figures: int) -> None:
        place, uses = self._count % self._size, self._ring.uses
        self._ring.ranks[place] = rank
        for field, figure in enumerate(figures, place * _FIGURES):
            uses[field] = figure
        self._count += 1
        self._told[self._own] = self._count  # last: what is counted is there

    def _hear(self, worker: int, start: int, end: int) -> Iterator[UseNews]:
        """`start` and `end` count uses; of a worker that was started anew, from 0."""
        first = max(start if start <= end else 0, end - self._size // 2)  # what is older may be written over as we read
        if first != start:
            yield worker, start, None
        ring, told, newest = self._rings[worker], [], 0
        for number in range(first, end):
            place = number % self._size
            begins, count, *figures = ring.uses[place * _FIGURES : (place + 1) * _FIGURES]
            told.append((number, ring.ranks[place], begins, count, figures))
            if count:
                newest = begins + count
        for number, rank, begins, count, (known, tokens, computed) in told:
            if not count:
                yield worker, number, UseEnded(begins, bool(known))
            elif newest - begins <= self._keys_size // 2:
                at, *keys = self._keys(ring, begins, count)
                yield worker, number, UseBegan(rank, at, keys, known, tokens, computed)

    def _keys(self, ring: _Ring, begins: int, count: int) -> list[int]:
        size = self._keys_size
        begins %= size
        keys = ring.keys[begins : begins + count].tolist()
        return keys if begins + count <= size else keys + ring.keys[: begins + count - size].tolist()


def use_fields(uses_max: int) -> list[tuple[str, str] | tuple[str, str, tuple[int, ...]]]:
    """What a row needs for them."""
    return [
        ("uses_told", "u8"), ("uses", "i8", (uses_max, _FIGURES)), ("use_ranks", "f8", (uses_max,)),
        ("use_keys", "u8", (_KEYS_EACH * uses_max,)),
    ]  # fmt: skip
