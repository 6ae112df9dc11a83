"""Since when batches of a feed were missing or on their way: what reports said meanwhile is explained by that."""

from __future__ import annotations

LATE_S = 1.0
"""A batch that took so much longer than the fastest one came late: the feed was cut, or a queue was full."""


class Absence:
    """Of one publisher. Times are the router's, in seconds."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._filled = False
        self._fastest_s = float("inf")  # between the publisher's clock and ours

    def began(self, since: float | None) -> None:
        """Batches may be missing `since` then (None: since ever, which explains nothing); the first time counts."""
        if self._since is None:
            self._since = since

    def filled(self) -> None:
        """A batch came by a replay that had not come by itself."""
        self._filled = True

    def ended(self) -> float | None:
        """All that can be had is there. Since when something was missing, if so."""
        since = self._since if self._filled else None
        self._since, self._filled = None, False
        return since

    def late(self, clock: float, now: float) -> float | None:
        """A batch of the publisher's `clock` came; since when it was on its way, if that was long."""
        took_s = now - clock
        if took_s < self._fastest_s:
            self._fastest_s = took_s
        late_s = took_s - self._fastest_s
        return now - late_s if late_s > LATE_S else None
