"""What a process may have of memory, as a control group or the machine says."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.metrics.process import MemoryUse, Process, memory

_MIB = 1 << 20


def _system(root: Path, files: dict[str, str]) -> Path:
    """A machine of 1 GiB, with these files more; this process has 100 pages."""
    files = {"proc/meminfo": f"MemTotal: {1024 * 1024} kB\n", "proc/self/statm": "500 100 1 1 0 1 0\n"} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


_V2, _V1 = "sys/fs/cgroup/memory", "sys/fs/cgroup/memory/memory"


@pytest.mark.parametrize(
    ("files", "used", "limit"),
    [
        ({}, None, 1024 * _MIB),
        ({f"{_V2}.max": "max\n", f"{_V2}.current": f"{9 * _MIB}"}, None, 1024 * _MIB),
        (
            {
                f"{_V2}.max": f"{64 * _MIB}\n",
                f"{_V2}.current": f"{50 * _MIB}\n",
                f"{_V2}.stat": f"anon 1\ninactive_file {20 * _MIB}\n",
            },
            30 * _MIB,
            64 * _MIB,
        ),
        (
            {
                f"{_V1}.limit_in_bytes": f"{64 * _MIB}\n",
                f"{_V1}.usage_in_bytes": f"{50 * _MIB}\n",
                f"{_V1}.stat": f"total_inactive_file {20 * _MIB}\n",
            },
            30 * _MIB,
            64 * _MIB,
        ),
        ({f"{_V1}.limit_in_bytes": f"{(1 << 63) - 4096}\n", f"{_V1}.usage_in_bytes": "7\n"}, None, 1024 * _MIB),
    ],
    ids=["no group", "no limit", "version 2", "version 1", "no limit in version 1"],
)
def test_what_counts_against_which_limit(tmp_path: Path, files: dict[str, str], used: int | None, limit: int) -> None:
    """Of the control group where that has a limit, without what the kernel gives back; else of this process alone."""
    found = memory(_system(tmp_path, files))
    assert (found.used, found.limit) == (found.resident if used is None else used, limit)
    assert found.resident > 0


def test_its_series() -> None:
    """By the names of Prometheus' clients; the build is one series."""
    families = {
        family.name: family
        for family in Process("1.2", True, lambda: MemoryUse(7, 8, 9)).collect()
        if family is not None
    }
    (build,) = families["warmroute_build_info"].samples
    assert build[0].startswith('warmroute_build_info{native="true",python="3.') and build[0].endswith('version="1.2"}')
    assert families["process_resident_memory_bytes"].samples == [("process_resident_memory_bytes", 7)]
    assert families["process_cpu_seconds_total"].samples[0][1] > 0
    assert families["process_open_fds"].samples[0][1] > 2
    used, limit = families["warmroute_memory_bytes"].samples
    assert (used[1], limit[1]) == (8, 9)
