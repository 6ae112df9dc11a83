"""How likely what is idle comes again, learned from what is asked for."""

from __future__ import annotations

import pytest

from scorer.reuse import Reuse


def test_at_first_everything_comes_again() -> None:
    """Nothing is given up lightly before anything is known."""
    assert Reuse().chance(0.0) == Reuse().chance(3600.0) == 1.0


def test_what_never_comes_again() -> None:
    """Prompts that are all new are worth nothing once they were served."""
    reuse = Reuse()
    chances = []
    for _ in range(400):
        reuse.learn(0.0, 0, 10_000)
        chances.append(reuse.chance(0.5))
    assert chances == sorted(chances, reverse=True) and chances[0] > 0.9 and chances[-1] < 0.05


def test_by_how_long_it_was_idle() -> None:
    """Half of the tokens come again, after a minute: before that it is as likely as ever, an hour later not at all."""
    reuse = Reuse()
    for _ in range(2000):
        reuse.learn(60.0, 10_000, 10_000)
    assert reuse.chance(1.0) == pytest.approx(0.5, abs=0.01) and reuse.chance(30.0) == pytest.approx(0.5, abs=0.01)
    assert reuse.chance(60.0) == pytest.approx(0.25, abs=0.01)
    assert reuse.chance(3600.0) < 0.01


def test_of_what_is_still_idle() -> None:
    """Most tokens come again at once; of those that did not, as many come after five minutes as never do."""
    reuse = Reuse()
    for _ in range(2000):
        reuse.learn(1.0, 90_000, 0)
        reuse.learn(300.0, 5_000, 5_000)
    assert reuse.chance(0.1) == pytest.approx(0.95, abs=0.01)
    assert reuse.chance(100.0) == pytest.approx(0.5, abs=0.01)
    assert reuse.chance(900.0) < 0.01


def test_a_change_is_learned_and_sums_stay_small() -> None:
    """What was long ago counts for little; after a million requests as well."""
    reuse = Reuse()
    for _ in range(600_000):
        reuse.learn(10.0, 1000, 0)
    assert reuse.chance(5.0) == pytest.approx(1.0)
    for _ in range(20_000):
        reuse.learn(1000.0, 1000, 1000)
    assert reuse.chance(100.0) == pytest.approx(0.5, abs=0.01)
