"""The loops of `KeySpace`, `Pages`, `EngineMap` and `Table` as machine code, on the same arrays, with the same outcome.

A key is XXH3 (64 bits, seeded), bit for bit what the `xxhash` package gives, for the 17 to 128 bytes that most engines'
blocks have. What the loops can't see is left to the caller: copies and aliases of engine hashes, and which number a
holder set has. Imported only where the compiled way is chosen: it needs numba.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from indexer.pages import FREE, FREED, PAGE, UNUSED

_U32: TypeAlias = NDArray[np.uint32]
_U64: TypeAlias = NDArray[np.uint64]
_Map: TypeAlias = tuple[_U64, _U32, _U32, _U32, _U32]
_Pages: TypeAlias = tuple[_U64, _U32, _U32, _U32]

SIZES = range(5, 33)
"""Tokens a block for which `chain` is right."""

_LOW = np.uint64(0xFFFF_FFFF)
_PRIME_1 = np.uint64(0x9E37_79B1_85EB_CA87)
_PRIME_MX = np.uint64(0x1656_6791_9E37_79F9)
# XXH3's default secret, its first 128 bytes as little-endian words.
_SECRET = np.array(
    [
        0xBE4B_A423_396C_FEB8, 0x1CAD_21F7_2C81_017C, 0xDB97_9083_E96D_D4DE, 0x1F67_B3B7_A4A4_4072,
        0x78E5_C0CC_4EE6_79CB, 0x2172_FFCC_7DD0_5A82, 0x8E24_43F7_7446_08B8, 0x4C26_3A81_E690_35E0,
        0xCB00_C391_BB52_283C, 0xA32E_531B_8B65_D088, 0x4EF9_0DA2_9748_6471, 0xD8AC_DEA9_46EF_1938,
        0x3F34_9CE3_3F76_FAA8, 0x1D4F_0BC7_C7BB_DCF9, 0x3159_B4CD_4BE0_518A, 0x6473_78D9_C97E_9FC8,
    ],
    np.uint64,
)  # fmt: skip


# --- keys ---


@njit
def _folded(a: np.uint64, b: np.uint64) -> np.uint64:
    """The two halves of the 128-bit product, XORed."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> np.uint64(32), b & _LOW, b >> np.uint64(32)
    low, first, second = a_low * b_low, a_high * b_low, a_low * b_high
    middle = (low >> np.uint64(32)) + (first & _LOW) + second
    high = a_high * b_high + (first >> np.uint64(32)) + (middle >> np.uint64(32))
    return (a * b) ^ high


@njit
def _mixed(tokens: _U32, at: int, word: int, seed: np.uint64) -> np.uint64:
    """Of 16 bytes, from the token `at` on, with the words of the secret from `word` on."""
    low = np.uint64(tokens[at]) | np.uint64(tokens[at + 1]) << np.uint64(32)
    high = np.uint64(tokens[at + 2]) | np.uint64(tokens[at + 3]) << np.uint64(32)
    return _folded(low ^ (_SECRET[word] + seed), high ^ (_SECRET[word + 1] - seed))


