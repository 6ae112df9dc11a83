"""What was counted of one feed, by field: a word that is mistyped is an error."""

from __future__ import annotations

from typing import Any

import msgspec

from indexer.stream import Verdict
from indexer.trust import ReportVerdict


def _word(field: str) -> str:
    return field if field == "in_order" else field.replace("_", " ")


class FeedCounts(msgspec.Struct, rename=_word, omit_defaults=True, gc=False):
    """Since the feed was joined: batches as they came, replays, blocks as events told of them, what else befell it."""

    in_order: int = 0
    duplicate: int = 0
    held: int = 0
    """Came while a replay ran."""
    late: int = 0
    """Came first, or after what a replay had brought already."""
    gap: int = 0
    restart: int = 0
    """Times that its publisher turned out to be a new one."""
    missed: int = 0
    """Batches that were missing at gaps."""
    replay_complete: int = 0
    replay_failed: int = 0
    forgotten: int = 0
    """Times that all was given up, as history was lost or another's."""
    resyncs: int = 0
    decode_errors: int = 0
    unknown_events: int = 0
    stored: int = 0
    removed: int = 0
    refused: int = 0
    ignored: int = 0
    hidden: int = 0
    orphans: int = 0
    unknown_removals: int = 0
    cleared: int = 0
    """Events that say that nothing is held."""
    predictions_equal: int = 0
    predictions_over: int = 0
    predictions_under: int = 0

    def batch(self, verdict: Verdict) -> None:
        """One came from the publisher."""
        setattr(self, verdict, getattr(self, verdict) + 1)

    def prediction(self, verdict: ReportVerdict) -> None:
        """One was checked by what the pod reported."""
        if verdict == "equal":
            self.predictions_equal += 1
        elif verdict == "over":
            self.predictions_over += 1
        else:
            self.predictions_under += 1

    def told(self) -> dict[str, Any]:
        """What is not 0, by its words."""
        return dict(msgspec.to_builtins(self))
