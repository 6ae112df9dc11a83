"""How old the oldest is that a pod's cache holds, from what it computed and how much it has."""

from __future__ import annotations

import random
from collections import OrderedDict

from scorer.recency import Recency


def idle_s(recency: Recency, held: int, now: float) -> float:
    """How long the oldest was idle of the tokens that the pod has; 0 where all is in use."""
    (_, oldest_s), *_ = recency.gives_up(held, 1.0, now)
    return oldest_s


def test_the_oldest_that_still_fits() -> None:
    """What the pod can't have any more is forgotten; what it has in part is the oldest."""
    recency = Recency()
    for owner in range(5):
        recency.begin(owner, 100, 100)
        recency.end(owner, True, float(owner))
    assert [idle_s(recency, held, 10.0) for held in (500, 401, 400, 250)] == [10.0, 10.0, 9.0, 8.0]
    assert recency.tokens == 300


def test_what_grows_is_one() -> None:
    """A prompt that continues another is used as a whole, and holds no more than it has tokens."""
    recency = Recency()
    recency.begin("a", 100, 100)
    recency.end("a", True, 0.0)
    recency.begin("b", 100, 100)
    recency.end("b", True, 1.0)
    recency.begin("a", 50, 120)
    assert idle_s(recency, 220, 5.0) == 4.0 and recency.tokens == 220
    recency.end("a", True, 6.0)
    assert idle_s(recency, 120, 7.0) == 1.0


def test_what_is_shared_belongs_to_who_used_it_last() -> None:
    """A context that was cut and goes on otherwise: what is left of the old one goes first; nothing counts twice."""
    recency = Recency()
    recency.begin("old", 1000, 1000)
    recency.end("old", True, 1.0)
    recency.begin("other", 500, 500)
    recency.end("other", True, 2.0)
    recency.begin("new", 300, 1000, "old", 700)
    assert recency.tokens == 1800
    recency.end("new", True, 3.0)
    recency.begin("newer", 100, 800, "old", 700)
    recency.end("newer", True, 4.0)
    assert recency.tokens == 1900
    assert [idle_s(recency, held, 10.0) for held in (1900, 1700, 1500, 1100, 600, 100)] == [
        9.0, 9.0, 8.0, 7.0, 7.0, 6.0,
    ]  # fmt: skip


def test_what_is_in_use_stays() -> None:
    """A pod in which all is in use has nothing that is idle."""
    recency = Recency()
    recency.begin("a", 100, 100)
    recency.begin("a", 0, 100)
    recency.end("a", True, 1.0)
    assert idle_s(recency, 10, 50.0) == 0.0 and recency.tokens == 100


def test_what_goes_next() -> None:
    """The longest idle first, of which some may be gone; what nobody can give up is in use, as if it were used now."""
    recency = Recency()
    for owner, tokens, ended in (("old", 100, 1.0), ("newer", 50, 5.0), ("newest", 300, 8.0), ("used", 70, 9.0)):
        recency.begin(owner, tokens, tokens)
        recency.end(owner, True, ended)
    recency.begin("used", 0, 70)
    assert recency.gives_up(520, 30.0, 10.0) == [(30.0, 9.0)]
    assert recency.gives_up(500, 120.0, 10.0) == [(80.0, 9.0), (40.0, 5.0)]
    assert recency.gives_up(430, 400.0, 10.0) == [(10.0, 9.0), (50.0, 5.0), (300.0, 2.0), (40.0, 0.0)]
    assert recency.gives_up(100, 10.0, 10.0) == [(10.0, 2.0)] and recency.tokens == 370


def test_of_many_small_ones_the_first_tell() -> None:
    """A pod with thousands of short prompts is not searched for all that it would give up."""
    recency = Recency()
    for owner in range(1000):
        recency.begin(owner, 1, 1)
        recency.end(owner, True, float(owner))
    parts = recency.gives_up(1000, 500.0, 1000.0)
    assert len(parts) < 50 and sum(tokens for tokens, _ in parts) == 500.0
    assert parts[0] == (1.0, 1000.0) and parts[-1][1] == parts[-2][1] > 900.0


def test_what_was_not_served_is_not_there() -> None:
    """Nothing was computed for it."""
    recency = Recency()
    recency.begin("a", 100, 100)
    recency.end("a", False, 1.0)
    assert recency.tokens == 0 and idle_s(recency, 0, 5.0) == 0.0


def test_as_a_cache_does() -> None:
    """Against a cache of whole prompts that forgets the least recently used: the idle time of its oldest."""
    rng, recency, cache, now = random.Random(1), Recency(), OrderedDict[int, float](), 0.0
    for _ in range(2000):
        now += rng.expovariate(1.0)
        owner = min(int(rng.expovariate(0.1)), 99)
        recency.begin(owner, 0 if owner in cache else 10, 10)
        recency.end(owner, True, now)
        cache[owner] = now
        cache.move_to_end(owner)
        if len(cache) > 20:
            cache.popitem(last=False)
        assert idle_s(recency, 10 * len(cache), now) == now - next(iter(cache.values()))


def test_what_requests_use() -> None:
    """However many use it, it is there once."""
    recency = Recency()
    for owner, tokens in (("idle", 1), ("used", 4000)):
        recency.begin(owner, tokens, tokens)
    recency.begin("used", 0, 4000)
    recency.end("used", True, 0.0)
    recency.end("idle", True, 1.0)
    assert recency.in_use == 4000 and recency.tokens == 4001
    recency.end("used", True, 10.0)
    assert recency.in_use == 0


def test_who_ends_twice() -> None:
    """Has nothing to give back."""
    recency = Recency()
    recency.begin("a", 100, 100)
    for _ in range(2):
        recency.end("a", False, 1.0)
    assert (recency.tokens, recency.in_use) == (0, 0)
