"""Frames: every byte is as it was written, or nothing is believed."""

from __future__ import annotations

import pytest

from indexer.errors import SnapshotError
from indexer.frames import END, MAGIC, PAYLOAD_MAX, FrameReader, FrameWriter

KEY = b"key"


def _written(key: bytes = KEY) -> bytes:
    writer = FrameWriter(key)
    data = writer.begin() + writer.frame(1, b"one") + writer.frame(2, b"") + writer.frame(END, b"end")
    assert writer.nbytes == len(data)
    return data


def _read(data: bytes, key: bytes = KEY, piece: int = 1000) -> list[tuple[int, bytes]]:
    reader = FrameReader(key)
    found = [frame for at in range(0, len(data), piece) for frame in reader.take(data[at : at + piece])]
    reader.close()
    return found


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_what_was_written_is_read(piece: int) -> None:
    """However it comes."""
    assert _read(_written(), piece=piece) == [(1, b"one"), (2, b""), (END, b"end")]


def test_a_damaged_byte_at_each_place() -> None:
    """Is found, wherever it is."""
    data = _written()
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(SnapshotError):
            _read(damaged)


def test_truncated_at_each_place() -> None:
    """An end that comes too early is found."""
    data = _written()
    for end in range(len(data)):
        with pytest.raises(SnapshotError):
            _read(data[:end])


def test_what_it_is_not_is_said() -> None:
    """No snapshot, another version, another key, more behind it."""
    with pytest.raises(SnapshotError, match="no snapshot"):
        _read(b"something else that is long enough")
    with pytest.raises(SnapshotError, match="no snapshot"):
        _read(b"")
    with pytest.raises(SnapshotError, match="of version 999"):
        _read(MAGIC + (999).to_bytes(2, "little") + b"what may be")
    with pytest.raises(SnapshotError, match="another key"):
        _read(_written(b"other"))
    with pytest.raises(SnapshotError, match="behind its end"):
        _read(_written() + b"x")


def test_frames_in_another_order_are_not_believed() -> None:
    """Each is sealed together with all before it."""
    first, second = FrameWriter(KEY), FrameWriter(KEY)
    one, other = (writer.begin() + writer.frame(1, b"a") for writer in (first, second))
    last = first.frame(3, b"c")
    second.frame(2, b"b")
    with pytest.raises(SnapshotError):
        _read(other + second.frame(3, b"c"))
    assert [kind for kind, _ in FrameReader(KEY).take(one + last)] == [1, 3]


def test_a_length_that_is_not_true_costs_nothing() -> None:
    """It is refused before so many bytes are waited for."""
    writer = FrameWriter(b"")
    with pytest.raises(SnapshotError, match="damaged"):
        _read(writer.begin() + b"\x01" + (PAYLOAD_MAX + 1).to_bytes(4, "little"), b"")
