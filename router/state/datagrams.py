"""What a worker has in flight as datagrams for other hosts, each sealed by the key that all gateways have. Pure.

    magic, gateway, worker, its start, number, cells, sendings, uses, seal

A datagram counts if its seal is right and it is later than all that were heard of that worker: whatever a stranger
sends, or sends again, is dropped.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from hmac import compare_digest
from typing import NamedTuple

import numpy as np

from scorer.guests import CELL, SENDING, News, OwnRow
from scorer.uses import packed, unpacked

BYTES_MAX = 1400
"""Of a datagram: what nobody on the way takes apart."""
_HEAD = struct.Struct("<4sQHQQHH")
_MAGIC = b"wr2\n"
_SEAL = 16
_ROOM = BYTES_MAX - _HEAD.size - _SEAL
_AT_ONCE = 8
"""Datagrams for one time: enough for some 200 ranks, or 500 sendings."""


class Heard(NamedTuple):
    """`gateway` by its name; `order` grows with each datagram of one worker, also over its end."""

    gateway: int
    worker: int
    order: tuple[int, int]
    news: News


class Teller:
    """One worker's datagrams."""

    def __init__(self, key: bytes, gateway: int, worker: int, born: int) -> None:
        """`born`: when it was started; more than that of whoever had its place before."""
        self._key = key
        self._who = (gateway, worker, born)
        self._count = 0

    def datagrams(self, row: OwnRow, now: float) -> Iterator[bytes]:
        """What there is to tell; at least one."""
        for _ in range(_AT_ONCE):
            yield self._datagram(row.news(now, _ROOM))
            if not row.changed:
                return

    def _datagram(self, news: News) -> bytes:
        gateway, worker, born = self._who
        self._count += 1
        head = _HEAD.pack(_MAGIC, gateway, worker, born, self._count, len(news.cells), len(news.sendings))
        text = head + news.cells.tobytes() + news.sendings.tobytes() + b"".join(map(packed, news.uses))
        return text + _seal(self._key, text)


def heard(key: bytes, data: bytes) -> Heard | None:
    """What a datagram says; None: it is a stranger's."""
    if not _HEAD.size + _SEAL <= len(data) <= BYTES_MAX or not data.startswith(_MAGIC):
        return None
    text, seal = data[:-_SEAL], data[-_SEAL:]
    if not compare_digest(_seal(key, text), seal):
        return None
    _, gateway, worker, born, count, cells, sendings = _HEAD.unpack_from(text)
    middle = _HEAD.size + cells * CELL.itemsize
    end = middle + sendings * SENDING.itemsize
    if len(text) < end:
        return None
    try:
        uses = unpacked(text[end:])
    except ValueError:
        return None
    news = News(np.frombuffer(text[_HEAD.size : middle], CELL), np.frombuffer(text[middle:end], SENDING), uses)
    return Heard(gateway, worker, (born, count), news)


def _seal(key: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_SEAL, key=key).digest()
