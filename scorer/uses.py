"""What prompts use of pods' caches, told among workers: which chain each continues or begins, where it goes, and that
it is over.

Turns of one conversation come to any worker. So each hears of all: else it would take what others use for idle, and
fill caches that are full. A row has a ring of the newest ones, as of sendings; who has not read for too long begins
anew with what is there. To other hosts they go as bytes; what is lost on the way is not told again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray

_KEYS_EACH = 8  # in the ring of keys, for each use: turns have few new ones, first prompts many
_FIGURES = 5  # of a use: its first key's place, how many there are (0: it is an end), and what else is told
_NONE = -1  # the number of a use that nobody has
_HEAD = struct.Struct("<QdHIIIQ")
_KEYS_SENT_MAX = 120  # of a use: it fits into a datagram


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


Use: TypeAlias = UseBegan | UseEnded
NumberedUse: TypeAlias = tuple[int, Use]
"""With how many a worker had told before."""
UseNews: TypeAlias = tuple[int, int, Use | None]
"""Of a worker; None: what it has in use is not known any more."""


class UseRing:
    """One worker's row, for who writes it or reads it."""

    __slots__ = ("_keys", "_keys_count", "_keys_size", "_ranks", "_told", "_uses", "size")

    def __init__(self, table: NDArray[Any], number: int) -> None:
        """`table`: rows with `use_fields`."""
        row = table[number]
        self._told = table["uses_told"][number : number + 1]
        self._uses: memoryview[int] = row["uses"].reshape(-1).data
        self._ranks: memoryview[float] = row["use_ranks"].data
        self._keys: memoryview[int] = row["use_keys"].data
        self.size, self._keys_size = len(self._ranks), len(self._keys)
        self._keys_count = 0

    @property
    def count(self) -> int:
        """Uses that were told, since its worker's start."""
        return int(self._told[0])

    def put(self, number: int, use: Use) -> None:
        """Tell the next one, or, of what came from elsewhere, a later one: those between are lost."""
        count = self.count
        for lost in range(max(count, number - self.size // 2), number):
            self._write(lost, 0.0, _NONE, 0)
        if isinstance(use, UseEnded):
            self._write(number, 0.0, use.number, 0, int(use.served))
        else:
            keys, size, begins = self._keys, self._keys_size, self._keys_count
            for key in (use.at, *use.keys[1 - size // 2 :]):  # of a prompt that is longer than all, the end
                keys[self._keys_count % size] = key
                self._keys_count += 1
            self._write(number, use.rank, begins, self._keys_count - begins, use.known, use.tokens, use.computed)
        self._told[0] = number + 1  # last: what is counted is there

    def read(self, first: int, end: int) -> Iterator[NumberedUse]:
        """Those of these numbers, but for some whose keys may be written over meanwhile."""
        told, newest = [], 0
        for number in range(first, end):
            place = number % self.size
            begins, count, *figures = self._uses[place * _FIGURES : (place + 1) * _FIGURES]
            told.append((number, self._ranks[place], begins, count, figures))
            if count:
                newest = begins + count
        for number, rank, begins, count, (known, tokens, computed) in told:
            if not count:
                yield number, UseEnded(begins, bool(known))
            elif newest - begins <= self._keys_size // 2:
                at, *keys = self._keys_at(begins % self._keys_size, count)
                yield number, UseBegan(rank, at, keys, known, tokens, computed)

    def _write(self, number: int, rank: float, *figures: int) -> None:
        place, uses = number % self.size, self._uses
        self._ranks[place] = rank
        for field, figure in enumerate(figures, place * _FIGURES):
            uses[field] = figure

    def _keys_at(self, place: int, count: int) -> list[int]:
        keys = self._keys[place : place + count].tolist()
        return keys if len(keys) == count else keys + self._keys[: count - len(keys)].tolist()


class Uses:
    """The rings as one worker sees them."""

    def __init__(self, table: NDArray[Any], own: int) -> None:
        """`table`: rows with `use_fields`."""
        self._rings = [UseRing(table, number) for number in range(len(table))]
        self._told = table["uses_told"]
        self._own = own
        self._count = 0
        self._read = [0] * len(table)

    def tell(self, use: Use) -> int:
        """One of ours. Returns its number."""
        number = self._count
        self._count += 1
        self._rings[self._own].put(number, use)
        return number

    def listen(self) -> Iterator[UseNews]:
        """What the others have told since, each in its order."""
        told = self._told.tolist()
        if told == self._read:
            return
        before, self._read = self._read, told
        for worker, (start, end) in enumerate(zip(before, told, strict=True)):
            if start != end and worker != self._own:
                yield from self._hear(worker, start, end)

    def _hear(self, worker: int, start: int, end: int) -> Iterator[UseNews]:
        """`start` and `end` count uses; of a worker that was started anew, from 0."""
        ring = self._rings[worker]
        first = max(start if start <= end else 0, end - ring.size // 2)  # what is older may be written over as we read
        if first != start:
            yield worker, start, None
        for number, use in ring.read(first, end):
            yield worker, number, use


def packed(use: NumberedUse) -> bytes:
    """As bytes; of many keys, the last."""
    number, told = use
    if isinstance(told, UseEnded):
        return _HEAD.pack(number, 0.0, 0, int(told.served), 0, 0, told.number)
    keys = told.keys[-_KEYS_SENT_MAX:]
    head = _HEAD.pack(number, told.rank, 1 + len(keys), told.known, told.tokens, told.computed, told.at)
    return head + struct.pack(f"<{len(keys)}Q", *keys)


def packed_bytes(use: Use) -> int:
    """How many it takes."""
    return _HEAD.size + (0 if isinstance(use, UseEnded) else 8 * min(len(use.keys), _KEYS_SENT_MAX))


def unpacked(data: bytes) -> Sequence[NumberedUse]:
    """All of them; raises `ValueError`: it is something else."""
    uses: list[NumberedUse] = []
    place = 0
    try:
        while place < len(data):
            number, rank, count, known, tokens, computed, at = _HEAD.unpack_from(data, place)
            place += _HEAD.size
            if not count:
                uses.append((number, UseEnded(at, bool(known))))
                continue
            keys = list(struct.unpack_from(f"<{count - 1}Q", data, place))
            place += 8 * len(keys)
            uses.append((number, UseBegan(rank, at, keys, known, tokens, computed)))
    except struct.error as error:
        raise ValueError(f"these are no uses: {error}") from None
    return uses


def use_fields(uses_max: int) -> list[tuple[str, str] | tuple[str, str, tuple[int, ...]]]:
    """What a row needs for them."""
    return [
        ("uses_told", "u8"), ("uses", "i8", (uses_max, _FIGURES)), ("use_ranks", "f8", (uses_max,)),
        ("use_keys", "u8", (_KEYS_EACH * uses_max,)),
    ]  # fmt: skip
