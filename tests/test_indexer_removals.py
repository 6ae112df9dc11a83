"""What one pod has removed of late."""

from __future__ import annotations

from indexer.removals import KEPT_MAX, Removals


def test_what_was_removed_since_is_known() -> None:
    """From a count on, the newest first; nothing where nothing was."""
    removals = Removals()
    removals.note([1, 2], 2)
    before = removals.count
    removals.note([3], 1)
    removals.note([4, 5], 1)  # one was not known
    assert removals.count == 4
    assert removals.since(before) == [4, 5, 3]
    assert removals.since(removals.count) == []


def test_what_is_too_long_ago_is_not_known() -> None:
    """Memory is bounded by blocks, but the newest batch is kept whole; nor is a count known that is yet to come."""
    removals = Removals()
    removals.note([0], 1)
    removals.note(list(range(2 * KEPT_MAX)), 2 * KEPT_MAX)
    assert removals.since(0) is None and removals.since(removals.count + 1) is None
    assert len(removals.since(1) or ()) == 2 * KEPT_MAX
