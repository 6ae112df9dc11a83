"""When a feed's predictions are doubted, when its pod's history is asked for again, and what proves them."""

from __future__ import annotations

from indexer.trust import LATE_BLOCKS, PROOFS, REPORTS, RESYNC_INTERVAL_S, WRONG_MIN, Trust

SIZE = 16


def _report(trust: Trust, times: int, predicted: int, reported: int) -> None:
    for _ in range(times):
        trust.compare(predicted, reported, SIZE)


def test_a_few_errors_are_no_doubt() -> None:
    """A block may come or go between a decision and the pod's look at its cache."""
    trust = Trust()
    for _ in range(20):
        _report(trust, WRONG_MIN // 2 - 1, 320, 0)
        _report(trust, REPORTS, 320, 320)
    assert not trust.doubted and not trust.wants_resync(1e9)


def test_an_error_that_persists_is_doubt() -> None:
    """Too high and too low are told apart, and both count."""
    for predicted, reported, verdict in ((320, 0, "over"), (0, 320, "under")):
        trust = Trust()
        _report(trust, WRONG_MIN - 1, predicted, reported)
        assert not trust.doubted
        assert trust.compare(predicted, reported, SIZE) == verdict
        assert trust.doubted and trust.wants_resync(0.0) and trust.error_tokens == reported - predicted


def test_late_events_are_neither_error_nor_proof() -> None:
    """A follow-up that overtakes the events of the answer before it hits a block or two more than was known."""
    trust = Trust()
    _report(trust, PROOFS - 1, 320, 320)
    _report(trust, REPORTS, 320, 320 + LATE_BLOCKS * SIZE)
    assert not trust.doubted and trust.proofs == 0
    assert trust.compare(320, 320 + (LATE_BLOCKS + 1) * SIZE, SIZE) == "under"


def test_the_history_is_asked_for_once_an_interval() -> None:
    """And only while the error goes on after it was read."""
    trust = Trust()
    _report(trust, REPORTS, 320, 0)
    assert trust.wants_resync(10.0) and not trust.wants_resync(10.0)
    trust.answered()
    assert trust.doubted, "only what comes now can show that it is mended"
    _report(trust, WRONG_MIN, 320, 0)
    assert not trust.wants_resync(10.0 + RESYNC_INTERVAL_S - 1)
    assert trust.wants_resync(10.0 + RESYNC_INTERVAL_S)


def test_doubt_ends_when_predictions_are_right_again() -> None:
    """Not with the first right one after a resync, but soon."""
    trust = Trust()
    _report(trust, REPORTS, 320, 0)
    assert trust.wants_resync(0.0)
    trust.answered()
    _report(trust, WRONG_MIN - 1, 320, 320)
    assert trust.doubted
    _report(trust, 1, 320, 320)
    assert not trust.doubted and not trust.wants_resync(1e9)


def test_only_hits_are_proofs() -> None:
    """That nothing of a new prompt is cached shows nothing; an error begins the count again."""
    trust = Trust()
    _report(trust, 10 * PROOFS, 0, 0)
    assert not trust.proven
    _report(trust, PROOFS - 1, 320, 320)
    _report(trust, 1, 336, 320)
    _report(trust, PROOFS - 1, 320, 320)
    assert not trust.proven
    _report(trust, 1, 320, 320)
    assert trust.proven


def test_another_publisher_begins_anew() -> None:
    """What the one before it reported is no reason to doubt it."""
    trust = Trust()
    _report(trust, REPORTS, 320, 0)
    trust.forget()
    assert not trust.doubted and not trust.wants_resync(1e9)
    _report(trust, WRONG_MIN - 1, 320, 0)
    assert not trust.doubted
