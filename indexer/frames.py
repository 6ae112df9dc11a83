"""A snapshot as bytes: frames one after the other, each sealed together with all before it.

    b"warmroute state\n", version, and then for each frame: kind, length, payload, seal

A seal is a digest of the frame and of the seal before it, under `key` where there is one. So a byte that is not as it
was written, a frame that is missing, doubled or in another place, and an end that came too early are all found; and
who does not have the key can't write one that is believed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from hmac import compare_digest

from indexer.errors import SnapshotError

MAGIC = b"warmroute state\n"
VERSION = 1
"""Counts changes of what is in a snapshot; another one's is not read: the pods' own histories are."""
END = 0
"""Kind of the last frame."""
PAYLOAD_MAX = 4 << 20
"""Bytes of a frame: so a length that is not true costs no memory."""

_BEGIN = MAGIC + VERSION.to_bytes(2, "little")
_FRAME = struct.Struct("<BI")
_SEAL = 16


class FrameWriter:
    """Makes frames; `nbytes` so far."""

    def __init__(self, key: bytes) -> None:
        """`key`: at most 64 bytes, empty for none."""
        self._key = key
        self._last = _BEGIN
        self.nbytes = 0

    def begin(self) -> bytes:
        """What comes first."""
        self.nbytes += len(_BEGIN)
        return _BEGIN

    def frame(self, kind: int, payload: bytes) -> bytes:
        """One frame, to be written next."""
        head = _FRAME.pack(kind, len(payload))
        self._last = _seal(self._key, self._last, head, payload)
        self.nbytes += len(head) + len(payload) + _SEAL
        return b"".join((head, payload, self._last))


class FrameReader:
    """Takes bytes as they come; raises `SnapshotError`. `ended`: the last frame came."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._last = b""
        self._kept = bytearray()
        self.ended = False

    def take(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(kind, payload) of each frame that is whole with these further bytes."""
        kept = self._kept
        kept += data
        if not self._last:
            if not _BEGIN.startswith(kept[: len(_BEGIN)]):
                other = bytes(kept[len(MAGIC) : len(_BEGIN)])
                raise SnapshotError(
                    f"it is of version {int.from_bytes(other, 'little')}, and {VERSION} is read here"
                    if kept.startswith(MAGIC)
                    else "it is no snapshot"
                )
            if len(kept) < len(_BEGIN):
                return
            del kept[: len(_BEGIN)]
            self._last = _BEGIN
        at = 0
        while len(kept) - at >= _FRAME.size and not self.ended:
            kind, length = _FRAME.unpack_from(kept, at)
            if length > PAYLOAD_MAX:
                raise SnapshotError("it is damaged")
            end = at + _FRAME.size + length
            if len(kept) < end + _SEAL:
                break
            head, payload = bytes(kept[at : at + _FRAME.size]), bytes(kept[at + _FRAME.size : end])
            seal = _seal(self._key, self._last, head, payload)
            if not compare_digest(seal, bytes(kept[end : end + _SEAL])):
                raise SnapshotError("it is damaged, or sealed by another key")
            self._last, at, self.ended = seal, end + _SEAL, kind == END
            yield kind, payload
        del kept[:at]
        if self.ended and kept:
            raise SnapshotError("there is something behind its end")

    def close(self) -> None:
        """Nothing more comes."""
        if not self.ended:
            raise SnapshotError("it ends too early" if self._last else "it is no snapshot")


def _seal(key: bytes, last: bytes, head: bytes, payload: bytes) -> bytes:
    digest = hashlib.blake2b(last, digest_size=_SEAL, key=key)
    digest.update(head)
    digest.update(payload)
    return digest.digest()
