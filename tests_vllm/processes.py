"""Real processes: each in a session of its own with its log in a file, and gone with all its children when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

_STOP_S = 20.0  # a server that was told to end may take so long
_TRACKERS_S = 5.0
_POLL_S = 0.1
_LOG_TAIL_BYTES = 6000


class Process:
    """A process and whatever it starts; `environment` is all that it sees of ours."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                list(command), env=dict(environment), cwd=log.parent, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def stop(self) -> None:
        """Ask it to end, wait, and kill what is left of its group."""
        if self.alive:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to all of the group; returns when none is left.

        Python's resource trackers have a moment to notice and to remove the shared memory that the others left.
        """
        group = self._popen.pid
        for member in sorted(_members(group)):  # the server before its engine: no last answers
            if not _is_tracker(member):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
        self._popen.wait(_STOP_S)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not _members(group), _TRACKERS_S, "a tracker goes on")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        wait_until(lambda: not _members(group), _STOP_S, f"{self.log.stem}: a process outlived its group")

    def tail(self) -> str:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")


def wait_until(holds: Callable[[], bool], timeout_s: float, otherwise: str) -> float:
    """Seconds until it held; raises `TimeoutError` with what is said otherwise."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"{otherwise} ({timeout_s:g} s)")
        time.sleep(_POLL_S)
    return time.monotonic() - began


def answers(url: str) -> bool:
    """Whether a GET is answered with success."""
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _members(group: int) -> list[int]:
    """The processes of a group that still run; zombies, which their parent has not noticed yet, do not."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, member_of = path.read_text().rpartition(")")[2].split()[:3]
            if int(member_of) == group and state not in "ZX":
                members.append(int(path.parent.name))
    return members


def _is_tracker(member: int) -> bool:
    with contextlib.suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{member}/cmdline").read_bytes()
    return False
