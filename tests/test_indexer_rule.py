"""The rule by which a pod reuses blocks: guessed, learned from what it reports, and called proven only when it is."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from indexer.match import MISS, Hit
from indexer.rule import DROPPING, FIRST_PROOFS, FURTHER_PROOFS, PLAIN, Calibration, Rule
from indexer.trust import Trust

SIZE = 16
LEARNED_BY = 32
"""Requests after which a rule must be right, or not called proven."""

Kind = Callable[[int, int, random.Random], int]
"""(leading blocks held, tokens of the prompt, chance) -> tokens that the pod reports as cached."""


def _by(rule: Rule) -> Kind:
    return lambda run, tokens, _: rule.blocks(Hit(run, run), tokens, SIZE) * SIZE


LEARNABLE: dict[str, Kind] = {
    "no drafter": _by(PLAIN),
    "the last block is computed again": _by(DROPPING),
    "the last two are": _by(Rule(drop=2)),
    "the whole prompt may be cached": _by(Rule(look=0)),
    "the whole prompt less a block": _by(Rule(drop=1, look=0)),
    "two blocks at a time": _by(Rule(unit=2)),
    "four blocks at a time": _by(Rule(unit=4)),
    "four blocks at a time, one of these dropped": _by(Rule(drop=1, unit=4)),
    "five blocks at a time": _by(Rule(unit=5)),
    "sixteen blocks at a time": _by(Rule(unit=16)),
}
HOPELESS: dict[str, Kind] = {
    "nothing is ever cached": lambda run, tokens, _: 0,
    "half of it": lambda run, tokens, _: run // 2 * SIZE,
    "seventeen blocks at a time": lambda run, tokens, _: min(run, (tokens - 1) // SIZE) // 17 * 17 * SIZE,
    "never more than ten blocks": lambda run, tokens, _: min(run, 10) * SIZE,
    "parts of blocks": lambda run, tokens, _: max(0, run * SIZE - 8),
    "anything": lambda run, tokens, chance: chance.randrange(run + 1) * SIZE,
}


def _requests(seed: int, count: int) -> list[tuple[int, int]]:
    """(leading blocks held, tokens): hits of all lengths, some of the whole prompt, some of none of it."""
    rng, asked = random.Random(seed), []
    for _ in range(count):
        tokens = rng.randrange(SIZE, 80 * SIZE) if rng.random() < 0.7 else rng.randrange(1, 80) * SIZE
        asked.append((rng.choice([0, tokens // SIZE, rng.randrange(tokens // SIZE + 1)]), tokens))
    return asked


def _run(kind: Kind, trust: Trust, seed: int, count: int) -> list[tuple[int, int, bool]]:
    """(foretold, reported, called proven) of each request."""
    rng, seen = random.Random(seed), []
    for run, tokens in _requests(seed, count):
        hit, cached = Hit(run, run) if run else MISS, kind(run, tokens, rng)
        foretold = trust.rule.blocks(hit, tokens, SIZE) * SIZE if trust.rule is not None and run else 0
        seen.append((foretold, cached, trust.rule is not None and trust.calibration.proven))
        trust.report(hit, tokens, cached, SIZE)
    return seen


@pytest.mark.parametrize("drafter", [False, True])
@pytest.mark.parametrize("kind", LEARNABLE)
def test_a_rule_is_learned(kind: str, drafter: bool) -> None:
    """Whatever /metrics made us guess: soon what is foretold is what the pod has, and that is proven."""
    for seed in range(5):
        trust = Trust()
        trust.guess(drafter, ahead=False, unsure=False)
        seen = _run(LEARNABLE[kind], trust, seed, 200)
        wrong = [number for number, (foretold, cached, _) in enumerate(seen) if foretold != cached]
        assert len(wrong) <= LEARNED_BY // 2 and (not wrong or wrong[-1] < 2 * LEARNED_BY), (seed, wrong)
        assert sum(proven and foretold > cached for foretold, cached, proven in seen) <= 2, "until it is noticed"
        assert all(proven for _, _, proven in seen[100:])


def test_what_seldom_shows_is_learned_when_it_does() -> None:
    """Of most prompts a few tokens more or less that are computed anyhow make no difference."""
    for seed in range(5):
        seen = _run(_by(Rule(look=4)), Trust(), seed, 400)
        assert sum(foretold != cached for foretold, cached, _ in seen) <= 8


@pytest.mark.parametrize("kind", HOPELESS)
def test_what_no_rule_explains_is_not_called_proven(kind: str) -> None:
    """A pod whose reports follow no rule: after 32 requests nothing is promised for sure that it has not."""
    for seed in range(5):
        trust = Trust()
        seen = _run(HOPELESS[kind], trust, seed, 300)
        wrong = [n for n, (foretold, cached, proven) in enumerate(seen) if foretold > cached and proven]
        assert len(wrong) <= 2 and all(number < LEARNED_BY for number in wrong), (seed, wrong)


def test_a_changed_rule_is_noticed() -> None:
    """After a restart that nobody noticed, and one that was."""
    for noticed in (False, True):
        trust = Trust()
        _run(LEARNABLE["no drafter"], trust, 1, 100)
        if noticed:
            trust.forget()
        seen = _run(LEARNABLE["the last block is computed again"], trust, 2, 100)
        assert all(foretold == cached for foretold, cached, _ in seen[LEARNED_BY:])
        assert trust.calibration.rule == DROPPING and trust.calibration.proven


def test_a_guess_is_proven_by_hits_alone() -> None:
    """A drafter makes the rule a guess; that nothing is cached of a new prompt proves nothing."""
    calibration = Calibration()
    assert calibration.proven and calibration.rule == PLAIN
    calibration.guess(drafter=True, ahead=False, unsure=False)
    assert not calibration.proven and calibration.rule == DROPPING
    for _ in range(2 * FURTHER_PROOFS):
        calibration.report(MISS, 500, 0, SIZE)
    assert not calibration.proven
    for hits in range(FIRST_PROOFS):
        assert not calibration.proven, hits
        calibration.report(Hit(10, 10), 500, 9 * SIZE, SIZE)
    assert calibration.proven
    calibration.guess(drafter=True, ahead=False, unsure=False)
    assert calibration.proven, "the same guess again changes nothing"
    calibration.guess(drafter=True, ahead=True, unsure=False)
    assert calibration.proven and calibration.rule == PLAIN, "its hashes tell all: nothing is dropped"


def test_single_errors_change_nothing() -> None:
    """A block may come or go between a decision and the pod's look."""
    trust = Trust()
    for _ in range(20):
        _run(LEARNABLE["no drafter"], trust, 3, 20)
        trust.report(Hit(10, 10), 500, 9 * SIZE, SIZE)
        assert trust.rule == PLAIN and trust.calibration.proven


