"""Families of this process, by the names that Prometheus' own clients use, and of the memory that it may have."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from router.metrics.families import Steps, counter, gauge, gauges, labels

_PAGE = resource.getpagesize()
_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
_USAGES = ("sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory/memory.usage_in_bytes")
_STATS = ("sys/fs/cgroup/memory.stat", "sys/fs/cgroup/memory/memory.stat")
_CACHE = ("inactive_file", "total_inactive_file")  # what the kernel gives back by itself
_UNLIMITED = 1 << 60  # version 1 of control groups has a number for it


class MemoryUse(NamedTuple):
    """Bytes: what this process has, what counts against the limit, and that."""

    resident: int
    used: int
    limit: int


def memory(root: Path = Path("/")) -> MemoryUse:
    """As Linux tells it: of the control group where that has a limit, else of the process and the machine."""
    resident = _resident(root)
    machine = _number_after(root / "proc/meminfo", "MemTotal:", 1024)
    for limit_file, usage_file, stat_file in zip(_LIMITS, _USAGES, _STATS, strict=True):
        limit = _number(root / limit_file)
        if limit is None or limit >= min(_UNLIMITED, machine or _UNLIMITED):
            continue
        usage = _number(root / usage_file)
        if usage is None:
            return MemoryUse(resident, resident, limit)
        cache = next((n for name in _CACHE if (n := _number_after(root / stat_file, name, 1)) is not None), 0)
        return MemoryUse(resident, max(resident, usage - cache), limit)
    return MemoryUse(resident, resident, machine or 0)


class Process:
    """Its series. `version`: of this distribution."""

    def __init__(self, version: str, native: bool, look: Callable[[], MemoryUse] = memory) -> None:
        self._build = labels(native=str(native).lower(), python=platform.python_version(), version=version)
        self._look = look
        self._started = time.time()

    @property
    def memory(self) -> MemoryUse:
        """As of now."""
        return self._look()

    def collect(self) -> Steps:
        """See the module."""
        spent, memory_now = resource.getrusage(resource.RUSAGE_SELF), self._look()
        text = "1; which version this is, on which Python, and whether its hot path is machine code."
        yield gauge(f"warmroute_build_info{self._build}", text, 1)._replace(name="warmroute_build_info")
        yield counter("process_cpu_seconds_total", "CPU time, of user and system.", spent.ru_utime + spent.ru_stime)
        yield gauge("process_resident_memory_bytes", "Resident memory.", memory_now.resident, "sum")
        yield gauge("process_virtual_memory_bytes", "Virtual memory.", _pages(Path("/"), 0), "sum")
        yield gauge("process_start_time_seconds", "When it was started, since the epoch.", self._started, "min")
        yield gauge("process_open_fds", "Open files.", _open_files(), "sum")
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield gauge("process_max_fds", "Files that may be open.", most if most >= 0 else float("inf"), "sum")
        sizes = {"used": memory_now.used, "limit": memory_now.limit}
        yield gauges("warmroute_memory_bytes", "What counts against the memory limit, and that limit.", "kind", sizes)
        yield None


def _resident(root: Path) -> int:
    return _pages(root, 1) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _pages(root: Path, place: int) -> int:
    try:
        return int((root / "proc/self/statm").read_text().split()[place]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max" is no number
        return None


def _number_after(file: Path, name: str, unit: int) -> int | None:
    try:
        for line in file.read_text().splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
