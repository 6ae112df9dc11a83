"""The circuit breaker of one pod: ejected for failures, with a time to come back. A pure state machine.

closed --(failures in a row, or a failing share)--> open --(time)--> half-open --(one request: fine)--> closed
                                                     ^-------------------(it fails: open for longer)---'

Every attempt remembers the `epoch` in which it was sent. What was sent in another epoch says nothing of this one: a
stream from before the failures neither closes the breaker nor opens it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "half-open", "open"]
_DECLINED_MIN, _DECLINED_MAX = 4, 8
"""So many requests a pod calls the clients' faults, beyond those that it serves, before another pod is asked about one;
more are not counted."""
STATES: tuple[BreakerState, ...] = ("closed", "half-open", "open")
"""In the order of their number in metrics."""


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a breaker opens, and for how long."""

    in_row_max: int  # failures in a row; of those that may be the requests' fault, if it lasts for a window
    share_max: float  # of the requests of a window that fail …
    requests_min: int  # … if there were so many
    window_s: float  # begins with a failure
    open_s: float  # the first time; doubled each time after
    open_max_s: float  # and a breaker that is closed for so long begins with `open_s` again


class Standing:
    """Counts what may have changed who is fit: of one fleet's pods and their breakers. So it need not be asked of all
    pods for every request."""

    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes = 0


class Breaker:
    """What is known of one pod's failures; all times are `now` (monotonic seconds).

    `blocked_until`: until then the pod takes no requests if another can; because the breaker is open, because its
    only request of half-open is on the way, or because the pod asked for it (`avoid`).
    """

    __slots__ = (
        "_avoided_until", "_closed_at", "_declined", "_failed", "_in_row", "_open_until", "_probing", "_row_began",
        "_served", "_unserved", "_window_began",
        "blocked_until", "epoch", "openings", "reason", "standing", "tripped",
    )  # fmt: skip

    def __init__(self) -> None:
        self.standing = Standing()
        self.tripped = False  # open or half-open
        self.epoch = 0
        self.openings = 0  # in a row
        self.reason: str | None = None  # of the last opening
        self.blocked_until = 0.0
        self._avoided_until = 0.0
        self._declined = 0  # answers that it was the client's fault, each one that was none takes one back
        self._open_until = 0.0
        self._closed_at = float("-inf")
        self._probing = False
        self._in_row = 0
        self._unserved = 0  # failures in a row, whosever fault they are …
        self._row_began = 0.0  # … since then
        self._window_began = float("-inf")
        self._served = self._failed = 0  # since the window began

    def state(self, now: float) -> BreakerState:
        """Half-open: it is time for one request, or that is on its way."""
        if not self.tripped:
            return "closed"
        return "half-open" if self._probing or self._open_until <= now else "open"

    def avoided(self, now: float) -> bool:
        """Whether the pod has asked to be left alone."""
        return self._avoided_until > now

    def avoid(self, until: float) -> None:
        """The pod asked to be left alone until then."""
        self._avoided_until = max(self._avoided_until, until)
        self._block()

    @property
    def is_doubted(self) -> bool:
        """It calls so much the clients' fault that this may be its own."""
        return self._declined >= _DECLINED_MIN

    def answered(self, declined: bool) -> None:
        """It answered; `declined`: that the client is at fault."""
        self._declined = min(self._declined + 1, _DECLINED_MAX) if declined else max(self._declined - 1, 0)

    def acquitted(self) -> None:
        """Another pod says the same."""
        self._declined = 0

    def sent(self, now: float, limits: BreakerLimits) -> None:
        """A request goes to a tripped pod. In half-open it is the one that decides; for `open_s` no other follows."""
        if self._open_until <= now:
            self._probing = True
            self._open_until = now + limits.open_s
            self._block()

    def succeeded(self, epoch: int, now: float) -> bool:
        """An attempt went well. True if that has closed the breaker."""
        if epoch != self.epoch:
            return False
        self._in_row = self._unserved = 0
        self._served += 1
        if not self.tripped:
            return False
        self.tripped = self._probing = False
        self._closed_at = now
        self._turn(0.0)
        return True

    def failed(self, epoch: int, now: float, limits: BreakerLimits, *, in_row: bool, may_open: bool) -> str | None:
        """An attempt failed. The reason if that has opened the breaker (again).

        `in_row`: the failure is the pod's beyond doubt, else it counts for the share only. `may_open`: enough
        other pods are left; if not, the failure still counts.
        """
        if epoch != self.epoch:
            return None
        if self.tripped:
            if not self._probing:
                return None  # sent for want of a better pod: no news
            return self._open("its probe request failed", now, limits)
        reason = self._count(now, limits, in_row)
        return self._open(reason, now, limits) if reason is not None and may_open else None

    def unproven(self, epoch: int, now: float) -> None:
        """An attempt ended without a verdict: if it was the one of half-open, another may be sent."""
        if self._probing and epoch == self.epoch:
            self._probing = False
            self._open_until = now
            self._block()

    def _count(self, now: float, limits: BreakerLimits, in_row: bool) -> str | None:
        """Why the breaker should open, if it should."""
        if now - self._window_began > limits.window_s:
            self._window_began, self._served, self._failed = now, 0, 0
        self._failed += 1
        self._in_row += in_row
        if not self._unserved:
            self._row_began = now
        self._unserved += 1
        if self._in_row >= limits.in_row_max:
            return f"{self._in_row} requests failed in a row"
        if self._unserved >= limits.in_row_max and now - self._row_began >= limits.window_s:
            return f"{self._unserved} requests failed in {now - self._row_began:.0f} s, and none was served"
        requests = self._served + self._failed
        if requests >= limits.requests_min and self._failed >= limits.share_max * requests:
            return f"{self._failed} of {requests} requests failed"
        return None

    def _open(self, reason: str, now: float, limits: BreakerLimits) -> str:
        if not self.tripped and now - self._closed_at > limits.open_max_s:
            self.openings = 0
        self.reason = reason
        self.tripped, self._probing = True, False
        seconds = limits.open_s
        for _ in range(self.openings):  # not 2**openings, which has no end
            seconds = min(2 * seconds, limits.open_max_s)
            if seconds == limits.open_max_s:
                break
        self.openings += 1
        self._turn(now + seconds)
        return reason

    def _turn(self, open_until: float) -> None:
        """A new epoch, that counts from nothing."""
        self.epoch += 1
        self._in_row = self._unserved = self._served = self._failed = 0
        self._window_began = float("-inf")
        self._open_until = open_until
        self._block()

    def _block(self) -> None:
        self.blocked_until = max(self._avoided_until, self._open_until)
        self.standing.changes += 1
