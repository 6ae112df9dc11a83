"""Kinds of work, by their prompts."""

from __future__ import annotations

import pytest

from router.endpoints.answers import mix_answer
from scorer.mix import Mix
from tests.fakes.cores import NOBODY, SERVED, asked, core_of, route


def mix_of(*prompts: tuple[int, int, bool], times: int = 100) -> Mix:
    """Of prompts (tokens, known ones, whether it continues) that come again and again."""
    mix = Mix()
    for _ in range(times):
        for prompt in prompts:
            mix.learn(*prompt)
            mix.answered()
    return mix


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        ([(30_000, 29_000, True), (20_000, 3_000, False), (40_000, 39_000, True)], "agents"),
        ([(3_000, 2_500, True), (1_000, 300, False), (2_000, 1_500, True)], "chat"),
        ([(20_000, 19_000, False), (20_000, 18_000, False), (9_000, 0, False)], "documents"),
        ([(5_000, 0, False), (700, 100, False)], "batch"),
    ],
)
def test_it_is_recognised(prompts: list[tuple[int, int, bool]], name: str) -> None:
    """Once enough was seen."""
    assert mix_of(*prompts).name == name
    assert mix_of(*prompts, times=10).name == "unknown"


@pytest.mark.parametrize(("continued", "turns"), [(0, 0.0), (1, 1.0), (3, 3.0), (9, 9.0)])
def test_how_many_follow(continued: int, turns: float) -> None:
    """At first, four prompts are taken to follow each; then as many as do."""
    prompts = [(2_000, 0, False), *[(2_000, 1_000, True)] * continued]
    assert Mix().turns == mix_of(*prompts, times=4).turns == 4.0
    assert mix_of(*prompts, times=1000).turns == pytest.approx(turns, rel=0.1, abs=0.15)


def test_what_has_no_answer_yet_may_be_continued() -> None:
    """Sessions that begin while all pods are busy: none of them is over because nothing continues it."""
    mix = Mix()
    for _ in range(100):
        mix.learn(20_000, 0, False)
    assert mix.turns == pytest.approx(4.0)
    for _ in range(100):
        mix.answered()
    assert mix.turns < 0.5


def test_what_was_is_forgotten() -> None:
    """Work that changes is recognised as what it is now."""
    mix = mix_of((5_000, 0, False), times=2000)
    for _ in range(1500):
        mix.learn(2_000, 1_900, True)
    assert mix.name == "chat"


def test_it_is_told() -> None:
    """By what is sent to pods."""
    core = core_of(2)
    assert mix_answer(core) == {"name": "unknown", "continuing": 0.0, "shared": 0.0, "prompt_tokens": 0}
    for number in range(60):
        core.finish(route(core, asked(core, 1 + number, 512), NOBODY, float(number)), SERVED, number + 0.5)
    assert mix_answer(core) == {"name": "batch", "continuing": 0.0, "shared": 0.0, "prompt_tokens": 512}
