"""Cycles are found when nobody waits; requests leave none; large bodies go back to the system."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from router.garbage import Collector


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collecting() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def a_cycle() -> weakref.ref[Node]:
    return weakref.ref(Node())


@pytest.mark.usefixtures("collecting")
@pytest.mark.parametrize(("in_flight", "found_after_s"), [(0, 300.0), (3, 3600.0)])
def test_everything_is_looked_at_when_nobody_waits_or_it_is_time(in_flight: int, found_after_s: float) -> None:
    """A cycle that was set aside stays until then, and no longer."""
    now = [50.0]
    collector = Collector(lambda: now[0])
    collector.start()
    gc.disable()
    try:
        cycle = a_cycle()
        for age_s in (5.0, 100.0, found_after_s - 1.0):
            now[0] = 50.0 + age_s
            collector.tick(in_flight)
            assert cycle() is not None
        now[0] = 50.0 + found_after_s
        collector.tick(in_flight)
        assert cycle() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("collecting")
def test_what_lives_is_set_aside() -> None:
    """A collection has only what is new to look at."""
    collector = Collector(lambda: 0.0)
    collector.start()
    kept = [[number] for number in range(1000)]
    before = gc.get_freeze_count()
    collector.tick(in_flight=1)
    assert gc.get_freeze_count() >= before + len(kept)


KEPT = """
from router.garbage import keep_little_memory
def taken():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmRSS"))
if {given}: keep_little_memory()
bodies, small = [bytearray(6 << 20)], []
bodies.clear()
before = taken()
for _ in range(16):
    bodies.append(bytearray(6 << 20))
    small.append(bytearray(4000))
bodies.clear()
print(taken() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_large_bodies_are_given_back() -> None:
    """When some have come and gone, and something small stays that came between them, their memory is the system's."""
    kept_mib = [
        int(subprocess.run([sys.executable, "-c", KEPT.format(given=given)], capture_output=True, check=True).stdout)
        for given in (True, False)
    ]
    assert kept_mib[0] < 2 and kept_mib[1] > 40


ARENAS = """
import ctypes, tempfile, threading
from router.garbage import keep_little_memory
if {given}: keep_little_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
threads, together = [], threading.Barrier(8)
def work():
    together.wait()
    libc.malloc(ctypes.c_size_t(4000))
    together.wait()
for _ in range(8):
    threads.append(threading.Thread(target=work))
    threads[-1].start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile("r") as told:
    file = ctypes.c_void_p(libc.fopen(told.name.encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    print(told.read().count("<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_threads_share_what_they_keep() -> None:
    """However many there are."""
    arenas = [
        int(subprocess.run([sys.executable, "-c", ARENAS.format(given=given)], capture_output=True, check=True).stdout)
        for given in (True, False)
    ]
    assert arenas[0] == 2 < arenas[1]


FREE = """
from router.garbage import Collector
def taken():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmRSS"))
now = 0.0
collector = Collector(lambda: now)
small = [bytes(4000) for _ in range(16_000)]
before = taken()
del small[:-1]
collector.tick({in_flight})
now = 300.0
collector.tick({in_flight})
print(before - taken())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_is_free_is_given_back() -> None:
    """When nobody waits, and it is time: what lies between pieces that live, too."""
    given_mib = [
        int(subprocess.run([sys.executable, "-c", FREE.format(in_flight=n)], capture_output=True, check=True).stdout)
        for n in (0, 1)
    ]
    assert given_mib[0] > 50 and given_mib[1] < 5
