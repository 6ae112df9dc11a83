"""What was counted of a feed: every verdict has its field, and operators read words."""

from __future__ import annotations

from typing import get_args

from indexer.feed_counts import FeedCounts
from indexer.stream import Stream
from indexer.trust import ReportVerdict


def test_every_verdict_has_its_field() -> None:
    """On batches as they come, and on predictions; each is told by its words, and what is 0 is not."""
    counts, stream = FeedCounts(), Stream[int](10, 1 << 20)
    for number, clock in ((0, 0.0), (1, 1.0), (1, 1.0), (4, 4.0), (5, 5.0)):
        counts.batch(stream.live(number, clock, number).verdict)
    counts.batch(Stream[int](10, 1 << 20).live(7, 7.0, 7).verdict)
    for verdict in get_args(ReportVerdict):
        counts.prediction(verdict)
    assert counts.told() == {
        "in_order": 2, "duplicate": 1, "gap": 1, "held": 1, "late": 1,
        "predictions equal": 1, "predictions over": 1, "predictions under": 1,
    }  # fmt: skip
