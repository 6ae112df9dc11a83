"""In which order a pod's cache holds what it computed: it gives up first what was not used for longest.

So from what was computed there, in the order of its last use, and from how much the pod holds, follows how long the
oldest was idle that it still has. What is in use stays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import islice

_LOOKED_MAX = 16  # owners that are looked at to say what a pod gives up next


class Recency:
    """What one pod computed, by its owners (prompts that grow). As much is kept as the pod holds."""

    __slots__ = ("_idle", "_taken", "_tokens", "_used", "tokens")

    def __init__(self) -> None:
        self.tokens = 0  # of all owners
        self._tokens: dict[Hashable, int] = {}
        self._taken: dict[Hashable, int] = {}  # of the leading ones, by those that grew out of it
        self._used: dict[Hashable, int] = {}  # by so many requests
        self._idle: OrderedDict[Hashable, float] = OrderedDict()  # since when: the longest first

    def begin(
        self, owner: Hashable, computed: int, tokens_max: int, above: Hashable | None = None, shared: int = 0
    ) -> None:
        """A request uses it; so many tokens more are computed for it, and at most `tokens_max` are there in all.

        It has grown out of the one `above`, of which it uses so many leading tokens: from now on these are its own.
        """
        before = self._tokens.get(owner, 0)
        if not before and above in self._tokens:
            before = self._take(above, min(shared, tokens_max - computed))
        tokens = before + computed
        if before and tokens > tokens_max:
            tokens = tokens_max
        self.tokens += tokens - self._tokens.get(owner, 0)
        self._tokens[owner] = tokens
        self._used[owner] = self._used.get(owner, 0) + 1
        self._idle.pop(owner, None)

    def _take(self, above: Hashable, shared: int) -> int:
        """So many leading tokens of it, but for those that others took."""
        taken = self._taken.get(above, 0)
        tokens = min(shared - taken, self._tokens[above])
        if tokens <= 0:
            return 0
        self._taken[above] = shared
        self._tokens[above] -= tokens
        self.tokens -= tokens
        return tokens

    def end(self, owner: Hashable, served: bool, now: float) -> None:
        """The request is over. Not `served`: nothing was computed for it."""
        users = self._used.pop(owner, 1) - 1
        if users:
            self._used[owner] = users
        elif served:
            self._idle[owner] = now
        else:
            self._forget(owner)

    @property
    def in_use(self) -> int:
        """Tokens that requests use now."""
        return sum([self._tokens[owner] for owner in self._used])

    def gives_up(self, held: int, tokens: float, now: float) -> Sequence[tuple[float, float]]:
        """What goes next of the `held` tokens that the pod has, if it takes so many others: how many, and how long they
        were idle. What is in use was for no time; of many owners, those behind the first are taken to be like these.
        """
        self._forget_lost(held)
        gone, left = max(0, self.tokens - held), tokens  # of the oldest, some is gone
        parts, idle_s = [], 0.0
        for owner, since in islice(self._idle.items(), _LOOKED_MAX):
            idle_s = now - since
            parts.append((min(left, float(self._tokens[owner] - gone)), idle_s))
            left, gone = left - parts[-1][0], 0
            if left <= 0.0:
                return parts
        parts.append((left, idle_s if len(parts) < len(self._idle) else 0.0))
        return parts

    def _forget_lost(self, held: int) -> None:
        """Those that were idle for longest, as far as the pod can have nothing of them any more."""
        while self._idle:
            oldest = next(iter(self._idle))
            if self.tokens - self._tokens[oldest] < held:
                return
            del self._idle[oldest]
            self._forget(oldest)

    def _forget(self, owner: Hashable) -> None:
        self.tokens -= self._tokens.pop(owner, 0)
        self._taken.pop(owner, None)
