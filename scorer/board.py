"""What the workers of one host have in flight and where they send prompts, told each other over memory they share.

Each worker has a row, which it alone writes. In it there is a cell for each rank: plain numbers that hold now, not
changes, so that a reader who misses some is right again with the next look, and one who reads a cell that is half
written is right but for that moment. So there are no locks. Where the memory comes from, and who wipes the row of a
worker that died, is the caller's to care for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xxhash

from indexer.blocks import Keys
from scorer.chains import Known
from scorer.cost import PrefillRate
from scorer.load import PodLoad, Ticket
from scorer.sendings import Sendings, ring_fields
from scorer.uses import UseBegan, UseEnded, UseNews, Uses, use_fields

LOOK_S = 0.005  # between two looks at the others: 10 ms are early enough, and decisions share the cost of one
FIELDS = 10
"""Of a cell: name, requests, prefill tokens, their seconds, those that streams are owed, since when the first of these
is computed, what it costs, busy until; the turn of the first that waits for the pod, until when to believe that."""
_NAME_BITS = 53  # as many as a float holds exactly
_USES_MIN = 64
_HERE = -1  # this worker, among others
_NOBODY = 0.0, 0.0

Cell: TypeAlias = list[float]


class SharedLoad(PodLoad):
    """The load of a candidate to which other workers send too.

    `requests`, `prefill_tokens` and the backlog are those of all workers, as last heard; `own_…` are those of this one.
    """

    __slots__ = ("_cell", "_front", "_fronts", "_others_requests", "_others_tokens", "_turns")

    def __init__(self, rate: PrefillRate, cell: memoryview[float] | None) -> None:
        """`cell`: where to tell the others; None: there is no room."""
        super().__init__(rate)
        self._cell = cell
        self._others_requests = 0
        self._others_tokens = 0
        self._fronts: dict[int, tuple[float, float]] = {}  # of each worker: since when, what it costs; -1: of this one
        self._front: int | None = None  # whose is the first of all
        self._turns: dict[int, tuple[float, float]] = {}  # of the first that waits with each, until when it counts

    @property
    def own_requests(self) -> int:
        return self.requests - self._others_requests

    @property
    def own_prefill_tokens(self) -> int:
        return self.prefill_tokens - self._others_tokens

    @property
    def owes(self) -> bool:
        return self._front is not None

    def admit(self, tokens: int, now: float, start: int = 0, tells: bool = False) -> Ticket:
        ticket = super().admit(tokens, now, start, tells)
        self._tell()
        return ticket

    def first_byte(self, ticket: Ticket, now: float, measured: bool) -> None:
        super().first_byte(ticket, now, measured)
        self._tell()

    def release(self, ticket: Ticket, now: float | None = None) -> bool:
        released = super().release(ticket, now)
        self._tell()
        return released

    def hear(self, worker: int, before: Cell, after: Cell, now: float) -> None:
        """Another worker has other figures here than before."""
        if self.moved is not None:
            self.moved.add(self)
        _, requests, tokens, promised_s, owed_s = (after[field] - before[field] for field in range(5))
        self._others_requests += int(requests)
        self.requests += int(requests)
        self._others_tokens += int(tokens)
        self.prefill_tokens += int(tokens)
        self._others_promised_s += promised_s
        self._promised_s += promised_s
        self._others_owed_s += owed_s
        if not self._others_tokens:  # what is left are rounding errors
            self._promised_s -= self._others_promised_s
            self._others_promised_s = self._others_owed_s = 0.0
        if promised_s < 0.0:  # something has begun: at most the rest is left
            self._busy_until = min(self._busy_until, now + self._promised_s)
        else:
            self._busy_until = max(self._busy_until, after[7])
        self._stand(worker, after[5], after[6], now)
        if after[8:] != before[8:]:
            self._turns[worker] = after[8], after[9]
            self._turns = {each: told for each, told in self._turns.items() if told[1] > now}
            self._others_turn, self._others_until = min(self._turns.values(), default=_NOBODY)

    def await_here(self, turn: float, until: float) -> None:
        cell = self._cell
        if cell is not None:
            cell[8], cell[9] = turn, until

    def fall_silent(self) -> None:
        """Tell no more: what is still in flight ends where nobody counts it."""
        self._cell = None

    def _lead(self, head: Ticket | None, head_at: float, now: float) -> None:
        self._head, self._head_at = head, head_at
        self._stand(_HERE, head_at, 0.0 if head is None else head.cost_s, now)

    def _stand(self, worker: int, front_at: float, front_s: float, now: float) -> None:
        """The first of a worker's that tell. The pod computes what came first: that of one worker, no other's."""
        fronts, before = self._fronts, self._fronts.get(worker)
        if before == (front_at, front_s):
            return
        if front_s > 0.0:
            fronts[worker] = front_at, front_s
        else:
            fronts.pop(worker, None)
        has_gone = worker == self._front and before is not None and before[1] != front_s
        first = self._front = min(fronts, key=fronts.__getitem__, default=None)
        if first is None:
            self._front_at = self._front_s = 0.0
            return
        self._front_at, self._front_s = fronts[first]
        if has_gone and self._front_at < now:  # only now
            self._front_at = now

    def _tell(self) -> None:
        cell = self._cell
        if cell is not None:
            cell[1] = self.requests - self._others_requests
            cell[2] = self.prefill_tokens - self._others_tokens
            cell[3] = self._promised_s - self._others_promised_s
            cell[4] = self._owed_s
            cell[5], cell[6] = self._fronts.get(_HERE, _NOBODY)
            cell[7] = self._busy_until


class Sent(NamedTuple):
    """`rank` will soon hold so many leading blocks of a prompt; to be believed until `expires`."""

    blocks: int
    rank: Hashable
    expires: float


class Board:
    """The table as one worker sees it. `in_flight`: requests of all other workers, as last heard."""

    def __init__(
        self,
        memory: memoryview,
        workers: int,
        own: int,
        row: np.dtype[Any],
        look_s: float = LOOK_S,
        guests: int = 0,
    ) -> None:
        """`memory`: zeros at first, of `workers` rows of `row` (see `row_of`); `own`: which row is this worker's.

        `look_s`: between two looks at the others. A rank for which there is no cell is not told. `guests`: rows behind
        the workers', for those of other hosts (see `guests`): their requests are not counted as this gateway's.
        """
        table = np.frombuffer(memory, row)
        self._told = table["loads"]
        self._used = table["used"]
        self._cells: memoryview[float] = self._told[own].reshape(-1).data
        self._own = own
        self._sendings = Sendings(table, own)
        self._uses = Uses(table, own)
        self._free = list(range(self._told.shape[1]))[::-1]
        self._places: dict[Hashable, int] = {}  # of ranks: the cells that are ours
        self._numbers: dict[Hashable, float] = {}
        self._ranks: dict[float, Hashable] = {}
        self._loads: dict[float, SharedLoad] = {}
        self._workers = workers
        self._seen = np.zeros((workers + guests, 0, FIELDS))  # cells that anybody has used; nothing of our own
        self._looked_at = float("-inf")
        self._look_s = look_s
        self.in_flight = 0

    def join(self, rank: Hashable, name: bytes, rate: PrefillRate) -> SharedLoad:
        """The load of a rank, told to the others and heard from them. `name`: the same in all workers."""
        number, cell = _number(name), None
        if self._free:
            place = self._places[rank] = self._free.pop()
            cell = self._cells[place * FIELDS : (place + 1) * FIELDS]
            cell[0] = number
            self._used[self._own] = max(int(self._used[self._own]), place + 1)
        self._numbers[rank], self._ranks[number] = number, rank
        load = self._loads[number] = SharedLoad(rate, cell)
        for worker, place in np.argwhere(self._seen[..., 0] == number).tolist():
            load.hear(worker, _nothing(number), self._seen[worker, place].tolist(), self._looked_at)
        return load

    def leave(self, rank: Hashable) -> None:
        """A rank is gone for good."""
        number = self._numbers.pop(rank)
        del self._ranks[number]
        self._loads.pop(number).fall_silent()
        place = self._places.pop(rank, None)
        if place is not None:
            for field in range(FIELDS):
                self._cells[place * FIELDS + field] = 0.0
            self._free.append(place)

    def listen(self, now: float) -> None:
        """Have what the others have, if it was not looked at a moment ago."""
        if now < self._looked_at + self._look_s:
            return
        self._looked_at = now
        self._sendings.listen()
        width = max(self._seen.shape[1], *self._used.tolist())
        if width > self._seen.shape[1]:
            self._seen = np.concatenate((self._seen, np.zeros_like(self._told[:, self._seen.shape[1] : width])), axis=1)
        cells = self._told[:, :width].copy()  # it does not change
        cells[self._own] = 0.0
        changed = np.flatnonzero(cells != self._seen)
        if len(changed):
            places = list(dict.fromkeys((changed // FIELDS).tolist()))
            cells_before, cells_after = (each.reshape(-1, FIELDS)[places].tolist() for each in (self._seen, cells))
            for place, before, after in zip(places, cells_before, cells_after, strict=True):
                if place < self._workers * width:
                    self.in_flight += int(after[1] - before[1])
                self._change(place // width, before, after, now)
            self._seen = cells

    def uses(self) -> Iterator[UseNews]:
        """What prompts that others have sent use, as was told since."""
        return self._uses.listen()

    def rank(self, number: float) -> Hashable | None:
        """The one that others mean; None: it is not known here."""
        return self._ranks.get(number)

    def begin(self, rank: Hashable, known: Known, computed: int) -> int:
        """A prompt goes to a rank, which computes so many tokens of it. Returns the number to `end` it by."""
        number, tokens = self._numbers[rank], known.chain.tokens
        return self._uses.tell(UseBegan(number, known.at, known.keys, known.tokens, tokens, computed))

    def end(self, number: int, served: bool) -> None:
        """It is over. Not `served`: the pod has done nothing for it."""
        self._uses.tell(UseEnded(number, served))

    def tell(self, rank: Hashable, keys: Keys, start: int, expires: float) -> None:
        """A prompt goes to a rank that holds `keys[:start]`, and will soon hold all of them."""
        self._sendings.tell(keys, start, self._numbers[rank], expires)

    def sent(self, keys: Keys, now: float) -> Sent | None:
        """What others have sent that begins as `keys` do, the longest; told once."""
        found = self._sendings.find(keys)
        if found is None or found[2] <= now or found[1] not in self._ranks:
            return None
        return Sent(found[0], self._ranks[found[1]], found[2])

    def _change(self, worker: int, before: Cell, after: Cell, now: float) -> None:
        if before[0] != after[0]:  # a pod has left, and another one has its place
            gone = self._loads.get(before[0])
            if gone is not None:
                gone.hear(worker, before, _nothing(before[0]), now)
            before = _nothing(after[0])
        load = self._loads.get(after[0])
        if load is not None:
            load.hear(worker, before, after, now)


def row_of(ranks_max: int, sendings_max: int) -> np.dtype[Any]:
    """What one worker writes. A row of zeros is that of a worker that has nothing in flight."""
    loads = [("used", "u8"), ("loads", "f8", (ranks_max, FIELDS))]
    return np.dtype([*loads, *ring_fields(sendings_max), *use_fields(max(_USES_MIN, sendings_max // 4))])


def _nothing(name: float) -> Cell:
    """The cell of a pod that has nothing to do."""
    return [name, *[0.0] * (FIELDS - 1)]


def _number(name: bytes) -> float:
    """A name as a number that a cell can hold; never 0."""
    return float(xxhash.xxh3_64_intdigest(name) >> (64 - _NAME_BITS) or 1)
