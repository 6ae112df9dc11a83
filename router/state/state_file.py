"""Snapshots on disk: written whole or not at all, by one gateway at a time; what is not right is set aside."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import AsyncIterator
from io import BufferedWriter
from pathlib import Path

from indexer.errors import SnapshotError
from indexer.frames import FrameReader
from indexer.snapshot import Snapshot

log = logging.getLogger("warmroute.state")

_PIECE = 1 << 20
_MODE = 0o600  # it has the seed of our keys
_FUTURE_S = 300.0  # clocks may differ by so much


class StateFile:
    """One file, `FILE.lock` beside it, `FILE.new` while it is written, and `FILE.refused` if it was not right."""

    def __init__(self, path: str, key: bytes, bytes_max: int, age_max_s: float) -> None:
        """`key`: see `FrameReader`."""
        self.path = Path(path)
        self._key = key
        self._bytes_max = bytes_max
        self._age_max_s = age_max_s
        self._lock: int | None = None

    def take(self) -> bool:
        """Be the one who writes; False: another gateway is. Raises OSError."""
        if self._lock is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    def close(self) -> None:
        """Another one may write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def write(self, pieces: AsyncIterator[bytes]) -> None:
        """Replace what is there by these bytes, once all of them are on disk. Raises OSError."""
        new = self._beside("new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)
                await asyncio.to_thread(_to_disk, file)
            await asyncio.to_thread(self._replace, new)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def read(self, given: bool = False) -> Snapshot | None:
        """What it holds; None: there is no file, or not a right one. That is moved out of the way with a warning,
        unless it was `given` by hand. Takes as long as it takes; never raises for what is in the file."""
        try:
            return self._read()
        except FileNotFoundError:
            if given:
                log.warning("%s: there is no such file", self.path)
        except SnapshotError as error:
            log.warning("%s is not used: %s", self.path, error)
            if not given:
                self._set_aside()
        except (OSError, MemoryError) as error:
            log.warning("%s can't be read: %s", self.path, getattr(error, "strerror", None) or error)
        return None

    def _read(self) -> Snapshot:
        reader, found = FrameReader(self._key), Snapshot()
        with open(self.path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no file", str(self.path))
            if (size := status.st_size) > self._bytes_max:
                raise SnapshotError(f"it has {size} bytes, more than state.size_max")
            while piece := file.read(_PIECE):
                for kind, payload in reader.take(piece):
                    found.take(kind, payload)
                    self._check_age(found)
        reader.close()
        found.check()
        return found

    def _check_age(self, found: Snapshot) -> None:
        age_s = time.time() - (found.head.made_at if found.head is not None else 0.0)
        if not -_FUTURE_S <= age_s <= self._age_max_s:
            raise SnapshotError(f"it is {age_s:.0f} s old, and state.age_max is {self._age_max_s:g} s")

    def _set_aside(self) -> None:
        aside = self._beside("refused")
        try:
            self.path.replace(aside)
        except OSError as error:
            log.warning("%s can't be set aside: %s", self.path, error.strerror)
        else:
            log.warning("%s was set aside as %s", self.path, aside)

    def _replace(self, new: Path) -> None:
        new.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{what}")


def _at_once(path: str, flags: int) -> int:
    """Without waiting for whoever writes into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _to_disk(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())
