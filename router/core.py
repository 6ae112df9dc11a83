"""The decision: index, feeds, load and fleet joined. Sync methods only; time comes in as `now`; no I/O, no metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from indexer.blocks import Keys, KeySpace
from indexer.index import Prediction, PrefixIndex
from indexer.mappings import Ending
from indexer.match import MISS, Hit, Match
from router.breaker import BreakerLimits
from router.budget import RetryBudget
from router.config import Config
from router.errors import Full, NoFitPod, NoRetry
from router.fairness import FairQueue
from router.fleet import Fleet, Pod, Rank, RankId
from scorer.board import Board
from scorer.candidates import Candidate, Pick
from scorer.cost import PrefillRate
from scorer.load import PodLoad, Ticket
from scorer.pick import pick
from scorer.policies import Settings
from scorer.slow_start import slowness

_LATE = 2.0  # a prefill may take so many times what is predicted


@dataclass(slots=True)
class Asked:
    """One request, as far as the decision needs it. `keys` and `matches` are by block size, empty if not tokenized."""

    model: str | None
    tokens: int = 0  # of the prompt; an estimate if it could not be tokenized
    further: int = 0  # tokens of further prompts in the same request: load, nothing more
    keys: dict[int, Keys] = field(default_factory=dict)
    endings: dict[int, Ending] = field(default_factory=dict)  # where the prefix store keeps this prompt's mappings
    matches: dict[int, Match] = field(default_factory=dict)
    shared: dict[int, dict[RankId, Hit]] = field(default_factory=dict)  # as other gateways know pods, where they do
    lookup: Literal["hit", "partial", "miss"] = "miss"
    reason: str | None = None  # why the prefix is not known
    pods: frozenset[str] | None = None  # only these
    alone: bool = False  # the cached tokens that the pod will report are those of this one prompt
    timing_us: dict[str, int] = field(default_factory=dict)


class Decision(NamedTuple):
    """One pick, with all that it was made from."""

    at: float
    asked: Asked
    ranks: Sequence[Rank]
    hits: Sequence[Hit]
    pick: Pick
    reason: str

    @property
    def rank(self) -> Rank:
        return self.ranks[self.pick.best.number]

    @property
    def matched_tokens(self) -> int:
        return self.pick.best.matched


class Placed(NamedTuple):
    """A decision that was acted on: what must be given back."""

    decision: Decision
    ticket: Ticket
    prediction: Prediction | None
    hit: Hit  # as known here
    pod: Pod
    epoch: int  # of the pod's breaker


class Change(NamedTuple):
    """A breaker has opened, or closed."""

    pod: str
    open: bool
    reason: str


class Core:
    """See the module."""

    def __init__(self, config: Config, space: KeySpace, board: Board | None = None) -> None:
        """`board`: what the other workers have in flight, where there are any."""
        self.config = config
        self.board = board
        self.space = space
        self.fleet = Fleet()
        self.index = PrefixIndex(space, config.index.blocks_max, orphans_max=config.index.orphans_max)
        self.decisions: deque[Decision] = deque(maxlen=config.decisions.kept)
        self.turn = 0
        self.in_flight = 0
        self.budget = RetryBudget(config.upstream.retry_share, config.upstream.retry_floor)
        self.queue = FairQueue(config.admission.queue_max, config.admission.flow_queue_max)
        self._bounds = _bounds(config)
        self._bounded = any(bound is not None for bound in self._bounds[1:])  # by more than the number of requests
        self._breaker = _breaker_limits(config)
        self._slow_until = 0.0  # nobody's slow start ends later
        weights = config.index.tier_weights
        self._weights = (weights.gpu, weights.cpu, weights.disk)
        self._settings = Settings(config.scoring.policy, config.scoring.beta)

    # --- deciding ---

    def match(self, keys: Keys) -> Match:
        return self.index.match(keys)

    def decide(self, asked: Asked, exclude: frozenset[str], now: float) -> Decision:
        """The pick for a request, without acting on it; raises `UnknownModel` or `NoFitPod`."""
        if self.board is not None:
            self._listen(self.board, asked, now)
        return self._decide(asked, self._fit(asked, exclude, now), now)

    def route(self, asked: Asked, exclude: frozenset[str], now: float) -> Placed:
        """Decide, take the ticket, and enter the prompt's blocks as predicted for the picked pod.

        A request that `exclude`s pods is a retry: the bounds of admission let it pass, it has to be in the budget.
        Raises `Full`, `NoRetry`, and what `decide` raises.
        """
        if self.board is not None:
            self._listen(self.board, asked, now)
        ranks = self._fit(asked, exclude, now)
        if exclude:
            if not self.budget.take(now):
                raise NoRetry("The retry budget is spent.")
        else:
            if self._bounded or self._all_in_flight >= self._bounds.requests:
                ranks = self._with_room(ranks)
            self.budget.request(self.in_flight)
        decision = self._decide(asked, ranks, now)
        self.turn += 1
        self.in_flight += 1
        self.decisions.append(decision)
        best, rank = decision.pick.best, decision.rank
        pod = rank.pod
        breaker = pod.breaker
        if breaker.tripped:
            breaker.sent(now, self._breaker)
        ticket = rank.load.admit(round(best.tokens - best.worth) + asked.further, now)
        prediction, hit = None, decision.hits[best.number]
        keys = asked.keys.get(rank.block_size or 0)
        if keys is not None:
            if hit.blocks and asked.shared:
                hit = self.match(keys).hits.get(rank.id, MISS)
            if hit.blocks < len(keys):
                expires = now + self._predicted_ttl_s(rank)
                prediction = self.index.predict(rank.id, keys, hit.blocks, expires)
                if self.board is not None:
                    self.board.tell(rank.id, keys, hit.blocks, self._told_until(rank, expires, now))
        return Placed(decision, ticket, prediction, hit, pod, breaker.epoch)

    def first_byte(self, placed: Placed, streaming: bool, now: float) -> None:
        placed.ticket.load.first_byte(placed.ticket, now, streaming)

    def release(self, placed: Placed, served: bool, now: float) -> None:
        """Give back what `route` took. `served`: the pod did work on the request, so it may hold its blocks."""
        if not placed.ticket.load.release(placed.ticket):
            return
        self.in_flight -= 1
        if placed.prediction is None:
            return
        rank = placed.decision.rank
        if not served:
            self.index.settle(placed.prediction, now)
        elif rank.tells:  # its events tell the truth, a moment after the response
            self.index.settle(placed.prediction, now + self.config.index.predicted_grace)

    def reported(self, placed: Placed, prompt_tokens: int, cached_tokens: int | None) -> None:
        """What the pod says of a prompt that it has served: proof of what was believed of it, or against it."""
        decision, pod = placed.decision, placed.pod
        rank, asked = decision.rank, decision.asked
        pod.evidence.usage = cached_tokens is not None or (pod.evidence.usage and pod.hides_zero)
        if not pod.evidence.usage:
            pod.evidence.unreported(prompt_tokens, decision.matched_tokens)
            return
        size, hit = rank.block_size or 0, placed.hit
        sure = asked.alone and prompt_tokens == asked.tokens and size in asked.keys
        if sure and rank.feed is not None and not hit.predicted:
            matched = hit.usable((asked.tokens - 1) // size) * size if hit.blocks else 0
            rank.feed.reported(matched, cached_tokens or 0)

    def suspect(self, pod: str, now: float) -> None:
        """A request could not reach the pod: until the next probe, others come first."""
        known = self.fleet.pods.get(pod)
        if known is not None:
            known.suspect_until = now + self.config.probe.interval

    def avoid(self, placed: Placed, now: float, seconds: float) -> None:
        """The pod asked to be left alone for so long."""
        placed.pod.breaker.avoid(now + min(seconds, self.config.upstream.retry_after_max))

    # --- failures ---

    def succeeded(self, placed: Placed, now: float) -> Change | None:
        """The pod has served an attempt."""
        pod = placed.pod
        if not pod.breaker.succeeded(placed.epoch, now):
            return None
        self._start_slowly(pod, now)
        return Change(pod.name, False, "a request was served")

    def failed(self, placed: Placed, in_row: bool, now: float) -> Change | None:
        """The pod has failed an attempt. `in_row`: it alone can be the cause."""
        pod = placed.pod
        may_open = self.fleet.may_eject()
        reason = pod.breaker.failed(placed.epoch, now, self._breaker, in_row=in_row, may_open=may_open)
        return Change(pod.name, True, reason) if reason is not None else None

    def unproven(self, placed: Placed, now: float) -> None:
        """An attempt has ended and says nothing of the pod."""
        placed.pod.breaker.unproven(placed.epoch, now)

    # --- pods ---

    def load_of(self, rank: RankId, rate: PrefillRate) -> PodLoad:
        """The load of a rank that joins."""
        return PodLoad(rate) if self.board is None else self.board.join(rank, f"{rank.pod}/{rank.rank}".encode(), rate)

    def leave(self, pod: Pod) -> None:
        """A pod is gone for good."""
        self.fleet.leave(pod.name)
        for rank in pod.ranks:
            self.index.drop(rank.id)
            if self.board is not None:
                self.board.leave(rank.id)

    # --- inside ---

    def _listen(self, board: Board, asked: Asked, now: float) -> None:
        """Have what other workers did a moment ago: what is in flight, and where they sent what begins as this one."""
        board.listen(now)
        for size, keys in asked.keys.items():
            for blocks, rank, expires in board.sent(keys, now):
                match = asked.matches.get(size) or self.match(keys)
                held = match.hits.get(rank, MISS).blocks
                if held < blocks:
                    self.index.predict(rank, keys[:blocks], held, expires)
                    asked.matches.pop(size, None)

    @property
    def _all_in_flight(self) -> int:
        """Through all workers."""
        return self.in_flight if self.board is None else self.in_flight + self.board.in_flight

    def _fit(self, asked: Asked, exclude: frozenset[str], now: float) -> Sequence[Rank]:
        ranks = self.fleet.serving(asked.model)
        if asked.pods is not None:
            ranks = [rank for rank in ranks if rank.id.pod in asked.pods]
        left = [rank for rank in ranks if rank.id.pod not in exclude]
        fit = [rank for rank in left if rank.pod.fit(now)]
        if len(fit) < len(left):
            self.fleet.cold.update(rank.pod for rank in left if not rank.pod.healthy)
            if not fit:  # a suspect or an ejected one is better than nobody; on a retry, not one that asked for peace
                willing = [rank for rank in left if not (exclude and rank.pod.breaker.avoided(now))]
                fit = [rank for rank in willing if rank.pod.healthy and not rank.pod.draining]
        if not fit:
            raise NoFitPod(f"None of the {len(ranks)} pods for this request is fit to take it now.")
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
        requests, tokens = bounds.pod_requests, bounds.pod_prefill_tokens
        if requests is not None:
            ranks = [rank for rank in ranks if rank.load.requests < requests]
        if tokens is not None:
            ranks = [rank for rank in ranks if rank.load.prefill_tokens < tokens]
        if not ranks:
            raise Full("All pods for this request have as much to do as they may.")
        return ranks

    def _decide(self, asked: Asked, ranks: Sequence[Rank], now: float) -> Decision:
        candidates, hits = self._candidates(asked, ranks, now)
        slow = self._slowness(ranks, now) if self.fleet.cold or now < self._slow_until else None
        best = pick(candidates, self._settings, self.turn, slow)
        return Decision(now, asked, ranks, hits, best, asked.reason or best.reason)

    def _slowness(self, ranks: Sequence[Rank], now: float) -> list[float] | None:
        for pod in [pod for pod in self.fleet.cold if pod.healthy]:
            self.fleet.cold.discard(pod)
            self._start_slowly(pod, now)
        scoring = self.config.scoring
        if now >= self._slow_until:
            return None
        return slowness([rank.pod.slow_until - now for rank in ranks], scoring.slow_start, scoring.slow_start_factor)

    def _start_slowly(self, pod: Pod, now: float) -> None:
        pod.slow_until = now + self.config.scoring.slow_start
        self._slow_until = max(self._slow_until, pod.slow_until)

    def _candidates(self, asked: Asked, ranks: Sequence[Rank], now: float) -> tuple[list[Candidate], list[Hit]]:
        tokens, candidates, hits = asked.tokens, [], []
        matches = {size: asked.matches.get(size) or self.match(keys) for size, keys in asked.keys.items()}
        for number, rank in enumerate(ranks):
            load = rank.load
            size = rank.block_size or 0
            match = matches.get(size)
            hit = match.hits.get(rank.id, MISS) if match is not None else MISS
            if asked.shared:
                others = asked.shared.get(size, {}).get(rank.id, MISS)
                hit = others if others.blocks > hit.blocks else hit
            matched, worth = 0, 0.0
            if hit.blocks:
                matched = hit.usable((tokens - 1) // size) * size
                worth = matched if hit.gpu + hit.predicted == hit.blocks else matched * self._share(hit)
            hits.append(hit)
            blocks = rank.pod.blocks
            evicted = 0
            if blocks is not None and rank.feed is not None:  # what it must give up, where its room is known
                evicted = max(0, tokens - matched - (blocks - self.index.held(rank.id)) * size)
            candidates.append(
                Candidate(
                    number, tokens, matched, worth,
                    load.requests, load.prefill_tokens, load.backlog_s(now), load.rate.token_s, evicted,
                )
            )  # fmt: skip
        return candidates, hits

    def _share(self, hit: Hit) -> float:
        gpu, cpu, disk = self._weights
        return (gpu * (hit.gpu + hit.predicted) + cpu * hit.cpu + disk * hit.disk) / hit.blocks

    def _told_until(self, rank: Rank, expires: float, now: float) -> float:
        """How long other workers believe it: until events tell all of them, if they do."""
        if not rank.tells:
            return expires
        done = now + _LATE * rank.load.backlog_s(now) + self.config.index.predicted_grace
        return min(expires, done)

    def _predicted_ttl_s(self, rank: Rank) -> float:
        return self.config.index.predicted_ttl if rank.tells else self.config.index.blind_ttl


class _Bounds(NamedTuple):
    """What may be on its way at most; None: any number. Of ranks, where a pod has several."""

    requests: int
    prefill_tokens: int | None
    pod_requests: int | None
    pod_prefill_tokens: int | None


def _bounds(config: Config) -> _Bounds:
    given = config.admission
    return _Bounds(
        config.gateway.requests_max, given.prefill_tokens_max, given.pod_requests_max, given.pod_prefill_tokens_max
    )


def _breaker_limits(config: Config) -> BreakerLimits:
    given = config.breaker
    return BreakerLimits(
        in_row_max=given.failures_in_row,
        share_max=given.failure_share,
        requests_min=given.requests_min,
        window_s=given.window,
        open_s=given.open_time,
        open_max_s=given.open_time_max,
    )
