"""How far what is known of a pod is to be trusted: what was foretold of it against what it reported itself.

The rule by which it reuses blocks is learned first (`indexer.rule`); what no rule explains is an error. A single one
proves nothing (a block may be evicted, or stored, between a decision and the pod's own look), so only what persists
counts: of the last reports, at least half are off by more than events may be late.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, TypeAlias

from indexer.learned import Learned
from indexer.match import Hit
from indexer.rule import Calibration, Rule

ReportVerdict: TypeAlias = Literal["equal", "over", "under"]
"""The prediction was right; too high: blocks are believed that are gone; too low: blocks are not known."""

REPORTS = 16
"""Reports that are looked at."""
WRONG_MIN = 8
"""Of those, so many wrong ones are an error that persists; it is over when there are fewer than half as many."""
LATE_BLOCKS = 2
"""A follow-up may overtake the events of the last blocks of the answer before it: no error, and no proof."""
PROOFS = 32
"""So many hits in a row, all foretold exactly, show that an unknown history no longer matters."""
RESYNC_INTERVAL_S = 60.0
"""Between two attempts to read a pod's history anew."""


class Trust:
    """The reports of one pod (rank), newest last.

    `rule`: how much it reuses of what it holds; None: what is known of it is not believed, or it caches nothing.
    """

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.rule: Rule | None = self.calibration.rule
        self.caches = True
        self.doubted = False  # an error persists
        self.proofs = 0  # hits in a row that were foretold exactly
        self.error_tokens = 0  # of the newest report: reported less predicted
        self._wrong: deque[bool] = deque(maxlen=REPORTS)
        self._doubted_at = float("-inf")  # when that was foretold which made it doubted
        self._resynced_at = float("-inf")
        self._unanswered = False  # an error persists and no resync was tried since it was found

    @property
    def proven(self) -> bool:
        return self.proofs >= PROOFS

    @property
    def learned(self) -> Learned:
        """See `Learned`."""
        return Learned(*self.calibration.learned, self.proofs)

    def relearn(self, learned: Learned) -> None:
        """Believe what reports have shown before."""
        rule, guess = Rule(*learned.rule), Rule(*learned.guess)
        if self.calibration.relearn(rule, guess, (learned.sure, learned.proven), learned.disproofs):
            self.proofs = max(0, learned.proofs)
            self._renew()

    def told(self, caches: bool) -> None:
        """The pod says whether it caches prefixes at all."""
        self.caches = caches
        self._renew()

    def guess(self, drafter: bool, ahead: bool, unsure: bool) -> None:
        """See `Calibration.guess`."""
        self.calibration.guess(drafter, ahead, unsure)
        self._renew()

    def report(self, hit: Hit, tokens: int, cached: int, block_size: int, at: float = 0.0) -> ReportVerdict:
        """The pod reports the cached tokens of one prompt of so many `tokens`, of which it held `hit` (`at` then)."""
        if not self.caches:
            return self.compare(0, cached, block_size, at)
        predicted, corrected = self.calibration.report(hit, tokens, cached, block_size, at)
        if corrected:
            self._wrong.clear()  # they were the rule's
        verdict = self.compare(predicted, cached, block_size, at)
        self._renew()
        return verdict

    def compare(self, predicted: int, reported: int, block_size: int, at: float = float("-inf")) -> ReportVerdict:
        """So many tokens were foretold (`at` then, if that is known) to be cached, and so many were."""
        error = self.error_tokens = reported - predicted
        self._wrong.append(abs(error) > LATE_BLOCKS * block_size)
        if error or self.doubted:
            self._look_at_wrong_ones(at)
        if error:
            self.proofs = 0
            return "under" if error > 0 else "over"
        if reported:  # that nothing is cached of a new prompt shows nothing
            self.proofs += 1
        return "equal"

    def _look_at_wrong_ones(self, at: float) -> None:
        """There may be enough of them, or few enough again."""
        wrong = self._wrong.count(True)
        if wrong >= WRONG_MIN:
            if not self.doubted:
                self._doubted_at = at
            self._unanswered = True
            self.doubted = True
        elif self.doubted and wrong < WRONG_MIN // 2 and len(self._wrong) >= WRONG_MIN:
            self.doubted = self._unanswered = False

    def wants_resync(self, now: float) -> bool:
        """Is it time to read the pod's history anew?"""
        if not self._unanswered or now < self._resynced_at + RESYNC_INTERVAL_S:
            return False
        self._resynced_at, self._unanswered = now, False
        return True

    def answered(self) -> None:
        """The pod's history was read, so what was wrong before is mended: only what comes now counts."""
        self._unanswered = False
        self._wrong.clear()
        if self.doubted:
            self.calibration.mended()

    def excuse(self, since: float | None) -> None:
        """Batches that were missing `since` then have come: what was off meanwhile is explained by that. None: none
        were."""
        if since is None:
            return
        if self.doubted and self._doubted_at >= since:
            self.doubted = self._unanswered = False
            self._wrong.clear()
        self.calibration.excuse(since)
        self._renew()

    def forget(self) -> None:
        """Another publisher: what its predecessor reported says nothing of it."""
        self.doubted = self._unanswered = False
        self.proofs = 0
        self._wrong.clear()
        self.calibration.forget()
        self._renew()

    def _renew(self) -> None:
        self.rule = self.calibration.rule if self.caches and not self.doubted else None
