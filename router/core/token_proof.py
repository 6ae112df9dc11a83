"""Tokens against events: does a pod store the blocks that were predicted for the requests which it serves?

A prompt that was computed has all its full blocks stored, and events tell of them, in order, within a moment after the
first byte of its response. Where blocks never come while the pod has others in their place, the tokens were wrong,
whatever the cause. So is a count in its usage that is not ours. Costs a tuple per request; all else is housekeeping.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from indexer.blocks import Grain, Keys, Tokens, size_of
from indexer.feed import BLOCK_SIZE, DISPUTED, ORPHANS, REPLAYING, TRUNCATED, UNDECODABLE
from indexer.index import PrefixIndex
from indexer.strangers import ROOT
from router.core.demand import Placement
from router.core.fleet import Rank, RankId
from router.core.token_states import Origin, TokenizerState, Witness

_WAITING_MAX = 4096
"""Requests whose events may still come; of more, the oldest are not judged."""
JUDGED_MAX = 500
WALK_MAX = 20_000
"""Requests, and their blocks, that are looked at in one go: some milliseconds at most."""
TRIALS_MAX = 4
WITNESS_BYTES_MAX = 16 * 2**20
"""Bodies of requests that were answered, and wait to be judged; of those that are more, less can be said."""
AHEAD = 8  # tokens: a block is stored when so many follow it, also where a drafter looks ahead
_LATE_S = 0.5  # a feed that is so much later than it was at its best is not judged by
_DRIFT_S = 0.001  # of a pod's clock against ours, from one request to the next
_UNSURE = frozenset((REPLAYING, TRUNCATED, UNDECODABLE, ORPHANS, DISPUTED, BLOCK_SIZE))  # then events may be missing


class Doubt(NamedTuple):
    """Where one request's tokens are not the pod's. `block`: its number, where `theirs` stands in place of ours."""

    origin: Origin
    pod: str
    proof: bool
    """It is not the first of its kind: the source is wrong."""
    block: int | None = None
    size: int = 0
    theirs: tuple[Tokens, ...] = ()
    counts: tuple[int, int] | None = None
    """Ours and the pod's, where these differ."""
    witness: Witness | None = None


class Trial(NamedTuple):
    """A prompt that a pod has served: a source that was wrong may be tried on it."""

    state: TokenizerState
    origin: Origin
    rank: RankId
    grain: Grain
    witness: Witness


