"""One pass of machine code over a payload of plain events, into tables of numbers.

`scan` gives up where anything is not plain: an event in a bin, extra keys, a field twice, a value of another type. It
never guesses: what it reads it reads as `wire` would. Machine code checks no bounds, so a payload has a byte behind it
with which no msgpack value starts: whatever ends before that byte may be followed by a look at it. Imported only where
the compiled way is chosen: it needs numba.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

_Bytes: TypeAlias = NDArray[np.uint8]
_Row: TypeAlias = NDArray[np.int64]

(
    KIND, HASHES, HASHES_END, TOKENS, TOKENS_END, HAS_PARENT, PARENT, SIZE, LORA, MEDIUM, MEDIUM_END, ADAPTER,
    ADAPTER_END, EXTRAS, GROUP, SPEC, SPEC_END, WINDOW, SEEN, FIRST_HASH, WIDTH,
) = range(21)  # fmt: skip
"""Columns of the table of events: from where to where its hashes and tokens were put, the places of its texts in the
payload, and numbers; -1 where the event says nothing or nil."""

STORED, REMOVED, CLEARED = range(3)

_NAMES = (
    b"type", b"block_hashes", b"parent_block_hash", b"token_ids", b"block_size", b"lora_id", b"medium", b"lora_name",
    b"extra_keys", b"group_idx", b"kv_cache_spec_kind", b"kv_cache_spec_sliding_window",
)  # fmt: skip
_TYPE, _HASHES, _PARENT, _TOKENS, _SIZE, _LORA, _MEDIUM, _ADAPTER, _EXTRAS, _GROUP, _SPEC, _WINDOW = range(12)
_REMOVED_ORDER = np.array([_TYPE, _HASHES, _MEDIUM, _GROUP])  # of the positional form; that of stores is _NAMES'
_REQUIRED = np.array([1 << _HASHES | 1 << _PARENT | 1 << _TOKENS | 1 << _SIZE, 1 << _HASHES, 0])
_TEXT = np.frombuffer(b"".join(_NAMES), np.uint8)
_TEXT_ENDS = np.cumsum(np.array([0, *map(len, _NAMES)]))
_KINDS = (b"BlockStored", b"BlockRemoved", b"AllBlocksCleared")
_KIND_TEXT = np.frombuffer(b"".join(_KINDS), np.uint8)
_KIND_ENDS = np.cumsum(np.array([0, *map(len, _KINDS)]))

_NIL = 0xC0
BEHIND = 0xC1
"""The byte behind a payload."""
_NUMBER_MAX = np.uint64(1 << 62)
_TOKEN_MAX = np.uint64(0xFFFF_FFFF)


@njit(forceinline=True)
def _big_endian(data: _Bytes, at: int, count: int) -> np.uint64:
    value = np.uint64(0)
    for place in range(at, at + count):
        value = value << np.uint64(8) | np.uint64(data[place])
    return value


@njit
def _unsigned(data: _Bytes, at: int) -> tuple[np.uint64, int]:
    """An int that is written without a sign, and where it ends; -1: it is something else."""
    first = np.int64(data[at])
    if first < 0x80:
        return np.uint64(first), at + 1
    if 0xCC <= first <= 0xCF:
        count = 1 << (first - 0xCC)
        if at + 1 + count < len(data):
            return _big_endian(data, at + 1, count), at + 1 + count
    return np.uint64(0), -1


@njit
def _integer(data: _Bytes, at: int) -> tuple[np.uint64, int]:
    """As `_unsigned`, or an int with a sign, of which these are the low 64 bits."""
    first = np.int64(data[at])
    if first >= 0xE0:
        return np.uint64(first - 256), at + 1
    if 0xD0 <= first <= 0xD3:
        count = 1 << (first - 0xD0)
        if at + 1 + count < len(data):
            shift = np.uint64(64 - 8 * count)
            return np.uint64(np.int64(_big_endian(data, at + 1, count) << shift) >> np.int64(shift)), at + 1 + count
    return _unsigned(data, at)


@njit
def _number(data: _Bytes, at: int) -> tuple[int, int]:
    """An unsigned int or nil, which is -1, and where it ends."""
    if data[at] == _NIL:
        return -1, at + 1
    value, end = _unsigned(data, at)
    if value > _NUMBER_MAX:
        return -1, -1
    return np.int64(value), end


@njit
def _header(data: _Bytes, at: int, short: int, long: int) -> tuple[int, int]:
    """The length of an array (0x90, 0xDC) or map (0x80, 0xDE), and where its items start."""
    first = np.int64(data[at])
    if short <= first < short + 16:
        return first - short, at + 1
    if (first == long or first == long + 1) and at + 1 + 2 * (first - long + 1) < len(data):
        count = 2 * (first - long + 1)
        return np.int64(_big_endian(data, at + 1, count)), at + 1 + count
    return 0, -1


@njit
def _text(data: _Bytes, at: int) -> tuple[int, int]:
    """Where a short text of ASCII starts and ends, both -1 for nil; the end is -2 if it is something else."""
    first = np.int64(data[at])
    start = at + 1
    if first == _NIL:
        return -1, -1
    if 0xA0 <= first < 0xC0:
        end = start + first - 0xA0
    elif first == 0xD9 and start < len(data):
        start += 1
        end = start + np.int64(data[at + 1])
    else:
        return -1, -2
    if end >= len(data):
        return -1, -2
    for place in range(start, end):
        if data[place] >= 0x80:
            return -1, -2
    return start, end


@njit
def _spelt(data: _Bytes, start: int, end: int, names: _Bytes, ends: _Row) -> int:
    """Which of the names this is, -1 if none."""
    for number in range(len(ends) - 1):
        if ends[number + 1] - ends[number] == end - start:
            at = 0
            while at < end - start and names[ends[number] + at] == data[start + at]:
                at += 1
            if at == end - start:
                return number
    return -1


@njit
def _skip(data: _Bytes, at: int) -> int:
    """Behind a value of a field that we do not know, if it is a plain one."""
    first = np.int64(data[at])
    if first in (_NIL, 0xC2, 0xC3):
        return at + 1
    if first == 0xCA or first == 0xCB:
        end = at + 5 + 4 * (first - 0xCA)
        return end if end < len(data) else -1
    if 0xA0 <= first < 0xC0 or first == 0xD9:
        return _text(data, at)[1]
    return _integer(data, at)[1]


@njit
def _hash(data: _Bytes, at: int) -> tuple[np.uint64, int]:
    """The low 64 bits of an engine hash, an int or a digest, and where it ends."""
    if data[at] != 0xC4:
        return _integer(data, at)
    end = at + 2 + np.int64(data[at + 1])
    if end >= len(data):
        return np.uint64(0), -1
    count = min(8, end - at - 2)
    return _big_endian(data, end - count, count), end


@njit
def _hashes(data: _Bytes, at: int, hashes: NDArray[np.uint64], filled: int) -> tuple[int, int]:
    """Put a list of engine hashes behind the `filled` first; how many are filled then, and where the list ends."""
    count, at = _header(data, at, 0x90, 0xDC)
    if at < 0 or count > len(data):
        return filled, -1
    for _ in range(count):
        if data[at] == 0xCF and at + 9 < len(data):  # nearly all; read without a call
            hashes[filled] = _big_endian(data, at + 1, 8)
            at += 9
        else:
            hashes[filled], at = _hash(data, at)
            if at < 0:
                break
        filled += 1
    return filled, at


@njit
def _tokens(data: _Bytes, at: int, tokens: NDArray[np.uint32], filled: int) -> tuple[int, int]:
    """As `_hashes`, of a list of token ids, which are 32 bits at most."""
    count, at = _header(data, at, 0x90, 0xDC)
    if at < 0 or count > len(data):
        return filled, -1
    for _ in range(count):
        wide = np.int64(data[at]) - 0xCD
        if (wide == 0 or wide == 1) and at + 5 < len(data):  # 16 or 32 bits, as most are; told apart without a branch
            high = np.uint32(data[at + 1]) << np.uint32(24) | np.uint32(data[at + 2]) << np.uint32(16)
            low = np.uint32(data[at + 3]) << np.uint32(8) | np.uint32(data[at + 4])
            tokens[filled] = (high | low) >> np.uint32(16 * (1 - wide))
            at += 3 + 2 * wide
        else:
            token, at = _unsigned(data, at)
            if at < 0 or token > _TOKEN_MAX:
                return filled, -1
            tokens[filled] = token
        filled += 1
    return filled, at


@njit
def _nils(data: _Bytes, at: int) -> tuple[int, int]:
    """How many nils a list holds, which holds nothing else; -1 for nil itself; and where it ends."""
    if data[at] == _NIL:
        return -1, at + 1
    count, at = _header(data, at, 0x90, 0xDC)
    if at < 0 or at + count >= len(data):
        return -1, -1
    for place in range(at, at + count):
        if data[place] != _NIL:
            return -1, -1
    return count, at + count


@njit
def _field(
    number: int, data: _Bytes, at: int, row: _Row, hashes: NDArray[np.uint64], tokens: NDArray[np.uint32]
) -> int:
    """Read the value of a field into the row of its event; where it ends, -1 if it is not plain."""
    if number < 0:
        return _skip(data, at)
    if row[SEEN] >> number & 1:
        return -1
    row[SEEN] |= 1 << number
    if number == _TOKENS:
        row[TOKENS_END], at = _tokens(data, at, tokens, row[TOKENS])
    elif number == _HASHES:
        row[FIRST_HASH] = at + 1  # of a short list
        row[HASHES_END], at = _hashes(data, at, hashes, row[HASHES])
    elif number == _PARENT:
        row[HAS_PARENT] = data[at] != _NIL
        if row[HAS_PARENT]:
            parent, at = _hash(data, at)
            row[PARENT] = np.int64(parent)
        else:
            at += 1
    elif number == _EXTRAS:
        row[EXTRAS], at = _nils(data, at)
    elif number in (_SIZE, _LORA, _GROUP, _WINDOW):
        value, at = _number(data, at)
        row[SIZE if number == _SIZE else LORA if number == _LORA else GROUP if number == _GROUP else WINDOW] = value
    else:
        start, end = _text(data, at)
        at = at + 1 if end == -1 else end
        if number == _TYPE:
            row[KIND] = _spelt(data, start, end, _KIND_TEXT, _KIND_ENDS)
        else:
            column = MEDIUM if number == _MEDIUM else ADAPTER if number == _ADAPTER else SPEC
            row[column], row[column + 1] = start, end
    return at


@njit
def _event(data: _Bytes, at: int, row: _Row, hashes: NDArray[np.uint64], tokens: NDArray[np.uint32]) -> int:
    """Read an event into its row; where it ends, -1 if it is not plain."""
    row[SEEN] = 0
    row[KIND] = -1
    row[HAS_PARENT] = 0
    for column in range(SIZE, SEEN):
        row[column] = -1
    count, start = _header(data, at, 0x80, 0xDE)
    if start >= 0:
        at = start
        for _ in range(count):
            start, end = _text(data, at)
            if end < 0:
                return -1
            at = _field(_spelt(data, start, end, _TEXT, _TEXT_ENDS), data, end, row, hashes, tokens)
            if at < 0:
                return -1
    else:
        count, at = _header(data, at, 0x90, 0xDC)
        for place in range(count):
            number = -1
            if row[KIND] <= STORED and place < len(_NAMES):
                number = place
            elif row[KIND] == REMOVED and place < len(_REMOVED_ORDER):
                number = _REMOVED_ORDER[place]
            at = _field(number, data, at, row, hashes, tokens)
            if at < 0:
                return -1
    if row[KIND] < 0:
        return -1
    required = _REQUIRED[row[KIND]]
    return at if row[SEEN] & required == required else -1


@njit
def _joins(data: _Bytes, row: _Row, last: _Row) -> bool:
    """Is this a removal of what was removed last, too: of the same medium and group?"""
    if row[KIND] != REMOVED or last[KIND] != REMOVED or row[GROUP] != last[GROUP]:
        return False
    start, end, other = row[MEDIUM], row[MEDIUM_END], last[MEDIUM]
    if end - start != last[MEDIUM_END] - other or (start < 0) != (other < 0):
        return False
    at = start
    while at < end and data[at] == data[other + at - start]:
        at += 1
    return at >= end


@njit
def _alike(data: _Bytes, at: int, start: int, end: int, place: int) -> bool:
    """Is what is at `at` the same as data[start:end], but for the 8 bytes of the one engine hash that is at `place`?"""
    if at + end - start >= len(data) or data[place] != 0xCF:
        return False
    for other in range(start, end):
        if data[at] != data[other] and not place < other <= place + 8:
            return False
        at += 1
    return True


@njit
def scan(
    data: _Bytes,
    events: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    tokens: NDArray[np.uint32],
    head: NDArray[np.uint64],
) -> int:
    """Read a payload, the last of `data` being BEHIND; returns how many rows of `events` it took, -1: it is not plain.

    Neighbouring removals are one. `head`: the bits of the clock, and the rank, or all ones if there is none.
    """
    fields, at = _header(data, 0, 0x90, 0xDC)
    if at < 0 or fields < 2 or fields > 3 or data[at] != 0xCB or at + 9 >= len(data):
        return -1
    head[0] = _big_endian(data, at + 1, 8)
    said, at = _header(data, at + 9, 0x90, 0xDC)
    if at < 0:
        return -1
    count, hashed, counted = 0, 0, 0
    start, end, first = 0, 0, 0  # of a removal of one block, the last event: a full cache tells of many, all alike
    for _ in range(said):
        if first and _alike(data, at, start, end, first):
            hashes[hashed] = _big_endian(data, at + first - start + 1, 8)
            hashed += 1
            events[count - 1, HASHES_END] = hashed
            at += end - start
            continue
        if count == len(events):
            return -1
        row = events[count]
        row[HASHES] = row[HASHES_END] = hashed
        row[TOKENS] = row[TOKENS_END] = counted
        start, end = at, _event(data, at, row, hashes, tokens)
        if end < 0:
            return -1
        at = end
        first = row[FIRST_HASH] if row[KIND] == REMOVED and row[HASHES_END] == hashed + 1 else 0
        hashed, counted = row[HASHES_END], row[TOKENS_END]
        if count and _joins(data, row, events[count - 1]):
            events[count - 1, HASHES_END] = hashed
        else:
            count += 1
    rank = -1
    if fields == 3:
        rank, at = _number(data, at)
    head[1] = np.uint64(rank)
    return count if at == len(data) - 1 else -1
