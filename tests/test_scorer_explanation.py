"""What prices are made of."""

from __future__ import annotations

import random

import pytest

from scorer.candidates import by_column
from scorer.explanation import parts
from scorer.pick import pick
from scorer.policies import POLICIES, Settings, policy_of
from tests.fakes.candidates import TOKEN_S, a_candidate


def test_a_price_is_the_sum_of_its_parts() -> None:
    """Whatever the candidates, and where prices are raised: what is raised is said for itself."""
    rng = random.Random(5)
    for _ in range(200):
        given = [
            a_candidate(
                number, rng.randrange(8001), requests=rng.randrange(9), backlog_s=rng.random(),
                token_s=rng.random() * 1e-3, evicted=rng.randrange(2) * rng.randrange(8000), again=rng.random(),
                fill=rng.random(), factor=0.5 + rng.random(),
            )
            for number in range(rng.randrange(1, 5))
        ]  # fmt: skip
        slowness = rng.choice([None, [1.0 + rng.random() for _ in given]])
        settings = Settings(beta=rng.random() * 8)
        picked = pick(by_column(given), policy_of(settings), 0, slowness)
        told = parts(picked, settings)
        assert told is not None
        for one, price in zip(told, picked.prices, strict=True):
            assert sum(one.values()) == pytest.approx(price)
            assert all(seconds >= -1e-9 for seconds in one.values())
            assert slowness or one["slow_start"] == pytest.approx(0.0)


def test_each_part_is_for_what_it_says() -> None:
    """Waiting, computing what is not held, the fleet's work, what is given up."""
    full = a_candidate(0, 6000, evicted=1000, again=1.0, fill=0.0, backlog_s=0.25)
    told = parts(pick(by_column([full]), policy_of(Settings()), 0), Settings())
    assert told is not None
    work_s = 2000 * TOKEN_S
    assert told[0] == pytest.approx(
        {"wait": 0.25, "prefill": work_s, "fleet": work_s, "eviction": 4 * 1000 * TOKEN_S, "slow_start": 0.0}
    )


def test_only_of_seconds() -> None:
    """Other policies' prices are no seconds."""
    for policy in POLICIES:
        settings = Settings(policy)
        told = parts(pick(by_column([a_candidate(0)]), policy_of(settings), 0), settings)
        assert (told is not None) == (policy in ("predicted-ttft", "approximate"))
