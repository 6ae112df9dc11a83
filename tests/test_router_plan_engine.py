"""A virtual pod: what a step takes, who is in it, and what is kept."""

from __future__ import annotations

import pytest

from router.plan.cache import BlockCache, NewBlocks, Pool, PooledCache, Taken
from router.plan.engine import Engine, Job
from router.plan.profiles import POD_PROFILES

PROFILE = POD_PROFILES["70b"]._replace(step_tokens=1000, kv_tokens=4000)
SIZE = 100


class Log:
    """What an engine told, and when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.admitted_jobs: list[tuple[object, Taken]] = []
        self.first: dict[object, float] = {}
        self.last: dict[object, float] = {}
        self.stored: dict[object, NewBlocks] = {}

    def admitted(self, number: int, job: Job, taken: Taken) -> None:
        self.admitted_jobs.append((job.ticket, taken))

    def began(self, number: int, job: Job) -> None:
        self.first[job.ticket] = self.now

    def ended(self, number: int, job: Job, stored: NewBlocks) -> None:
        self.last[job.ticket] = self.now
        self.stored[job.ticket] = stored


def run(engine: Engine, log: Log, until: float = float("inf")) -> None:
    while engine.busy and engine.ends_at <= until:
        log.now = engine.ends_at
        engine.step(log.now)


def job(name: str, tokens: int, answer: int, first: int = 1) -> Job:
    return Job(tokens, answer, range(first, first + tokens // SIZE), name)


def test_prompts_are_computed_in_chunks_and_answers_in_batches() -> None:
    """A prompt of two and a half steps has its first token with the third; each further token is a step."""
    log = Log()
    engine = Engine(0, PROFILE, BlockCache(4000, SIZE), log)
    assert engine.put(job("a", 2500, 3), 0.0)
    run(engine, log)
    first_s = 3 * PROFILE.step_s + PROFILE.prefill_s(0, 2500)
    assert log.first["a"] == pytest.approx(first_s)
    decode_s = 2 * PROFILE.decode_s(1, 2501.5)
    assert log.last["a"] == pytest.approx(first_s + decode_s)
    assert engine.prefill_s == pytest.approx(PROFILE.prefill_s(0, 2500))
    assert engine.in_flight == 0


def test_what_comes_interrupts_many_steps_that_are_one() -> None:
    """A request that comes while only answers run is in the next step."""
    log = Log()
    engine = Engine(0, PROFILE, BlockCache(4000, SIZE), log)
    engine.put(job("a", 100, 1000), 0.0)
    run(engine, log, 1.0)
    far = engine.ends_at
    assert engine.put(job("b", 100, 1, 50), 1.0)
    assert 1.0 <= engine.ends_at < 1.1 < far
    run(engine, log)
    assert log.first["b"] < 1.2 and log.last["a"] == pytest.approx(far, rel=0.01)


def test_slow_pods_take_longer() -> None:
    """By their factor, everything."""
    logs = [Log(), Log()]
    for log, slowness in zip(logs, (1.0, 2.0), strict=True):
        engine = Engine(0, PROFILE, BlockCache(4000, SIZE), log, slowness)
        engine.put(job("a", 2500, 10), 0.0)
        run(engine, log)
    assert logs[1].last["a"] == pytest.approx(2 * logs[0].last["a"])


def test_least_recently_used_blocks_go_and_a_prompts_last_first() -> None:
    """Reuse is of leading blocks, never of a whole prompt; blocks in use stay."""
    cache = BlockCache(1000, SIZE)
    assert cache.take([1, 2, 3], 300, 10) == Taken(0, [(0, 3)], [])
    assert cache.take([1, 2, 3], 300, 10) == Taken(200, [], [])
    cache.give_back([1, 2, 3], 300, 10)
    assert cache.take([11, 12, 13, 14, 15, 16, 17], 700, 1) is None, "the first three are in use"
    cache.give_back([1, 2, 3], 300, 10)
    taken = cache.take([11, 12, 13, 14, 15, 16, 17], 700, 100)
    assert taken == Taken(0, [(0, 7)], [3]) and cache.used_tokens == 800
    assert cache.held([1, 2, 3]) == 2


def test_what_was_said_stays() -> None:
    """Blocks that an answer filled are those of who continues it; the last of them goes first, before the prompt's."""
    log = Log()
    engine = Engine(0, PROFILE, cache := BlockCache(1000, SIZE), log)
    engine.put(Job(250, 210, [1, 2], "a", said=[3, 4]), 0.0)
    engine.put(Job(250, 210, [1, 2], "b", said=[3, 4]), 0.0)
    run(engine, log)
    assert (log.stored["a"], log.stored["b"]) == ([(2, 4)], []) and cache.used_tokens == 0
    taken = cache.take([1, 2, 3, 4, 5], 500, 10)
    assert taken == Taken(400, [(4, 5)], [])
    cache.give_back([1, 2, 3, 4, 5], 500, 10)
    assert cache.take([11, 12, 13, 14, 15, 16], 600, 100) == Taken(0, [(0, 6)], [5, 4])
    assert cache.held([1, 2, 3, 4, 5]) == 3


def test_pooled_caches_are_one() -> None:
    """What one pod computed, all have."""
    pool = Pool(10)
    caches = [PooledCache(1000, SIZE, pool) for _ in range(2)]
    assert caches[0].take([1, 2, 3], 350, 10) == Taken(0)
    assert caches[1].take([1, 2, 3], 350, 10) == Taken(300)
    assert caches[1].take([4], 700, 0) is None and caches[1].used_tokens == 360
    caches[1].give_back([1, 2, 3], 350, 10)
    assert caches[1].used_tokens == 0


def test_expectation_is_what_happens() -> None:
    """Without others, the time foretold is the time taken; with others, theirs is in it."""
    log = Log()
    engine = Engine(0, PROFILE, BlockCache(4000, SIZE), log)
    asked = job("a", 2500, 1)
    alone_s = engine.expected_s(asked, 0.0)
    engine.put(asked, 0.0)
    assert engine.expected_s(job("b", 500, 1, 50), 0.0) > alone_s
    run(engine, log)
    assert log.first["a"] == pytest.approx(alone_s)
