"""Where blocks live: rows in pages of eight, found by their key.

A row is one distinct block. Eight rows are a page, whose keys are one cache line; a block of depth d sits in a row with
`row % 8 == d % 8`, and children sit behind their parents as long as there is room. So a chain is a list of whole pages:
a long look-up probes only every eighth key and compares the rest in place (`find_chain`).

Keys are found by separate chaining (`heads`, `next`), which needs no tombstones and never rehashes: all memory is laid
out at birth (untouched pages cost nothing), so there is no growth and no stall.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PAGE = 8
_LAST = PAGE - 1
_RUN_MIN = 64  # rows; shorter runs are not worth looking for the next,
_SHORT_RUNS_MAX = 4  # except for the few where prompts branch off
_RUN_MAX = 1024  # rows compared at once
_SCALAR_MAX = 48  # below this many keys, a Python loop beats numpy's fixed costs,
_NEW_MIN = 112  # or this many, where most need rows of their own


class Pages:
    """A bounded table of rows. Row 0 is no row. The caller counts who holds a row; a page with no held row is freed."""

    def __init__(self, blocks_max: int) -> None:
        """`blocks_max`: rows in all, rounded up to whole pages; the unused rows of begun pages count too."""
        self.pages_max = max(1, -(-blocks_max // PAGE))
        rows = (self.pages_max + 1) * PAGE
        bits = max(3, (rows - 1).bit_length())
        self._mask = (1 << bits) - 1
        self.key_array: NDArray[np.uint64] = np.zeros(rows + 1, np.uint64)  # one more: row + 1 is always readable
        self.set_array: NDArray[np.uint32] = np.zeros(rows, np.uint32)
        self.next_array: NDArray[np.uint32] = np.zeros(rows, np.uint32)
        self.head_array: NDArray[np.uint32] = np.zeros(1 << bits, np.uint32)
        self.stamp_array: NDArray[np.uint64] = np.zeros(self.pages_max + 1, np.uint64)
        self.live_array: NDArray[np.uint8] = np.zeros(self.pages_max + 1, np.uint8)
        self.before_array: NDArray[np.uint64] = np.zeros(self.pages_max + 1, np.uint64)
        self.keys = self.key_array.data
        self._blank = np.zeros(PAGE, np.uint64).data
        self.sets = self.set_array.data
        self.stamps = self.stamp_array.data
        self.live = self.live_array.data
        self._befores = self.before_array.data  # of each page, the key of the block before its first row; 0: none
        self._next = self.next_array.data
        self._heads = self.head_array.data
        self.used = 0  # pages in use
        self._unused = 1  # the first page that was never used; page 0 is none
        self._free = 0  # the page that was released last, whose first row tells the one before; 0: there is none

    @property
    def free(self) -> int:
        """Pages that are left."""
        return self.pages_max - self.used

    @property
    def nbytes(self) -> int:
        """Bytes of all that was ever used; the rest of the arrays is address space only."""
        row = 8 + 4 + 4
        return self._unused * (PAGE * row + 17) + self.head_array.nbytes

    def find(self, key: int) -> int:
        """The row of `key`, 0 if there is none."""
        keys, following = self.keys, self._next
        row: int = self._heads[key & self._mask]
        while row and keys[row] != key:
            row = following[row]
        return row

    def place(self, key: int, parent: int) -> int:
        """A row for `key`, which has none yet, behind the row `parent` (0: the first of a chain); 0 if all are used."""
        keys = self.keys
        row = parent + 1
        if not parent or parent & _LAST == _LAST or keys[row]:
            page = self._page()
            self._befores[page] = keys[parent]
            row = page * PAGE
            if row and parent:  # where a sibling sits there, at the same depth
                row += (parent + 1) & _LAST
        if row:
            bucket = key & self._mask
            keys[row] = key
            self._next[row] = self._heads[bucket]
            self._heads[bucket] = row
        return row

    def follow(self, keys: NDArray[np.uint64] | list[int], row: int) -> list[int]:
        """The rows of a chain of keys that starts behind `row` (0: at the start), made where there are none.

        Fewer than the keys where all pages are used.
        """
        if len(keys) >= _NEW_MIN:
            rows = self._follow_all(np.asarray(keys, np.uint64), row)
            if rows is not None:
                return rows
        stored, heads, following, mask = self.keys, self._heads, self._next, self._mask
        made: list[int] = []
        for key in keys if isinstance(keys, list) else keys.tolist():
            behind = row + 1
            there = stored[behind]  # nothing behind row 0
            if there == key:
                row = behind
            else:  # `find`, and then `place` where a child sits behind its parent, without their calls
                bucket = key & mask
                known = first = heads[bucket]
                while known and stored[known] != key:
                    known = following[known]
                if known:
                    row = known
                elif not there and behind & _LAST and row:
                    row = behind
                    stored[row], following[row], heads[bucket] = key, first, row
                else:
                    row = self.place(key, row)
                    if not row:
                        break
            made.append(row)
        return made

    def _follow_all(self, keys: NDArray[np.uint64], row: int) -> list[int] | None:
        """As `follow`, at once. None where keys that have rows stand behind keys that have none."""
        buckets = keys & np.uint64(self._mask)
        firsts = self.head_array[buckets]
        rows: list[int] = []
        if firsts.any():
            found = self.find_all(keys)
            known = int(np.count_nonzero(found))
            if not found[:known].all():
                return None
            if known:
                rows = found[:known].tolist()
                keys, buckets, firsts, row = keys[known:], buckets[known:], firsts[known:], rows[-1]
        made = self._places(keys, row)
        count = len(made)
        if count:
            places = np.array(made, np.uint32)
            self.key_array[places] = keys[:count]
            self.next_array[places] = firsts[:count]
            self.head_array[buckets[:count]] = places
            for lost in np.flatnonzero(self.head_array[buckets[:count]] != places).tolist():  # two keys of one bucket
                self._next[made[lost]], self._heads[int(buckets[lost])] = self._heads[int(buckets[lost])], made[lost]
        return rows + made

    def _places(self, keys: NDArray[np.uint64], row: int) -> list[int]:
        """Rows that are free, for a chain of `keys` behind `row` (0: at the start); fewer where all pages are used."""
        count, behind = len(keys), row + 1
        places: list[int] = []
        if row and behind & _LAST and not self.keys[behind]:
            places += range(behind, (behind | _LAST) + 1)
        depth = behind & _LAST if row else 0
        while len(places) < count:
            page = self._page()
            if not page:
                break
            self._befores[page] = int(keys[len(places) - 1]) if places else self.keys[row]
            first = page * PAGE
            places += range(first + (0 if places else depth), first + PAGE)
        return places[:count]

    def lay(self, keys: NDArray[np.uint64], befores: NDArray[np.uint64]) -> int:
        """Pages as they are elsewhere: `keys`, shape (n, PAGE), 0 where there is none, are all different and have no
        rows here; `befores`: of each page, the key of the block before it. Returns for how many there was room."""
        made = []
        for _ in range(len(keys)):
            page = self._page()
            if not page:
                break
            made.append(page)
        pages = np.array(made, np.uint32)
        grid = pages[:, None] * np.uint32(PAGE) + np.arange(PAGE, dtype=np.uint32)
        self.key_array[grid] = keys[: len(made)]
        self.next_array[grid] = 0
        self.before_array[pages] = befores[: len(made)]
        rows = grid[keys[: len(made)] != 0]
        while rows.size:  # of those that fall into one bucket, one enters a round
            buckets = self.key_array[rows] & np.uint64(self._mask)
            before = self.head_array[buckets]
            self.head_array[buckets] = rows
            entered = self.head_array[buckets] == rows
            self.next_array[rows[entered]] = before[entered]
            rows = rows[~entered]
        return len(made)

    def behind(self, row: int, count: int) -> list[int]:
        """The last `count` rows of the chain that ends with `row`, in order; fewer where those before are not known."""
        rows = [row]
        while len(rows) < count:
            if row & _LAST and self.keys[row - 1]:
                row -= 1
            else:
                before = self._befores[row // PAGE]
                row = self.find(before) if before else 0
                if not row:
                    break
            rows.append(row)
        return rows[::-1]

    def release(self, page: int) -> None:
        """Forget all keys of a page of which no row is held."""
        heads, following, mask = self._heads, self._next, self._mask
        first = page * PAGE
        keys = self.keys[first : first + PAGE]
        for row, key in enumerate(keys.tolist(), first):
            if not key:
                continue
            bucket = key & mask
            at = heads[bucket]
            if at == row:
                heads[bucket] = following[row]
            else:
                while following[at] != row:
                    at = following[at]
                following[at] = following[row]
        keys[:] = self._blank
        following[first] = self._free
        self._free = page
        self.used -= 1

    def find_all(self, keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The rows of many keys at once, shape (n,), 0 where there is none."""
        rows: NDArray[np.uint32] = self.head_array[keys & np.uint64(self._mask)]
        wrong = np.flatnonzero((self.key_array[rows] != keys) & (rows != 0))
        while wrong.size:
            further = self.next_array[rows[wrong]]
            rows[wrong] = further
            wrong = wrong[(self.key_array[further] != keys[wrong]) & (further != 0)]
        return rows

    def find_chain(self, keys: NDArray[np.uint64], behind: int = 0) -> NDArray[np.uint32]:
        """As `find_all`, for consecutive keys of one chain from depth 0 mod 8, which follows on the row `behind`.

        Past the first key without a row, rows may be given as 0 though they exist: a prefix ends there.
        """
        rows = np.zeros(len(keys), np.uint32)
        done = self._straight(keys, behind, rows)
        if done < len(keys):
            done -= done % PAGE
            rows[done:] = self._by_pages(keys[done:])
        return rows

    def _straight(self, keys: NDArray[np.uint64], behind: int, rows: NDArray[np.uint32]) -> int:
        """Follow a chain as long as its rows lie one behind the other in long runs; how many keys that were.

        Chains are stored in long events and evicted from their tails, so pages are mostly taken in order.
        """
        count, done, short = len(keys), 0, 0
        while done < count:
            piece = keys[done : done + _RUN_MAX]
            stored = self.key_array[behind + 1 : behind + 1 + len(piece)]
            same = stored == piece[: len(stored)]
            length = int(same.argmin()) if not same.all() else len(stored)
            rows[done : done + length] = np.arange(behind + 1, behind + 1 + length, dtype=np.uint32)
            done, behind = done + length, behind + length
            if length < len(piece):
                short += length < _RUN_MIN
                if short > _SHORT_RUNS_MAX:
                    break
                behind = self.find(int(keys[done])) - 1
                if behind < 0:
                    return count  # the prefix ends here
        return done

    def _by_pages(self, keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """A probe for every whole page, wherever it lies."""
        whole = len(keys) // PAGE
        rows = np.zeros(len(keys), np.uint32)
        if whole:
            pages = self.find_all(keys[_LAST : whole * PAGE : PAGE]) // PAGE
            grid = pages[:, None] * np.uint32(PAGE) + np.arange(PAGE, dtype=np.uint32)
            grid[self.key_array[grid] != keys[: whole * PAGE].reshape(whole, PAGE)] = 0
            rows[: whole * PAGE] = grid.ravel()
        missing = np.flatnonzero(rows == 0)
        if len(missing) > _SCALAR_MAX and self.find(int(keys[missing[0]])):
            rows[missing] = self.find_all(keys[missing])
            return rows
        for index in missing.tolist():
            row = self.find(int(keys[index]))
            if not row:
                break
            rows[index] = row
        return rows

    def _page(self) -> int:
        """A page that is free, which is in use from now on; 0 if there is none."""
        page = self._free
        if page:
            self._free = self._next[page * PAGE]
        else:
            page = self._unused
            if page > self.pages_max:
                return 0
            self._unused = page + 1
        self.used += 1
        return page
