"""The decision: index, feeds, load and fleet joined. Sync methods only; time comes in as `now`, facts go out. Pure.

One request: `look_up` says who holds its prompt; `route` decides and takes, with no await after the look-up; `finish`
gives back what was taken, however it ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from indexer.blocks import Keys, KeySpace, size_of
from indexer.index import PrefixIndex
from indexer.losses import Losses
from indexer.match import Hit
from indexer.prefixes import PrefixStore
from router.core.comparison import Comparison, long_enough, reason_of, slow_starts_s, waits_for_full
from router.core.demand import NOT_DONE, BreakerChange, Decision, Demand, End, Placement
from router.core.fair_queue import FairQueue
from router.core.fleet import Fleet, Pod, Rank, RankId
from router.core.holdings import Holders, Holdings
from router.core.retry_budget import RetryBudget
from router.core.settings import CoreSettings
from router.core.token_proof import TokenProof
from router.core.token_states import Witness
from router.errors import Busy, Full, NoFitPod, NoRetry
from scorer.board import Board
from scorer.chains import Chains
from scorer.cost import PrefillRate
from scorer.hold import COLD_S, Held, Hold
from scorer.load import PodLoad
from scorer.other_workers import OtherWorkers
from scorer.pick import pick
from scorer.policies import AskedPrompt, Settings, policy_of, session_number
from scorer.sessions import LiveSessions
from scorer.shadow import Shadow
from scorer.slow_start import slowness

_INTERNAL_ERROR = 500  # the pod's, and maybe the fault of the request: it counts less than other failures
_TOO_MANY = 429
_NO_KEYS: Keys = np.zeros(0, np.uint64)
_LATE_MAX = 256  # reports that wait until what the pod gave up must have been heard of


class Core:
    """See the module."""

    def __init__(self, settings: CoreSettings, space: KeySpace, board: Board | None = None) -> None:
        """`board`: what other workers have in flight, where there are any."""
        self.board = board
        self.space = space
        self.fleet = Fleet(settings.panic_share)
        given = settings.index
        self.losses = Losses(settings.losses_max) if settings.losses_max else None
        self.index = PrefixIndex(space, given.blocks_max, given.pods_max, given.orphans_max, self.losses)
        # Of our own picks alone: nothing confirms what only texts say.
        self.texts = PrefixIndex(space, given.text_blocks_max, given.pods_max)
        self.store = PrefixStore(space, space.seed, self.index.unchanged, given.prefixes, given.maps)
        self.proof = TokenProof(self.index, given.predicted_grace_s)
        self.decisions: deque[Decision] = deque(maxlen=settings.decisions_kept)
        self.turn = 0
        self.in_flight = 0
        self.budget = RetryBudget(settings.retry_share, settings.retry_floor)
        self.queue = FairQueue(settings.queue_max, settings.flow_queue_max)
        self._settings = settings
        self._bounds = settings.bounds
        self._bounded = settings.bounds.by_load
        self._late: deque[tuple[float, Placement, int]] = deque(maxlen=_LATE_MAX)  # reports that wait for events
        self._slow_until = 0.0  # nobody's slow start ends later
        self.holdings = Holdings(self.index, self.texts, self.store, given)
        self.chains = Chains(settings.chain_keys_max)
        self.hold = Hold(settings.hold)
        self.sessions = LiveSessions(settings.sessions)
        self._policy = policy_of(settings.scoring)
        self._knows_request = self._policy.knows_request
        self.holds = self._policy.binds_late and settings.hold.look_ahead_s > 0.0
        self.piece_tokens = settings.piece_tokens
        self.grace_s = given.predicted_grace_s
        self.shadow = None if settings.shadow is None else Shadow(settings.shadow)
        self._comparison = Comparison(self.fleet, self.index, self.chains, settings.tier_weights)
        self.others = None if board is None else OtherWorkers(board, self.chains, self.fleet.rank)

    # --- deciding ---

    def look_up(self, demand: Demand, others: Mapping[RankId, Hit] | None, now: float) -> Holders:
        """Who holds how much of a prompt: to be used before the next await. `others`: as other gateways know."""
        if self.others is not None:
            self.others.listen(now)
        return self.holdings.look_up(demand, others, self.board, now)

    def decide(self, demand: Demand, holders: Holders, exclude: frozenset[str], now: float) -> Decision:
        """The pick for a request, without acting on it; raises `UnknownModel` or `NoFitPod`."""
        return self._decide(demand, holders, self._fit(demand, exclude, now), now)

    def route(
        self,
        demand: Demand,
        holders: Holders,
        exclude: frozenset[str],
        now: float,
        witness: Witness | None = None,
        held: Held | None = None,
        session: str | None = None,
    ) -> Placement:
        """Decide, take the ticket, and enter the prompt's blocks as predicted for the picked pod.

        A request that `exclude`s pods is a retry: the bounds of admission let it pass, it has to be in the budget.
        `witness`: the request as it came, to be kept until its tokens are judged. `held`: it waits already.
        `session`: as the client names it beside the body.
        Raises `Busy`, `Full`, `NoRetry`, and what `decide` raises.
        """
        ranks = self._fit(demand, exclude, now)
        if exclude and not self.budget.take(now):
            raise NoRetry("The retry budget is spent.")
        bounded = not exclude and (self._bounded or self._all_in_flight >= self._bounds.requests)
        decide = self._decide_in_bounds if bounded else self._decide
        decision = decide(demand, holders, ranks, now, session, held)
        if self.holds and not exclude:
            self._wait_if_it_must(decision, held, now)
        if self._knows_request:
            self._policy.sent(decision.pick.candidates, decision.pick.best.number, self._asked(demand, session))
        if self.shadow is not None:
            self._look(self.shadow, decision, holders, session)
        if not exclude:
            self.budget.request(self.in_flight)
        self.turn += 1
        self.in_flight += 1
        self.decisions.append(decision)
        best, rank = decision.pick.best, decision.rank
        breaker = rank.pod.breaker
        if breaker.tripped:
            breaker.sent(now, self._settings.breaker)
        quiet = not rank.load.requests
        computed = round(best.tokens - best.worth) + demand.further
        ticket = rank.load.admit(computed, now, best.matched, demand.tells_prefill)
        if demand.further or not demand.keys:
            ticket.guessed = True
        if demand.asks_full_report and rank.feed is not None:
            rank.feed.full_report_began()
        theirs = demand.of(rank)
        hit = holders.here(theirs, rank)
        expected = self.holdings.expect(theirs, rank, hit, self.board, now)
        blocks, chain, use = demand.blocks, None, None
        if blocks is not None and (known := self.chains.ask(*blocks, demand.tokens, now)) is not None:
            chain, new = known.chain, best.tokens - best.matched
            rank.recency.begin(chain, new, chain.tokens, chain.above, chain.shared)
            began = rank.lives.begin(chain)
            self._comparison.placed(best.number, new, began)
            if self.board is not None:
                use = self.board.begin(rank.id, known, new)
        adapter = self.fleet.adapter_of(demand.model)
        if adapter is not None:
            rank.adapters.begin(adapter)
        removed = self.index.removed(rank.id)
        placement = Placement(
            decision, rank, ticket, expected, hit, quiet, rank.pod, breaker.epoch, removed, adapter, chain, use, witness
        )
        name = session or demand.session or (chain.name if chain is not None else None)
        if name is not None:
            placement.session = self.sessions.sent(name, rank.id, best.tokens, now)
        if held is not None and held.item is not None:
            decision.waited = (now - held.since, held.reason)
        return placement

    def first_byte(self, placement: Placement, streaming: bool, now: float) -> BreakerChange | None:
        """`streaming`: it followed the prefill at once."""
        pod = placement.pod
        pod.served_at = now
        placement.ticket.load.first_byte(placement.ticket, now, streaming)
        if placement.rank.feed is not None:
            self.proof.began(placement, now)
        if pod.breaker.tripped and not placement.judged:  # at once: a stream may go on for minutes
            placement.judged = True
            return self._succeeded(placement, now)
        return None

    def finish(self, placement: Placement, end: End, now: float) -> BreakerChange | None:
        """An attempt is over: give back what `route` took, and learn what its end says of the pod.

        What was refused may end again, if that answer goes to the client after all: nothing is given back twice.
        """
        self._give_back(placement, end.status is not None and end.status < 400, now)
        if end.how == "refused" and end.retry_after_s is not None:
            placement.pod.breaker.avoid(now + min(end.retry_after_s, self._settings.retry_after_max_s))
        elif end.how in ("refused", "disputed", "failed", "full"):
            placement.suspected = placement.pod.suspect_until, now + self._settings.suspect_s
            placement.pod.suspect(placement.suspected[1])
        if end.usage is not None and placement.decision.demand.is_counted:
            self._reported(placement, *end.usage, now)
        if placement.judged:
            return None
        placement.judged = True
        if end.how == "served":
            status = end.status or _INTERNAL_ERROR
            fine = status < _INTERNAL_ERROR
            if fine:
                placement.pod.breaker.answered(declined=status >= NOT_DONE)
        elif end.how == "refused":
            fine = end.status == _TOO_MANY or end.retry_after_s is not None  # it lives, and has too much to do
        elif end.how in ("failed", "cut"):
            fine = False
        else:
            placement.pod.breaker.unproven(placement.epoch, now)
            return None
        if fine:
            return self._succeeded(placement, now)
        return self._failed(placement, end.how != "served" or end.status != _INTERNAL_ERROR, now)

    def convict(self, placement: Placement, now: float) -> BreakerChange | None:
        """It was disputed whose fault it is, and another pod has taken the request: it is this pod's."""
        placement.pod.breaker.answered(declined=True)
        return self._failed(placement, True, now)

    def acquit(self, placement: Placement) -> None:
        """It was disputed whose fault it is, and no other pod has taken the request: this pod was right."""
        placement.pod.breaker.acquitted()
        before, until = placement.suspected
        if placement.pod.suspect_until == until:
            placement.pod.suspect(before)

    def serve_held(self, now: float, offer: Callable[[Held], bool]) -> bool:
        """Place those who wait again (see `Hold.serve`)."""
        if self.others is not None:
            self.others.listen(now)
        return self.hold.serve(self.loads, now, offer)

    def look(self, now: float) -> None:
        """At what changes little from one decision to the next: to be called often, so that it is known soon in a large
        fleet, too, where few decisions are made."""
        self._comparison.look(now)

    # --- pods ---

    @property
    def scoring(self) -> Settings:
        """By which candidates are priced."""
        return self._settings.scoring

    @property
    def loads(self) -> Iterable[PodLoad]:
        """Of all ranks."""
        return (rank.load for rank in self.fleet.ranks)

    def load_of(self, rank: RankId, rate: PrefillRate) -> PodLoad:
        """The load of a rank that joins."""
        return PodLoad(rate) if self.board is None else self.board.join(rank, f"{rank.pod}/{rank.rank}".encode(), rate)

    def working_set(self, now: float) -> tuple[int, int]:
        """Tokens in the pods' caches that live, and those that these hold, of pods whose room is known."""
        known = [rank for rank in self.fleet.ranks if rank.capacity]
        return sum(rank.lives.tokens(now) for rank in known), sum(rank.capacity or 0 for rank in known)

    def leave(self, pod: Pod) -> None:
        """A pod is gone for good."""
        self.fleet.leave(pod.name)
        for rank in pod.ranks:
            self.index.drop(rank.id)
            self.texts.drop(rank.id)
            rank.load.rate.leave()
            self.proof.forget(rank.id)
            self._policy.forget(rank.id)
            if self.shadow is not None:
                self.shadow.policy.forget(rank.id)
            if self.board is not None:
                self.board.leave(rank.id)

    # --- inside ---

    def _give_back(self, placement: Placement, served: bool, now: float) -> None:
        """`served`: the pod did work on the request, so it may hold its blocks."""
        if placement.given_back:
            return
        placement.given_back = True
        placement.ticket.load.release(placement.ticket, now)
        self.in_flight -= 1
        self.proof.ended(placement)
        if placement.adapter is not None:
            placement.decision.rank.adapters.end(placement.adapter)
        placement.refused = not served
        if served:
            placement.pod.served_at = now
            self.chains.mix.answered()
        if placement.session is not None:
            self.sessions.ended(placement.session, now)
        chain = placement.chain
        if chain is not None:
            placement.rank.recency.end(chain, served, now)
            placement.rank.lives.end(chain, served, now)
        if placement.use is not None and self.board is not None:
            self.board.end(placement.use, served)
        rank, told_by = placement.rank, now + self._settings.index.predicted_grace_s
        if placement.decision.demand.asks_full_report and rank.feed is not None:
            rank.feed.full_report_ended(told_by)
        expected = placement.expected
        if expected.prediction is None:
            return
        if not served:
            expected.book.settle(expected.prediction, now)
        elif expected.book is self.index and rank.tells:  # the truth, a moment after the response
            self.index.settle(expected.prediction, told_by)
            expected.expires = min(expected.expires, told_by)

    def _reported(self, placement: Placement, prompt_tokens: int, cached_tokens: int | None, now: float) -> None:
        """What the pod says of a prompt that it has served: proof of what was believed of it, or against it."""
        decision, rank, pod = placement.decision, placement.rank, placement.pod
        demand = decision.demand
        if not demand.reads_cache:
            return  # it did not look, nor does it count such prompts
        theirs = demand.of(rank)
        if demand.is_alone and prompt_tokens != theirs.tokens:
            self.proof.counted(placement, prompt_tokens)
        pod.evidence.usage = cached_tokens is not None or (pod.evidence.usage and pod.hides_zero)
        if not pod.evidence.usage:
            pod.evidence.unreported(prompt_tokens, placement.promised)
            return
        grain, hit, cached = rank.grain or 0, placement.hit, cached_tokens or 0
        if not demand.is_alone or prompt_tokens != theirs.tokens or grain not in theirs.keys:
            return
        if hit.predicted and not placement.quiet:
            return  # what it was to compute first, it may not have computed yet
        if rank.feed is None:
            rank.trust.report(hit, theirs.tokens, cached, size_of(grain))
            return
        self._judge_late(now)
        if cached >= placement.promised:
            rank.feed.reported(hit, theirs.tokens, cached, size_of(grain), decision.at)
        elif rank.room > 0.0:
            self._judge(placement, cached)
        elif not self._is_explained(placement, cached):  # what it gave up may not be told yet
            self._late.append((now + self._settings.index.predicted_grace_s, placement, cached))

    def _judge_late(self, now: float) -> None:
        """What pods gave up should have been heard of by now."""
        while self._late and self._late[0][0] <= now:
            _, placement, cached = self._late.popleft()
            self._judge(placement, cached)

    def _judge(self, placement: Placement, cached: int) -> None:
        """A report of less than was foretold speaks against that, unless something explains it."""
        decision, rank = placement.decision, placement.rank
        theirs, grain = decision.demand.of(rank), rank.grain or 0
        if rank.feed is None or grain not in theirs.keys:  # its blocks have another size by now
            return
        if not self._is_explained(placement, cached):
            rank.feed.reported(placement.hit, theirs.tokens, cached, size_of(grain), decision.at)

    def _is_explained(self, placement: Placement, cached: int) -> bool:
        """Less was cached than foretold: because the pod gave up the rest before it began, and its events say so?"""
        rank = placement.rank
        grain = rank.grain or 0
        keys = placement.decision.demand.of(rank).keys[grain][cached // size_of(grain) : placement.hit.blocks]
        return len(keys) > 0 and self.index.gave_up(rank.id, keys, placement.removed)

    def _succeeded(self, placement: Placement, now: float) -> BreakerChange | None:
        pod = placement.pod
        if not pod.breaker.succeeded(placement.epoch, now):
            return None
        self._start_slowly(pod, now)
        return BreakerChange(pod.name, False, "a request was served")

    def _failed(self, placement: Placement, in_row: bool, now: float) -> BreakerChange | None:
        """`in_row`: the pod alone can be the cause."""
        pod, limits, may_open = placement.pod, self._settings.breaker, self.fleet.may_eject()
        reason = pod.breaker.failed(placement.epoch, now, limits, in_row=in_row, may_open=may_open)
        return BreakerChange(pod.name, True, reason) if reason is not None else None

    @property
    def _all_in_flight(self) -> int:
        """Through all workers."""
        return self.in_flight if self.board is None else self.in_flight + self.board.in_flight

    def _fit(self, demand: Demand, exclude: frozenset[str], now: float) -> Sequence[Rank]:
        ranks = left = self.fleet.serving(demand.model)
        if demand.pods is not None:
            ranks = left = [rank for rank in ranks if rank.id.pod in demand.pods]
        answer, shortest = demand.answer, self.fleet.shortest
        if answer is not None and shortest is not None and demand.tokens + answer > shortest:
            left = long_enough(left, demand.tokens + answer)
        if exclude:
            left = [rank for rank in left if rank.id.pod not in exclude]
        if left is ranks:
            fit = self._comparison.fit(demand.model, ranks, now)
        else:
            fit = [rank for rank in left if rank.pod.fit(now)]
        if not fit:  # a suspect or an ejected one is better than nobody; on a retry, not one that asked for peace
            willing = [rank for rank in left if not (exclude and rank.pod.breaker.avoided(now))]
            fit = [rank for rank in willing if rank.pod.usable]
        if not fit:
            raise NoFitPod(f"None of the {len(ranks)} pods for this request is fit to take it now.")
        adapter = self.fleet.adapter_of(demand.model)
        if adapter is not None:  # where none has a slot for it, it waits wherever it goes
            fit = [rank for rank in fit if rank.adapters.takes(adapter)] or fit
        return fit

    def _with_room(self, ranks: Sequence[Rank]) -> Sequence[Rank]:
        """Those of `ranks` that may take a new request; raises `Full`."""
        bounds = self._bounds
        if self._all_in_flight >= bounds.requests:
            raise Full(f"All {bounds.requests} requests that may be in flight are.")
        if bounds.prefill_tokens is not None:
            queued = sum(rank.load.prefill_tokens for rank in self.fleet.ranks)
            if queued >= bounds.prefill_tokens:
                raise Full(f"{queued} prompt tokens wait to be computed, and no more may.")
        roomy = [rank for rank in ranks if bounds.pods.allow(rank.load)]
        if not roomy:
            raise Full("All pods for this request have as much to do as they may.")
        return roomy if len(roomy) < len(ranks) else ranks

    def _decide_in_bounds(
        self,
        demand: Demand,
        holders: Holders,
        ranks: Sequence[Rank],
        now: float,
        session: str | None,
        held: Held | None,
    ) -> Decision:
        """Who is best placed at a full pod may wait for that one; raises `Full` where there is no room anywhere."""
        roomy = self._with_room(ranks)
        if self.holds and roomy is not ranks:
            decision = self._decide(demand, holders, ranks, now, session, held)
            if waits_for_full(decision.pick, ranks, roomy, held, now):
                return decision
        return self._decide(demand, holders, roomy, now, session, held)

    def _decide(
        self,
        demand: Demand,
        holders: Holders,
        ranks: Sequence[Rank],
        now: float,
        session: str | None = None,
        held: Held | None = None,
    ) -> Decision:
        candidates, hits = self._comparison.candidates(demand, holders, ranks, now)
        adapter = self.fleet.adapter_of(demand.model)
        if adapter is not None:
            candidates.delay([self._settings.adapter_load_s * rank.adapters.loads(adapter) for rank in ranks])
        if held is not None and self.hold.planned:  # for those that go before it
            self._comparison.delay(candidates, self.hold.planned, -1)
        if self.hold.rests and demand.tokens > self.piece_tokens:  # who is short goes between the pieces of another
            self._comparison.delay(candidates, self.hold.rests, self.piece_tokens)
        slow = self._slowness(ranks, now) if self.fleet.cold or now < self._slow_until else None
        asked = self._asked(demand, session) if self._knows_request else None
        picked = pick(candidates, self._policy, self.turn, slow, asked)
        best, reason, states = picked.best, reason_of(demand, picked), self._comparison.states
        matched, rank = best.matched if demand.text is None else 0, ranks[best.number]
        return Decision(now, demand, rank, matched, ranks, hits, picked, reason, states, holders.known)

    def _asked(self, demand: Demand, session: str | None) -> AskedPrompt | None:
        """What of a request some policies want to know; None: there is nothing to know it by."""
        blocks, named = demand.blocks, session or demand.session
        if named is not None:
            return AskedPrompt(*(blocks or (_NO_KEYS, 1)), session_number(named))
        return None if blocks is None else AskedPrompt(*blocks, self.chains.name(*blocks))

    def _look(self, shadow: Shadow, decision: Decision, holders: Holders, session: str | None) -> None:
        """What another policy would have done."""
        demand, ranks, now = decision.demand, decision.ranks, decision.at
        candidates, _ = self._comparison.candidates(demand, holders, ranks, now)
        slow = self._slowness(ranks, now) if now < self._slow_until else None
        asked = self._asked(demand, session) if shadow.policy.knows_request else None
        decision.shadow = shadow.look(candidates, decision.pick.best.number, self.turn, slow, asked)

    def _wait_if_it_must(self, decision: Decision, held: Held | None, now: float) -> None:
        """Raises `Busy` where the pod that is best is too busy for it, or its cache too full of what lives."""
        best, rank = decision.pick.best, decision.rank
        cost_s = best.token_s * (best.tokens - best.worth)
        cold = cost_s > COLD_S and self.chains.are_usual
        lacks_room = cold and self._lacks_room(decision.demand, rank, now)
        if self.hold.rests and rank.load in self.hold.rests and best.tokens - best.worth > self.piece_tokens:
            lacks_room = True  # after the one that goes there in pieces
        if self.hold.must_wait(rank.load, cost_s, lacks_room, held, now):
            raise Busy("The pod that is best for it has as much to do as it may.", cost_s)

    def _lacks_room(self, demand: Demand, rank: Rank, now: float) -> bool:
        """Beside what lives in the pod's cache, which has to grow there; nobody waits for an empty one."""
        room, blocks, lives = rank.capacity, demand.blocks, rank.lives
        if not room or blocks is None or not lives.tokens(now):
            return False
        tokens = lives.tokens_with(self.chains.place(*blocks), demand.tokens, now)
        return tokens + (lives.contexts(now) + 1) * self.chains.growth > room

    def _slowness(self, ranks: Sequence[Rank], now: float) -> list[float] | None:
        for pod in [pod for pod in self.fleet.cold if pod.fit(now)]:
            self.fleet.cold.discard(pod)
            self._start_slowly(pod, now)
        if now >= self._slow_until:
            return None
        settings = self._settings
        return slowness(slow_starts_s(ranks, now), settings.slow_start_s, settings.slow_start_factor)

    def _start_slowly(self, pod: Pod, now: float) -> None:
        pod.slow_until = now + self._settings.slow_start_s
        self._slow_until = max(self._slow_until, pod.slow_until)
