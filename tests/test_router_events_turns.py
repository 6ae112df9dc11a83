"""How feeds share the loop: one stretch in each of its turns, fair by the time taken. The clock is a made-up one."""

from __future__ import annotations

import asyncio
import logging

import pytest
import zmq

from router.events.turns import Turns, shared

SLICE_S = 0.001


class Clock:
    """Stands still, but for the work of sources."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """A source: `pieces` pieces of work (None: without end), each of which takes `piece_s`."""

    def __init__(self, clock: Clock, piece_s: float, pieces: int | None = None) -> None:
        self.credit = 0.0
        self.done = 0
        self._clock = clock
        self.piece_s = piece_s
        self._pieces = pieces

    def step(self) -> bool:
        if self.done == self._pieces:
            return False
        self.done += 1
        self._clock.now += self.piece_s
        return True

    @property
    def spent_s(self) -> float:
        return self.done * self.piece_s


async def _turn(turns: Turns, *workers: Worker) -> None:
    """One turn of the loop."""
    for worker in workers:
        turns.wake(worker)
    await asyncio.sleep(0)


@pytest.mark.parametrize("count", [1, 200, 1024])
async def test_one_stretch_for_all(count: int) -> None:
    """However many have work, one turn of the loop takes one slice, and the piece in which it is over."""
    clock = Clock()
    turns, workers = Turns(SLICE_S, clock), [Worker(clock, 30e-6) for _ in range(count)]
    for _ in range(20):
        before = clock.now
        await _turn(turns, *workers)
        assert 0 < clock.now - before <= SLICE_S + 30e-6
    for worker in workers:
        turns.forget(worker)


async def test_fair_by_time() -> None:
    """One whose pieces are large gets no more of the loop than each of those beside it."""
    clock = Clock()
    turns, large, small = Turns(SLICE_S, clock), Worker(clock, 5e-3), [Worker(clock, 20e-6) for _ in range(4)]
    while clock.now < 103.0:
        await _turn(turns, large, *small)
    assert all(0.15 < worker.spent_s / 3.0 < 0.25 for worker in (large, *small))
    for worker in (large, *small):
        turns.forget(worker)


async def test_who_has_paid_little_is_not_ahead() -> None:
    """Being idle earns nothing: after it, others are not kept waiting."""
    clock = Clock()
    turns, busy, idle = Turns(SLICE_S, clock), Worker(clock, 20e-6), Worker(clock, 20e-6)
    while clock.now < 101.0:
        await _turn(turns, busy)
    before = busy.done
    while clock.now < 102.0:
        await _turn(turns, busy, idle)
    assert 0.9 < idle.done / (busy.done - before) < 1.1
    for worker in (busy, idle):
        turns.forget(worker)


async def test_the_first() -> None:
    """What can't wait is done before all else."""
    clock = Clock()
    turns, other, first = Turns(SLICE_S, clock), Worker(clock, 100e-6), Worker(clock, 100e-6, pieces=25)
    turns.wake(other)
    turns.wake(first, first=True)
    while first.done < 25:
        assert other.done == 0
        await asyncio.sleep(0)
    turns.forget(first)
    turns.forget(other)


async def test_work_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """It is said, and ends neither its source nor the others."""
    clock = Clock()

    class Failing(Worker):
        def step(self) -> bool:
            super().step()
            if self.done < 3:
                raise RuntimeError("no")
            return False

    turns, failing, other = Turns(SLICE_S, clock), Failing(clock, 20e-6), Worker(clock, 20e-6, pieces=3)
    with caplog.at_level(logging.ERROR, "warmroute.feeds"):
        await _turn(turns, failing, other)
        await asyncio.sleep(0)
    assert (failing.done, other.done, len(caplog.records)) == (3, 3, 2)


async def test_who_has_gone() -> None:
    """A source that is forgotten, even in its own step, does nothing more."""
    clock = Clock()
    turns = Turns(SLICE_S, clock)

    class Leaving(Worker):
        def step(self) -> bool:
            turns.forget(self)
            return super().step()

    leaving, other = Leaving(clock, SLICE_S), Worker(clock, 20e-6, pieces=1)
    await _turn(turns, leaving, other)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (leaving.done, other.done) == (1, 1)


def test_shared_by_context() -> None:
    """Whoever has the same context has the same turns; of each kind there is one."""
    with zmq.Context() as one, zmq.Context() as other:
        assert shared(one, Turns(1.0)) is shared(one, Turns(2.0)) is not shared(other, Turns(1.0))
        assert shared(one, [1]) == shared(one, [2]) == [1]
