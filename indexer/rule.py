"""By which rule a pod reuses what it holds of a prompt: guessed, then proven or corrected by what the pod reports.

vLLM computes at least a prompt's last token again; with a drafter (EAGLE, MTP) often the last block that it found, too;
some caches reuse several blocks at a time. None of that is told. So the rule is looked for: of all `RULES`, in the
order of how likely they are, the one that explains most of the last reports.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.match import Hit

_REPORTS = 24
"""Reports that a rule is looked for in: a pod that is another one after a restart which nobody noticed is understood
before it has served 32."""
FIRST_PROOFS = 4
"""Hits in a row that a rule foretold prove it; twice as many each time that it was proven and turned out wrong."""
FURTHER_PROOFS = 12
"""So many, where it is a rule that no vLLM is known to have."""
PROOFS_MAX = 64
SIGNS = 2
"""Reports that another rule explains and ours does not, unless it explains all: a block may come or go in between."""
OVER_MAX = 2
"""Of the last `RECENT` hits, so many that were foretold too high disprove a rule."""
RECENT = 8


class Rule(NamedTuple):
    """`cached = max(0, min(leading blocks // unit, (tokens - look) // (unit * block size)) - drop) * unit` blocks.

    `drop`: units that are computed again though they were found. `look`: tokens at a prompt's end that are computed
    anyhow. `unit`: blocks that are reused together.
    """

    drop: int = 0
    look: int = 1
    unit: int = 1

    def blocks(self, hit: Hit, tokens: int, block_size: int) -> int:
        """Blocks of a prompt of so many tokens that are reused, where this much is held of it."""
        drop, look, unit = self
        limit = (tokens - look) // block_size
        if drop or unit > 1 or look > 1:
            limit = max(0, min(hit.leading, limit) // unit - drop) * unit
        return hit.usable(limit)

    @property
    def known(self) -> bool:
        """Has some vLLM been seen to have it?"""
        return self.unit == 1 and self.drop < 2 and self.look < 2

    def __str__(self) -> str:
        words = [f"{self.unit} blocks at a time"] if self.unit > 1 else []
        words += [f"the last {self.drop} computed again"] if self.drop else []
        words += [f"the last {self.look} tokens left out"] if self.look != 1 else []
        return ", ".join(words) or "all whole blocks"


PLAIN, DROPPING = Rule(), Rule(drop=1)

_UNITS = (1, 2, 4, 8, 16, 3, 6, 12, 5, 7, 9, 10, 11, 13, 14, 15, 24, 32, 48, 64, 128)
_LOOKS = (1, 0, 2, 3, 4, 5, 6, 7, 8)
RULES = sorted(
    (Rule(drop, look, unit) for unit in _UNITS for drop in range(4) for look in (_LOOKS if unit == 1 else _LOOKS[:2])),
    key=lambda rule: (not rule.known, (rule.unit > 1) + rule.drop + (rule.look != 1), _UNITS.index(rule.unit)),
)
_KNOWN = np.array([[rule.known] for rule in RULES])
_DROP, _LOOK, _UNIT = (np.array([[rule[place]] for rule in RULES]) for place in range(3))


_new = tuple.__new__


class _Report(NamedTuple):
    hit: Hit
    tokens: int
    cached: int
    block_size: int


class Calibration:
    """One pod's rule, and how sure it is."""

    def __init__(self) -> None:
        self.rule = PLAIN
        self.proven = True
        self._reports: deque[_Report] = deque(maxlen=_REPORTS)
        self._over: deque[bool] = deque(maxlen=RECENT)
        self._in_row = 0
        self._disproofs = 0
        self._guess = PLAIN
        self._sure = True  # of the guess
        self._before: tuple[Rule, int, float] | None = (
            None  # the rule, its disproofs, and when reports spoke against it
        )
        self._excused = False  # they were excused once, and nothing has shown since that this was right

    def guess(self, drafter: bool, ahead: bool, unsure: bool) -> None:
        """What others than reports tell of the pod: has it a drafter, whose tokens its hashes cover (`ahead`), and does
        something else make its rule unsure? Where that changes, its rule may."""
        guess = DROPPING if drafter and not ahead else PLAIN
        sure = not unsure and (ahead or not drafter)
        if (guess, sure) != (self._guess, self._sure):
            self._guess, self._sure = guess, sure
            self.forget()

    def forget(self) -> None:
        """It may be another pod now."""
        self._disproofs, self._before, self._excused = 0, None, False
        self.rule = self._guess
        self.mended()

    def mended(self) -> None:
        """What was wrong was not the rule: only what comes now counts."""
        self._reports.clear()
        self._over.clear()
        self._in_row = 0
        self.proven = self._sure and self.rule == self._guess

    def excuse(self, since: float) -> None:
        """What was off `since` then was not the rule's fault: it is what it was. Once, until it is seen right."""
        if self._before is not None and self._before[2] >= since:
            self.rule, self._disproofs, _ = self._before
            self.mended()
            self.proven = self._excused = True
        self._before = None

    def report(self, hit: Hit, tokens: int, cached: int, block_size: int, at: float = 0.0) -> tuple[int, bool]:
        """Of a prompt of so many `tokens`, of which `hit` was held (`at` then), so many were `cached`: how many had the
        rule foretold, and is there a new one?"""
        self._reports.append(_new(_Report, (hit, tokens, cached, block_size)))
        predicted = self.rule.blocks(hit, tokens, block_size) * block_size
        if cached == predicted:
            if hit.leading:
                self._over.append(False)
                self._in_row += 1
                unsettled = not self.proven or self._before is not None or self._excused
                if unsettled and self._in_row >= self._proofs:
                    self.proven, self._before, self._excused = True, None, False
            return predicted, False
        self._in_row = 0
        self._over.append(cached < predicted)
        if sum(self._over) >= OVER_MAX or not self._sure:
            self._disprove(at)
        return predicted, self._look(at)

    @property
    def learned(self) -> tuple[Rule, Rule, bool, bool, int]:
        """The rule, what was guessed before, whether either is sure, and how often a proven one turned out wrong."""
        return self.rule, self._guess, self._sure, self.proven, self._disproofs

    def relearn(self, rule: Rule, guess: Rule, is_sure: tuple[bool, bool], disproofs: int) -> bool:
        """Believe what was learned before, if there are such rules; `is_sure`: the guess, and the rule."""
        if rule not in RULES or guess not in RULES:
            return False
        self.rule, self._guess, self._disproofs = rule, guess, max(0, disproofs)
        self._sure, self.proven = is_sure
        return True

    @property
    def _proofs(self) -> int:
        """Hits in a row that prove the rule."""
        least = FIRST_PROOFS if self.rule.known else FURTHER_PROOFS
        return int(min(PROOFS_MAX, least << min(self._disproofs, 8)))

    def _disprove(self, at: float) -> None:
        if self.proven:
            self._before = None if self._excused else (self.rule, self._disproofs, at)
            self.proven = False
            self._disproofs += 1

    def _look(self, at: float) -> bool:
        """Take the rule that explains the most, if it explains more than ours."""
        right = self._explained()
        ours, best = int(right[RULES.index(self.rule)]), int(np.argmax(right))
        if right[best] < ours + (1 if right[best] == len(self._reports) else SIGNS):
            return False
        self._disprove(at)
        self.rule, self._in_row = RULES[best], 0
        self._over.clear()
        return True

    def _explained(self) -> NDArray[np.int64]:
        """How many of the reports each rule explains, shape (rules,)."""
        reports = self._reports
        size, tokens, cached = (np.array([report[place] for report in reports]) for place in (3, 1, 2))
        limits = np.minimum([report.hit.leading for report in reports], (tokens - _LOOK) // size)
        blocks = np.maximum(0, limits // _UNIT - _DROP) * _UNIT
        for column, report in enumerate(reports):
            if report.hit.ends is not None or report.hit.lower:
                usable = {limit: report.hit.usable(limit) for limit in set(blocks[:, column].tolist())}
                blocks[:, column] = [usable[limit] for limit in blocks[:, column].tolist()]
        held = np.array([report.hit.leading > 0 for report in reports])
        counts = _KNOWN | (cached > 0) | ~held  # that nothing is reused of what is held may have any cause
        right: NDArray[np.int64] = ((blocks * size == cached) & counts).sum(axis=1)
        return right
