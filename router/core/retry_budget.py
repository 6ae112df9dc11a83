"""How many retries may be made: a share of live traffic and a small floor, so that an outage is not amplified. Pure.

The bucket gains `share` for every request, and is never fuller than one retry for each request that is live now,
above the floor: so all that a dying pod held can move at once, and what goes on failing is retried at `share`.
"""

from __future__ import annotations

FLOOR_S = 10.0  # the floor fills up again in this time, also where there is no traffic


class RetryBudget:
    """Retries that are left, as a number; time comes in as `now` (monotonic seconds)."""

    __slots__ = ("_floor", "_share", "_taken_at", "left")

    def __init__(self, share: float, floor: int) -> None:
        """`share` of requests may be retried in the long run, besides `floor` in every `FLOOR_S`."""
        self._share = share
        self._floor = floor
        self._taken_at = float("-inf")
        self.left = float(floor)

    def request(self, live: int) -> None:
        """A new request came while `live` others are on their way."""
        left = self.left + self._share
        most = self._floor + live if self._share else self._floor
        self.left = left if left < most else most

    def take(self, now: float) -> bool:
        """Take one retry; False where none is left."""
        if self.left < self._floor:
            filled = self.left + (now - self._taken_at) * self._floor / FLOOR_S
            self.left = min(float(self._floor), filled)
        self._taken_at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True
