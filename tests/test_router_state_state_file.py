"""Snapshots on disk: whole or not at all, one writer, and what is not right is set aside."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from indexer import snapshot
from indexer.index import PrefixIndex
from router.state.state_file import StateFile
from tests.fakes.index_walk import SPACE
from tests.fakes.snapshots import KEY, bytes_of, exact_feed

MANY = 1 << 20


def _data(made_at: float | None = None) -> bytes:
    index = PrefixIndex(SPACE, 1000)
    return bytes_of(index, {"a": exact_feed(index, "a")}, made_at=time.time() if made_at is None else made_at)


async def _pieces(data: bytes, fails: bool = False) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 100):
        yield data[at : at + 100]
    if fails:
        raise OSError(28, "No space left on device")


def _file(folder: Path, bytes_max: int = MANY) -> StateFile:
    return StateFile(str(folder / "deep" / "state"), KEY, bytes_max, 3600.0)


async def test_what_was_written_is_read(tmp_path: Path) -> None:
    """By whoever has the key; nobody else on this machine can read it."""
    file = _file(tmp_path)
    assert file.take() and file.take()
    await file.write(_pieces(_data()))
    found = file.read()
    assert found is not None and len(found.feeds) == 1
    assert file.path.stat().st_mode & 0o77 == 0
    assert {path.name for path in file.path.parent.iterdir()} == {"state", "state.lock"}


async def test_one_writes(tmp_path: Path) -> None:
    """Until it is closed."""
    first, second = _file(tmp_path), _file(tmp_path)
    assert first.take() and not second.take()
    first.close()
    assert second.take()


async def test_a_writing_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    """A full disk costs the new snapshot, and nothing else."""
    file = _file(tmp_path)
    file.take()
    await file.write(_pieces(_data()))
    with pytest.raises(OSError):
        await file.write(_pieces(_data(), fails=True))
    assert file.read() is not None and not file.path.with_name("state.new").exists()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("harm", ["damaged", "cut", "foreign", "empty", "old", "of the future", "large"])
async def test_what_is_not_right_is_set_aside(
    tmp_path: Path, harm: str, given: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning that says why; a file that was given by hand stays where it is."""
    file = _file(tmp_path, bytes_max=100 if harm == "large" else MANY)
    file.take()
    data = bytearray(_data({"old": time.time() - 7200, "of the future": time.time() + 7200}.get(harm)))
    if harm == "damaged":
        data[-20] ^= 1
    elif harm == "cut":
        del data[-1]
    elif harm in ("foreign", "empty"):
        data = bytearray(b"PK" * (200 if harm == "foreign" else 0))
    file.path.write_bytes(data)
    assert file.read(given) is None
    assert "is not used" in caplog.text
    aside = file.path.with_name("state.refused")
    assert (file.path if given else aside).read_bytes() == data and aside.exists() != given


async def test_no_file_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the very first start there is none; and what is no file can't be read."""
    assert _file(tmp_path).read() is None and not caplog.text
    (tmp_path / "deep" / "state").mkdir(parents=True)
    assert _file(tmp_path).read() is None and "can't be read" in caplog.text


async def test_a_pipe_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for what might come through it."""
    os.mkfifo(tmp_path / "state")
    assert StateFile(str(tmp_path / "state"), KEY, MANY, 3600.0).read() is None
    assert caplog.messages == [f"{tmp_path}/state can't be read: it is no file"]


def test_a_head_is_small() -> None:
    """It comes first, and says when."""
    assert len(snapshot.encoded(snapshot.Head(2**64 - 1, 1.5))) < 100