def test_a_hit_that_ends_in_some_places_only() -> None:
    """Of several KV-cache groups: units are dropped of the blocks without a gap, then the place is looked for."""
    hit = Hit(8, 8, run=9, ends=((3, 4), (8, 8)))
    assert PLAIN.blocks(hit, 10 * SIZE, SIZE) == 8
    assert DROPPING.blocks(hit, 10 * SIZE, SIZE) == 8
    assert DROPPING.blocks(hit, 8 * SIZE + 1, SIZE) == 4
    assert PLAIN.blocks(hit, 3 * SIZE, SIZE) == 0
    calibration = Calibration()
    for _ in range(2):
        calibration.report(hit, 8 * SIZE + 1, 4 * SIZE, SIZE)
    assert calibration.rule == DROPPING


def test_a_pod_that_caches_nothing() -> None:
    """It says so, and nothing of it is believed."""
    trust = Trust()
    trust.told(caches=False)
    assert trust.rule is None
    trust.told(caches=True)
    assert trust.rule == PLAIN


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (PLAIN, "all whole blocks"),
        (DROPPING, "the last 1 computed again"),
        (Rule(1, 0, 4), "4 blocks at a time, the last 1 computed again, the last 0 tokens left out"),
    ],
)
def test_rules_in_words(rule: Rule, words: str) -> None:
    """For /pods and metrics."""
    assert str(rule) == words
