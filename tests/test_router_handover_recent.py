"""The requests of late: the newest within bounds, and what their weights come to."""

from __future__ import annotations

from dataclasses import replace

from router.handover.recent import Recent
from tests.fakes.cores import asked, core_of

PATH = "/v1/completions"


def test_the_newest_within_bounds() -> None:
    """What is over goes, the oldest first; the same prompt again is one, and the newest."""
    core = core_of()
    recent = Recent(10_000, 5_000, 60.0)
    for seed in range(5):
        recent.note(PATH, b"x" * 2_000, asked(core, seed, is_alone=True), seed)
    assert [one.at for one in recent.asked()] == [2.0, 3.0, 4.0]
    assert recent.nbytes == sum(one.nbytes for one in recent.asked()) <= 10_000
    recent.note(PATH, b"x" * 2_000, asked(core, 2, is_alone=True), 5.0)
    assert [one.at for one in recent.asked()] == [3.0, 4.0, 5.0]
    recent.note(PATH, b"x" * 5_001, asked(core, 9, is_alone=True), 6.0)
    assert len(recent) == 3, "too large"
    none = Recent(0, 5_000, 60.0)
    none.note(PATH, b"", asked(core, 1, is_alone=True), 0.0)
    assert (len(none), none.nbytes) == (0, 0)


def test_what_can_not_be_asked_again_is_not_kept() -> None:
    """One of several prompts, one that reads no cache, one without keys."""
    core = core_of()
    recent, alone = Recent(10_000, 5_000, 60.0), asked(core, 1, is_alone=True)
    for demand in (replace(alone, is_alone=False), replace(alone, reads_cache=False), replace(alone, keys={})):
        recent.note(PATH, b"{}", demand, 0.0)
    recent.note(PATH, b"{}", replace(alone, keys={16: alone.keys[16][:0]}), 0.0)
    assert len(recent) == 0


def test_weights_fade() -> None:
    """Each time counts one; half of it is left after the half-life."""
    core = core_of()
    recent, demand = Recent(10_000, 5_000, 60.0), asked(core, 1, is_alone=True)
    for now in (0.0, 60.0, 120.0):
        recent.note(PATH, b"{}", demand, now)
    (one,) = recent.asked()
    assert one.weight == 1.75 and recent.left_of(one, 180.0) == 0.875
