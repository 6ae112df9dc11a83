"""How likely what lies idle in a cache is asked for again, by how long it has done so: learned from what is asked for.

Of every request some leading tokens were asked for before, a while ago, and the rest never. Kept is how many tokens
came again after which time, in bins that grow, and how many were new; older ones count less. As many as are new are
asked for a last time: so of what is still idle after a time, those that come again later do, and so many never will.
"""

from __future__ import annotations

import math

_BINS = 88
_PER_DOUBLING = 4.0  # bins for each doubling of the time
_FIRST_S = 0.01  # the first one's end; the last one begins after 11 hours
_FORGET = 0.9995  # for each request: about the last 2,000 count
_WEIGHT_MAX = 1e100  # then all is weighed anew
_LEAN_TOKENS = 100_000.0  # that are taken to have come again after any time, before there were others


class Reuse:
    """See the module. At first, everything is taken to come again."""

    __slots__ = ("_again", "_chances", "_new", "_summed_up", "_weight")

    def __init__(self) -> None:
        self._again = [0.0] * (_BINS - 1) + [_LEAN_TOKENS]  # tokens that came again
        self._new = 0.0
        self._weight = 1.0  # of the next request: growing, where the older ones would shrink
        self._chances = [1.0] * (_BINS + 1)  # that what is as old as a bin's start comes again
        self._summed_up = True  # these are as of the newest request

    def learn(self, age_s: float, again: int, new: int) -> None:
        """A request has tokens that were asked for `age_s` before, and new ones."""
        if again:
            self._again[_bin(age_s)] += again * self._weight
        self._new += new * self._weight
        self._weight /= _FORGET
        self._summed_up = False
        if self._weight > _WEIGHT_MAX:
            self._again = [tokens / self._weight for tokens in self._again]
            self._new /= self._weight
            self._weight = 1.0

    def chance(self, age_s: float) -> float:
        """That something which is idle for so long is asked for once more; in [0, 1]."""
        if not self._summed_up:
            self._sum_up()
        number = _bin(age_s)
        return (self._chances[number] + self._chances[number + 1]) / 2

    def _sum_up(self) -> None:
        self._summed_up = True
        after = 0.0
        for number in range(_BINS - 1, -1, -1):
            after += self._again[number]
            left = after + self._new
            self._chances[number] = after / left if left else 0.0
        self._chances[_BINS] = 0.0


def _bin(age_s: float) -> int:
    if age_s <= _FIRST_S:
        return 0
    number = int(_PER_DOUBLING * math.log2(age_s / _FIRST_S))
    return number if number < _BINS else _BINS - 1
