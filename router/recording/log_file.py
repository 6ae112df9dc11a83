"""A file of lines that several processes append to, in two halves: what is older is in the one beside it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_MODE = 0o600


class LogFile:
    """`path`, and `path.1` of what was written before: at most `bytes_max` in both, and never half a line."""

    def __init__(self, path: str, bytes_max: int) -> None:
        self.path = Path(path)
        self._half = bytes_max // 2
        self._descriptor: int | None = None

    def append(self, lines: bytes) -> bool:
        """Whole lines, after those of others; what alone is more than a half is left out. True: the file is new, and
        these are its first ones. Raises OSError."""
        if len(lines) > self._half:
            lines = lines[: lines.rfind(b"\n", 0, self._half) + 1]
        descriptor = self._locked()
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(lines) > self._half:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
                os.close(descriptor)
                self._descriptor, size = None, 0
                descriptor = self._locked()
            view = memoryview(lines)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        return not size

    def close(self) -> None:
        """May be opened again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _locked(self) -> int:
        """The file of this name, which is ours until it is unlocked; another process may have moved it meanwhile."""
        while True:
            if self._descriptor is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags, _MODE)
            descriptor = self._descriptor
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(descriptor), self.path.stat())
            except FileNotFoundError:
                same = False
            if same:
                return descriptor
            self.close()