class TokenProof:
    """See the module. Sync; time comes in as `now`."""

    def __init__(self, index: PrefixIndex, grace_s: float) -> None:
        """`grace_s`: so long after a response has begun, events may take."""
        self._index = index
        self._grace_s = grace_s
        self._waiting: deque[tuple[float, Placement, int]] = deque()
        self.witness_bytes = 0
        self._miscounts: deque[Doubt] = deque(maxlen=_WAITING_MAX)
        self._lags: dict[RankId, float] = {}
        self._walked = 0
        self.trials: deque[Trial] = deque(maxlen=TRIALS_MAX)

    @property
    def waiting(self) -> int:
        """Requests that are still to be judged."""
        return len(self._waiting) + len(self._miscounts)

    def began(self, placement: Placement, now: float) -> None:
        """A pod has begun to answer, so the prompt is computed."""
        if placement.decision.demand.origin is None:
            return
        if len(self._waiting) >= _WAITING_MAX:
            self._next()
        size = 0 if placement.witness is None else len(placement.witness.body)
        if self.witness_bytes + size > WITNESS_BYTES_MAX:
            placement.witness, size = None, 0
        self.witness_bytes += size
        placement.waits = True
        self._waiting.append((now + self._grace_s, placement, size))

    def ended(self, placement: Placement) -> None:
        """The request is over: where nothing can be judged, its body is not needed any more."""
        if not placement.waits:
            placement.witness = None

    def _next(self) -> tuple[Placement, Witness | None]:
        """Who waits longest; what is kept of it from now on is without its body."""
        _, placement, size = self._waiting.popleft()
        self.witness_bytes -= size
        placement.waits = False
        witness, placement.witness = placement.witness, None
        return placement, witness

    def counted(self, placement: Placement, prompt_tokens: int) -> None:
        """The pod says how many tokens a prompt had; ours are as many, or else wrong."""
        demand = placement.decision.demand.of(placement.rank)
        origin = demand.origin
        if origin is None or demand.reason is not None or prompt_tokens == demand.tokens:
            return
        proof = origin.state.contradict(origin.shape)
        pod = placement.rank.id.pod
        counts = (demand.tokens, prompt_tokens)
        self._miscounts.append(Doubt(origin, pod, proof, counts=counts, witness=placement.witness))

    def judge(self, now: float) -> list[Doubt]:
        """Those whose time has come. To be called before predictions expire."""
        doubts = list(self._miscounts)
        self._miscounts.clear()
        self._walked = judged = 0
        while self._waiting and self._waiting[0][0] <= now and self._walked < WALK_MAX and judged < JUDGED_MAX:
            judged += 1
            placement, witness = self._next()
            doubt = self._judge(placement, witness)
            if doubt is not None:
                doubts.append(doubt)
        return doubts

    def _judge(self, placement: Placement, witness: Witness | None) -> Doubt | None:
        rank = placement.rank
        demand, grain = placement.decision.demand.of(rank), rank.grain or 0
        origin, size = demand.origin, size_of(grain)
        if origin is None or placement.refused:
            return None
        if rank.feed is not None:
            best = self._lags.get(rank.id, rank.feed.lag_s) + _DRIFT_S
            self._lags[rank.id] = min(best, rank.feed.lag_s)
        if origin.trial is not None and size and witness is not None:
            self.trials.append(Trial(origin.trial, origin, rank.id, grain, witness))
        keys = demand.keys.get(grain)
        if keys is None or demand.reason is not None:
            return None
        whole = max(0, min(len(keys), (demand.tokens - AHEAD) // size))
        if not whole:
            return None
        expected, state, shape = placement.expected, origin.state, origin.shape
        prediction = expected.prediction
        last = whole - 1 - placement.hit.blocks
        if prediction is not None and last >= 0 and self._index.is_pending(prediction, last, expected.expires):
            return self._contradicted(placement, rank, keys, whole, witness)
        if state.is_settled(shape):
            state.confirmed += 1
        elif self._index.confirmed_blocks(rank.id, keys[whole - 1 : whole]):  # keys are chained: it proves all before
            state.confirmed += 1
            state.confirm(shape)
        return None

    def _contradicted(
        self, placement: Placement, rank: Rank, keys: Keys, whole: int, witness: Witness | None
    ) -> Doubt | None:
        """Blocks did not come: for want of events, or because the pod's are others?"""
        origin = placement.decision.demand.origin
        if origin is None or self._is_unsure(rank):
            return None
        if origin.lora is not None or origin.salt is not None:
            return None  # before vLLM 0.17, salts are not told, and adapters are numbers
        block = self._index.confirmed_blocks(rank.id, keys[:whole])
        self._walked += block
        size = rank.block_size or 0
        before = int(keys[block - 1]) if block else ROOT
        theirs = self._index.strangers(rank.id, before)
        if block >= whole or not theirs:
            return None
        elsewhere = self._index.match(keys[: block + 1]).hits
        if any(hit.blocks > block and hit.gpu > block for hit in elsewhere.values()):
            return None  # somebody has just these tokens: it is the prediction of where that went astray
        proof = origin.state.contradict(origin.shape)
        ids = tuple(np.frombuffer(one, np.uint32) for one in theirs if len(one) == 4 * size)
        return Doubt(origin, rank.id.pod, proof, block, size, ids, witness=witness)

    def _is_unsure(self, rank: Rank) -> bool:
        """May events of this feed be missing, or late?"""
        feed = rank.feed
        if feed is None or not feed.heard or feed.counts.refused or not _UNSURE.isdisjoint(feed.reasons):
            return True
        return feed.lag_s > self._lags[rank.id] + _LATE_S  # clocks differ: only more than the least counts

    def forget(self, rank: RankId) -> None:
        """A rank is gone."""
        self._lags.pop(rank, None)