@njit
def chain(tokens: _U32, size: int, parent: np.uint64, keys: _U64) -> None:
    """Fill `keys`, one for each block of `size` tokens; `parent`: the key before the first."""
    key = parent
    for block in range(len(keys)):
        start, end = block * size, (block + 1) * size
        mixed = np.uint64(4 * size) * _PRIME_1
        for pair in range((size - 1) // 8, -1, -1):  # from both ends to the middle, 16 bytes each
            mixed += _mixed(tokens, start + 4 * pair, 4 * pair, key)
            mixed += _mixed(tokens, end - 4 * pair - 4, 4 * pair + 2, key)
        mixed = (mixed ^ mixed >> np.uint64(37)) * _PRIME_MX
        key = mixed ^ mixed >> np.uint64(32)
        keys[block] = key


# --- tables ---


@njit
def _page(following: _U32, marks: _U32, pages_max: int) -> int:
    """A page to use, 0 if there is none."""
    page = np.int64(marks[FREE])
    if page:
        marks[FREE] = following[page * PAGE]
        marks[FREED] -= np.uint32(1)
    elif marks[UNUSED] <= pages_max:
        page = np.int64(marks[UNUSED])
        marks[UNUSED] += np.uint32(1)
    return page


@njit
def _place(key: np.uint64, parent: int, stored: _U64, following: _U32, marks: _U32, pages_max: int) -> int:
    """Where `key` goes that has no row yet; 0 if all are used."""
    row = parent + 1
    if not parent or row % PAGE == 0:
        return _page(following, marks, pages_max) * PAGE
    if stored[row]:
        row = _page(following, marks, pages_max) * PAGE
        if row:
            row += parent % PAGE + 1
    return row


@njit
def follow(keys: _U64, parent: int, pages: _Pages, pages_max: int, rows: _U32) -> int:
    """As `Pages.follow`: fills `rows`, and returns how many there are."""
    stored, following, heads, marks = pages
    mask, row = np.uint64(len(heads) - 1), parent
    for at in range(len(keys)):
        key = keys[at]
        if row and stored[row + 1] == key:
            row += 1
        else:
            bucket = key & mask
            known = np.int64(heads[bucket])
            while known and stored[known] != key:
                known = np.int64(following[known])
            if not known:
                known = _place(key, row, stored, following, marks, pages_max)
                if not known:
                    return at
                stored[known], following[known], heads[bucket] = key, heads[bucket], known
            row = known
        rows[at] = row
    return len(keys)


@njit
def find(engine_hash: np.uint64, table: _Map) -> int:
    """As `EngineMap.find`."""
    hashes, named, following, heads, _ = table
    entry = np.int64(heads[engine_hash & np.uint64(len(heads) - 1)])
    while entry and hashes[entry] != engine_hash:
        entry = np.int64(following[entry])
    return np.int64(named[entry]) if entry else 0


@njit
def name(start: int, engine_hashes: _U64, rows: _U32, table: _Map, before: _U32) -> tuple[int, int]:
    """As `EngineMap.name`, from the hash `start` on: where it ended (short: the map must grow), how many were known.

    `before`: the row that each hash named, 0 if it is new.
    """
    hashes, named, following, heads, marks = table
    mask, known = np.uint64(len(heads) - 1), 0
    for at in range(start, len(rows)):
        engine_hash = engine_hashes[at]
        bucket = engine_hash & mask
        entry = np.int64(heads[bucket])
        while entry and hashes[entry] != engine_hash:
            entry = np.int64(following[entry])
        if entry:
            before[at] = named[entry]
            known += 1
        else:
            entry = np.int64(marks[FREE])
            if entry:
                marks[FREE] = following[entry]
                marks[FREED] -= np.uint32(1)
            else:
                entry = np.int64(marks[UNUSED])
                if entry == len(hashes):
                    return at, known
                marks[UNUSED] += np.uint32(1)
            hashes[entry], following[entry], heads[bucket] = engine_hash, heads[bucket], entry
            before[at] = 0
        named[entry] = rows[at]
    return len(rows), known


@njit
def forget(engine_hashes: _U64, table: _Map, rows: _U32) -> int:
    """As `EngineMap.forget` without copies and aliases: fills `rows`, 0 where a hash named none; how many there are."""
    hashes, named, following, heads, marks = table
    mask, found = np.uint64(len(heads) - 1), 0
    for at in range(len(engine_hashes)):
        engine_hash = engine_hashes[at]
        bucket = engine_hash & mask
        before, entry = np.int64(0), np.int64(heads[bucket])
        while entry and hashes[entry] != engine_hash:
            before, entry = entry, np.int64(following[entry])
        rows[at] = 0
        if not entry:
            continue
        if before:
            following[before] = following[entry]
        else:
            heads[bucket] = following[entry]
        rows[at] = named[entry]
        found += 1
        named[entry] = 0
        following[entry] = marks[FREE]
        marks[FREE] = entry
        marks[FREED] += np.uint32(1)
    return found


@njit
def runs(rows: _U32, numbers: _U32, starts: NDArray[np.int64]) -> int:
    """Where the holder set changes along `rows`: fills `starts`, and an end behind them; how many runs there are."""
    count = 0
    for at in range(len(rows)):
        if not at or numbers[rows[at]] != numbers[rows[at - 1]]:
            starts[count] = at
            count += 1
    starts[count] = len(rows)
    return count


@njit
def _free(page: int, pages: _Pages) -> None:
    """As `Pages.free`."""
    stored, following, heads, marks = pages
    mask = np.uint64(len(heads) - 1)
    for row in range(page * PAGE, page * PAGE + PAGE):
        key = stored[row]
        if not key:
            continue
        bucket = key & mask
        at = np.int64(heads[bucket])
        if at == row:
            heads[bucket] = following[row]
        else:
            while following[at] != row:
                at = np.int64(following[at])
            following[at] = following[row]
        stored[row] = 0
    following[page * PAGE] = marks[FREE]
    marks[FREE] = page
    marks[FREED] += np.uint32(1)


@njit
def change(
    runs: int, rows: _U32, starts: NDArray[np.int64], sets: _U32, numbers: _U32, stamps: _U64, live: NDArray[np.uint8],
    version: int, pages: _Pages,
) -> None:  # fmt: skip
    """Rows get the holder sets `sets`, one for each run; as `Table` does it, a page without any is given back."""
    for run in range(runs):
        new = sets[run]
        for at in range(starts[run], starts[run + 1]):
            row = np.int64(rows[at])
            old, page = numbers[row], row // PAGE
            if old == new:
                continue
            numbers[row] = new
            stamps[page] = version
            if not old:
                live[page] += np.uint8(1)
            elif not new:
                live[page] -= np.uint8(1)
                if not live[page]:
                    _free(page, pages)


@njit
def store(
    tokens: _U32, size: int, root: np.uint64, parent: np.uint64, keys: _U64, pages: _Pages, pages_max: int,
    engine_hashes: _U64, table: _Map, numbers: _U32, rows: _U32, before: _U32, starts: NDArray[np.int64],
) -> tuple[int, int, int, int]:  # fmt: skip
    """A stored event, as far as the loops here go: how many rows, where `name` ended, how many it knew, how many runs.

    `size` 0: the `keys` are given, and `parent` is a row. Else it is an engine hash, -1 rows if it is not in `table`;
    it is not looked for if there is a `root`, the key before a chain's first.
    """
    row, key = np.int64(parent), root
    if size:
        if not root:
            row = find(parent, table)
            if not row:
                return -1, 0, 0, 0
            key = pages[0][row]
        chain(tokens, size, key, keys)
    stored = follow(keys, row, pages, pages_max, rows)
    named, known = name(0, engine_hashes, rows[:stored], table, before)
    return stored, named, known, runs(rows[:stored], numbers, starts)


@njit
def remove(
    engine_hashes: _U64, table: _Map, numbers: _U32, rows: _U32, gone: _U32, starts: NDArray[np.int64]
) -> tuple[int, int]:
    """`forget` and `runs` in one call: `gone` are the `rows` without gaps; how many of them, and how many runs."""
    found = forget(engine_hashes, table, rows)
    at = 0
    for row in rows[: len(engine_hashes)]:
        if row:
            gone[at] = row
            at += 1
    return found, runs(gone[:found], numbers, starts)
