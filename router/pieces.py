"""Long prompts that go to their pod in pieces, so that short ones get their turns between. Pure.

A pod that has begun with a prompt goes on with it, with all that its steps can hold, before it begins with another:
vLLM gives a step's tokens to requests that run, and what is left to those that wait, in their order. So whoever comes
while a long prompt is computed waits for all of it, however little it needs itself. In pieces, a beginning of the
prompt is computed first, then a longer one, each as a request of its own, which waits for its turn as any other; in the
end the request goes as it came, and finds the most of its prompt cached.

Only where most prompts continue others: elsewhere nobody is in more of a hurry than the rest. Not while many long ones
wait, which are done sooner one after the other, and never for two at the same pod. Only where the pod has shown that
it reuses blocks, and tells which it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from indexer.blocks import Grain, Tokens, blocks_in, size_of
from indexer.match import MISS
from router.core.decision import Core
from router.core.demand import Demand, Placement
from router.errors import Busy
from scorer.hold import Held

_WORTH = 1.5  # pieces that a pod must lack of a prompt
_CROWD = 0.5  # of the pods: when more long prompts than so many wait, they go whole


@dataclass(slots=True, eq=False)
class InPieces:
    """One request on its way. `demand`: all of its prompt, as its pod reads it, in blocks of `grain`.

    At the pod now are the tokens up to `end`, of which `start` were to be cached; `whole`: that is the request itself.
    """

    placement: Placement
    demand: Demand
    grain: Grain
    start: int = 0
    end: int = 0
    whole: bool = False


class Pieces:
    """Of all requests of one core. Sync; time comes in as `now`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def begin(self, placement: Placement, now: float) -> InPieces | None:
        """A request was placed: its first piece takes its place. None: it goes whole."""
        core, rank, ticket = self._core, placement.rank, placement.ticket
        if ticket.tokens <= _WORTH * core.piece_tokens or not self._are_allowed(now):
            return None
        demand, grain = placement.decision.demand, rank.grain or 0
        theirs = demand.of(rank)
        known = grain in theirs.keys and theirs.reason is None and (theirs.origin is None or theirs.origin.verified)
        plain = demand.is_alone and demand.reads_cache and not demand.asks_full_report
        if not (known and plain and rank.tells and rank.trust.rule is not None) or rank.load in core.hold.rests:
            return None
        one = InPieces(placement, theirs, grain)
        self._send(one, now)
        return None if one.whole else one

    def are_of(self, one: InPieces, ids: Tokens) -> bool:
        """Are these the token ids of its prompt, to the last?"""
        apart, grain = one.demand.apart, one.grain
        lora, salt = (None, None) if apart is None else (apart.adapter, apart.salt)
        keys = self._core.space.chain(ids, grain, None, lora, salt)
        return len(ids) == one.demand.tokens and np.array_equal(keys, one.demand.keys[grain])

    def turn(self, one: InPieces, held: Held | None, now: float) -> None:
        """The next piece takes its place, or else the request itself. Raises `Busy` where it has to wait (`held`: it
        does already); to be called again then.
        """
        core, load = self._core, one.placement.rank.load
        left = one.demand.tokens - one.end
        cost_s = load.rate.cost_s(min(left, core.piece_tokens), one.end)
        if core.holds and core.hold.must_wait(load, cost_s, False, held, now):
            raise Busy("Others have their turns between two pieces.", cost_s)
        self._send(one, now)

    def computed(self, one: InPieces, now: float) -> None:
        """A piece is done, just now."""
        ticket, pod = one.placement.ticket, one.placement.pod
        pod.served_at = now
        if not pod.evidence.usage:
            pod.evidence.unreported(one.end, one.start)
        ticket.load.first_byte(ticket, now, True)
        ticket.load.release(ticket, now)

    def rest(self, one: InPieces, now: float) -> None:
        """No more pieces: all that is left goes now, as the request itself."""
        if not one.whole:
            self._send(one, now, whole=True)

    def over(self, one: InPieces) -> None:
        """Nothing more comes of it; to be called once it has ended, however that was."""
        if not one.whole:
            one.whole = True
            self._core.hold.rests.pop(one.placement.rank.load, None)

    def _are_allowed(self, now: float) -> bool:
        core = self._core
        return core.chains.are_usual and core.hold.cold(now) <= _CROWD * len(core.fleet.pods)

    def _send(self, one: InPieces, now: float, whole: bool = False) -> None:
        """So much more as goes now is the pod's to do, behind what it holds by now; what went before is done."""
        core, placement, demand = self._core, one.placement, one.demand
        rank, load, size = placement.rank, placement.rank.load, size_of(one.grain)
        load.release(placement.ticket, now)
        expected = placement.expected
        if expected.prediction is not None:
            grace_s = core.grace_s if one.end else 0.0  # nobody else is to count on what does not come yet
            core.index.settle(expected.prediction, now + grace_s)
            core.index.expire(now)
        keys, rule = demand.keys[one.grain], rank.trust.rule
        hit = core.index.match(keys).hits.get(rank.id, MISS)
        one.start = rule.blocks(hit, demand.tokens, size) * size if rule is not None else 0
        one.end = (one.start + core.piece_tokens) // size * size
        short = demand.tokens - one.start <= _WORTH * core.piece_tokens
        one.whole = whole or short or one.end <= one.start or rule is None or not self._are_allowed(now)
        part = demand
        if one.whole:
            one.end = demand.tokens
            core.hold.rests.pop(load, None)
            placement.held_then = one.start
        else:
            beginning = {one.grain: keys[: blocks_in(one.end, one.grain)]}
            part = replace(demand, tokens=one.end, keys=beginning, endings={}, by_version=None)
            core.hold.rests[load] = load.rate.cost_s(demand.tokens - one.end, one.end)
            placement.decision.pieces += 1
        placement.hit, placement.quiet, placement.removed = hit, not load.requests, core.index.removed(rank.id)
        tells = demand.tells_prefill or not one.whole
        placement.ticket = load.admit(one.end - one.start, now, one.start, tells)
        placement.expected = core.holdings.expect(part, rank, hit, core.board, now)
