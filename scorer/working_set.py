"""What lives in a pod's cache: the contexts of its requests, and of those that it had a moment ago, as they come again.

A context is a set of blocks: chains grow out of each other, and what several share counts once. It is known by what was
asked for, whatever the cache has given up since: what lives and is not there will be computed once more.
"""

from __future__ import annotations

from collections import OrderedDict

from scorer.chains import Chain, Place

LIVE_S = 60.0
"""What was used within this time lives."""


class _Part:
    """One chain's, behind what it shares with the one that it grew out of."""

    __slots__ = ("counted", "ends", "lent", "own", "users")

    def __init__(self) -> None:
        self.own = 0  # tokens of its newest prompt here, from the first on, if that lives
        self.users = 0  # how many live of it and those that grew out of it
        self.ends: dict[int, int] = {}  # tokens, from the first on, that those have which grew out of it: of so many
        self.lent = 0  # the most of these
        self.counted = 0

    def lend(self, tokens: int, change: int) -> None:
        """One more that has so many tokens of it, or one less."""
        left = self.ends.get(tokens, 0) + change
        if left:
            self.ends[tokens] = left
        else:
            del self.ends[tokens]
        self.lent = max(self.lent, tokens) if left else max(self.ends, default=0)


class WorkingSet:
    """One pod's."""

    __slots__ = ("_idle", "_parts", "_tokens", "_used", "_within_s")

    def __init__(self, within_s: float = LIVE_S) -> None:
        """What was used within this time lives."""
        self._within_s = within_s
        self._tokens = 0
        self._parts: dict[Chain, _Part] = {}
        self._used: dict[Chain, int] = {}  # by so many requests
        self._idle: OrderedDict[Chain, float] = OrderedDict()  # since when, of what lives: the longest first

    def begin(self, chain: Chain) -> bool:
        """A request uses it, as far as it has grown. Did it not live before?"""
        users = self._used.get(chain, 0)
        self._used[chain] = users + 1
        enters = not users and self._idle.pop(chain, None) is None
        if enters:
            self._enter(chain)
        part = self._parts[chain]
        part.own = chain.tokens
        self._count(chain, part)
        return enters

    def end(self, chain: Chain, served: bool, now: float) -> None:
        """The request is over. Not `served`: the pod has done nothing for it."""
        users = self._used.pop(chain, 0) - 1
        if users > 0:
            self._used[chain] = users
        elif served and not users:
            self._idle[chain] = now
        elif not users:
            self._leave(chain)

    def tokens(self, now: float) -> int:
        """All that lives."""
        self._expire(now)
        return self._tokens

    def _expire(self, now: float) -> None:
        idle, since = self._idle, now - self._within_s
        while idle:
            chain, at = next(iter(idle.items()))
            if at >= since:
                break
            del idle[chain]
            self._leave(chain)

    def contexts(self, now: float) -> int:
        """How many live."""
        self._expire(now)
        return len(self._used) + len(self._idle)

    def tokens_with(self, place: Place, tokens: int, now: float) -> int:
        """All that would live if a prompt of so many tokens came there."""
        total, chain = self.tokens(now), place.chain
        shared = place.tokens
        if place.continues and chain is not None:
            part = self._parts.get(chain)
            total += max(0, tokens - chain.shared - (0 if part is None else part.counted))
            shared, chain = chain.shared, chain.above
        else:
            total += tokens - shared
        while chain is not None:
            part = self._parts.get(chain)
            total += max(0, shared - chain.shared - (0 if part is None else part.counted))
            shared, chain = chain.shared, chain.above
        return total

    def _enter(self, chain: Chain) -> None:
        each: Chain | None = chain
        lent = 0  # tokens of `each`, to one that did not live
        while each is not None:
            part = self._parts.get(each)
            begins = part is None
            if part is None:
                part = self._parts[each] = _Part()
            if lent:
                part.lend(lent, 1)
            part.users += 1
            self._count(each, part)
            lent, each = each.shared if begins else 0, each.above

    def _leave(self, chain: Chain) -> None:
        self._parts[chain].own = 0
        each: Chain | None = chain
        while each is not None:
            part = self._parts[each]
            part.users -= 1
            self._count(each, part)
            if not part.users:
                del self._parts[each]
                self._tokens -= part.counted
                if each.above is not None:
                    self._parts[each.above].lend(each.shared, -1)
            each = each.above

    def _count(self, chain: Chain, part: _Part) -> None:
        counted = max(0, max(part.own, part.lent) - chain.shared)
        self._tokens += counted - part.counted
        part.counted = counted
