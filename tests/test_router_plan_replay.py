"""What a recording tells: when requests would come again, and how fast the pods were."""

from __future__ import annotations

import random

import pytest

from router.plan.profiles import POD_PROFILES
from router.plan.recording import Entry, RecordedFleet, RecordedPod, Recording
from router.plan.replay import as_recorded, factors_of, profile_of, rerun_of, steps_of

SIZE = 16
USUAL = POD_PROFILES["8b"]


def fleet(*factors: float, base_s: float = 0.05, position_s: float = 1e-8) -> RecordedFleet:
    pods = [RecordedPod(f"pod-{number}", 32_000, factor) for number, factor in enumerate(factors or (1.0, 1.0))]
    return RecordedFleet(pods, SIZE, base_s, 5e-4, position_s, "overlap")


def entry(at_ms: int, blocks: list[int], **more: float | int | str | None) -> Entry:
    given = {"pod": "pod-0", "ttft_s": 0.1, "took_s": 1.0, "cached": 0, **more}
    return Entry(at_ms, SIZE * len(blocks), int(given.pop("answer", 10) or 0), blocks, **given)  # type: ignore[arg-type]


def test_who_continues_waits_for_the_answer() -> None:
    """As long after it as it was recorded; others come by the clock."""
    entries = [entry(0, [1, 2]), entry(500, [7]), entry(3000, [1, 2, 3]), entry(9000, [1, 2, 3, 4])]
    found = rerun_of(Recording(entries, SIZE, fleet()))
    assert [time for time, _ in found.chains] == [0.0, 0.5] and found.waits == 2 and found.length_s == 9.0
    assert [turn.think_s for turn in found.chains[0][1]] == [0.0, 2.0, 5.0]


def test_who_did_not_wait_does_not() -> None:
    """Where many came before the answer, all come by the clock; unless it is said otherwise."""
    hasty = [entry(0, [1, 2]), entry(500, [1, 2, 3]), entry(5000, [1, 2, 3, 4])]
    recording = Recording(hasty, SIZE, fleet())
    assert [time for time, _ in rerun_of(recording).chains] == [0.0, 0.5, 5.0]
    assert [time for time, _ in rerun_of(recording, waits=True).chains] == [0.0, 0.5]
    patient = Recording([entry(0, [1, 2]), entry(3000, [1, 2, 3])], SIZE, fleet())
    assert len(rerun_of(patient, waits=False).chains) == 2 and len(rerun_of(patient).chains) == 1


def test_the_same_are_counted_however_fast_it_goes() -> None:
    """Those that came after the first fifth of the time when it was recorded."""
    entries = [entry(0, [1]), entry(1999, [2]), entry(2000, [3]), entry(2001, [1, 4]), entry(10_000, [5])]
    assert rerun_of(Recording(entries, SIZE, fleet())).counted_from == 2
    assert rerun_of(Recording(entries[:1], SIZE, fleet())).counted_from == 1, "there is no time after it"


@pytest.mark.parametrize(
    ("cached", "said"), [(64, [[3, 4], []]), (48, [[3, 4], []]), (32, [[], []]), (16, [[], []]), (None, [[], []])]
)
def test_what_was_said_is_found_where_it_was(cached: int | None, said: list[list[int]]) -> None:
    """Two blocks are whole with the answer, and who continued it found one of them at least. Who found none, or not
    even all of the prompt, tells of none."""
    first = entry(0, [1, 2, 9], answer=33)._replace(tokens=47)
    found = rerun_of(Recording([first, entry(3000, [1, 2, 3, 4, 5, 6], cached=cached)], SIZE, fleet()))
    assert [list(turn.said) for turn in found.chains[0][1]] == said


def test_a_fleet_that_has_told_nothing_yet() -> None:
    """Blocks are as large as the entries say."""
    entries = [entry(0, [1, 2], answer=40), entry(3000, [1, 2, 3, 4], cached=48)]
    found = rerun_of(Recording(entries, SIZE, fleet()._replace(block_size=0)))
    assert [list(turn.said) for turn in found.chains[0][1]] == [[3, 4], []]


def test_two_that_continue_one() -> None:
    """The first of them waits, the other one is another chain."""
    entries = [entry(0, [1, 2]), entry(3000, [1, 2, 3]), entry(4000, [1, 2, 9])]
    found = rerun_of(Recording(entries, SIZE, fleet()))
    assert [(time, len(turns)) for time, turns in found.chains] == [(0.0, 2), (4.0, 1)]


def test_what_came_to_nothing() -> None:
    """A bad request is none; one that was refused for want of room comes again, with a usual answer."""
    entries = [entry(0, [1], answer=30), entry(1, [2], status=400), entry(2, [3], status=429, answer=1)]
    turns = [turn for _, turns in rerun_of(Recording(entries, SIZE, fleet())).chains for turn in turns]
    assert [turn.answer for turn in turns] == [30, 30]


def test_pods_are_as_they_were_learned() -> None:
    """Speeds and capacity; how long steps take, from the answers; what is left of the base is on the way."""
    rng, entries, step_s, answer_s = random.Random(1), [], 0.008, 0.0002
    for number in range(400):
        at_ms, answer = number * 100, rng.randrange(40, 60)
        beside = answer * step_s / 0.1
        took_s = 0.1 + (answer - 1) * (step_s + answer_s * (1 + beside))
        entries.append(entry(at_ms, [number], answer=answer, took_s=took_s, cached=SIZE))
    recording = Recording(entries, SIZE, fleet())
    found = steps_of(recording)
    assert found is not None and found[0] + 5 * found[1] == pytest.approx(step_s + 5 * answer_s, rel=0.05)
    profile = profile_of(recording, USUAL)
    assert profile is not None and profile.token_s == 5e-4 and profile.kv_tokens == 32_000
    assert profile.prefill_s(0, 1000) == pytest.approx(1000 * (5e-4 + 1e-8 * 500))
    assert profile.front_s == pytest.approx(0.05 - 1.5 * profile.step_s)
    few = profile_of(Recording(entries[:5], SIZE, fleet(base_s=0.0, position_s=0.0)), USUAL)
    assert few is not None and (few.step_s, few.answer_s, few.front_s) == (USUAL.step_s, USUAL.answer_s, 0.0)
    assert few.prefill_s(0, 100_000) == pytest.approx(50.0, rel=1e-3)
    assert profile_of(Recording(entries, SIZE, None), USUAL) is None


def test_unequal_pods_stay_so() -> None:
    """Where they are further apart than speeds are measured."""
    assert list(factors_of(fleet(1.0, 2.0))) == [1.0, 2.0]
    assert not factors_of(fleet(1.0, 1.1)) and not factors_of(None)


def test_what_was_measured() -> None:
    """Of those that tell it; the first fifth of the time is not counted."""
    entries = [entry(0, [1, 2], ttft_s=9.0), entry(5000, [1, 2], cached=16, ttft_s=0.2), entry(6000, [1], ttft_s=None),
               entry(10_000, [1, 2], cached=None)]  # fmt: skip
    found = as_recorded(Recording(entries, SIZE, None), 1 / 4000)
    assert found is not None and (found.hit, found.p50, found.requests) == (0.5, 0.2, 1)
    assert as_recorded(Recording(entries[2:3], SIZE, None), 1 / 4000) is None
