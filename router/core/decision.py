"""The decision: index, feeds, load and fleet joined. Sync methods only; time comes in as `now`; no I/O, no metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from indexer.blocks import Keys, KeySpace, size_of
from indexer.index import Prediction, PrefixIndex
from indexer.match import MISS, Hit, Match
from router.config.settings import Config
from router.core.breaker import BreakerLimits
from router.core.comparison import Comparison
from router.core.demand import Asked as Asked  # from here, too: who decides is told of it
from router.core.fair_queue import FairQueue
from router.core.fleet import Fleet, Pod, Rank, RankId
from router.core.retry_budget import RetryBudget
from router.core.token_proof import TokenProof
from router.errors import Full, NoFitPod, NoRetry
from scorer.board import Board
from scorer.candidates import Pick
from scorer.cost import PrefillRate
from scorer.load import PodLoad, Ticket
from scorer.pick import pick
from scorer.policies import Settings
from scorer.slow_start import slowness

_LATE = 2.0  # a prefill may take so many times what is predicted


@dataclass(slots=True, eq=False)
class Decision:
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
        """What is promised: nothing where only the text is known."""
        return self.pick.best.matched if self.asked.text is None else 0


@dataclass(slots=True, eq=False)
class Placed:
    """A decision that was acted on: what must be given back."""

    decision: Decision
    ticket: Ticket
    book: PrefixIndex  # where the prediction was entered
    prediction: Prediction | None
    hit: Hit  # as known here
    quiet: bool  # the rank had nothing else in flight
    pod: Pod
    epoch: int  # of the pod's breaker
    expires: float  # of the prediction
    refused: bool = False  # the pod did no work on it
    waits: bool = False  # to be judged by what the pod's events tell of it


class Change(NamedTuple):
    """A breaker has opened, or closed."""

    pod: str
    open: bool
    reason: str


class Core:
    """See the module."""

    def __init__(self, config: Config, space: KeySpace, board: Board | None = None) -> None:
        """`board`: what other workers have in flight, where there are any."""
        self.config = config
        self.board = board
        self.space = space
        self.fleet = Fleet(config.probe.panic_share)
        given = config.index
        self.index = PrefixIndex(space, given.blocks_max, given.pods_max, given.orphans_max)
        # Of our own picks alone: nothing confirms what only texts say.
        self.texts = PrefixIndex(space, given.text_blocks_max, given.pods_max)
        self.proof = TokenProof(self.index, given.predicted_grace)
        self.decisions: deque[Decision] = deque(maxlen=config.decisions.kept)
        self.tells_matches = config.gateway.tell_matches  # to clients
        self.turn = 0
        self.in_flight = 0
        self.budget = RetryBudget(config.upstream.retry_share, config.upstream.retry_floor)
        self.queue = FairQueue(config.admission.queue_max, config.admission.flow_queue_max)
        self._bounds = _bounds(config)
        self._bounded = any(bound is not None for bound in self._bounds[1:])  # by more than the number of requests
        self._breaker = _breaker_limits(config)
        self._slow_until = 0.0  # nobody's slow start ends later
        self._comparison = Comparison(self.fleet, self.index, self.texts, given.tier_weights)
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
        quiet = not rank.load.requests
        ticket = rank.load.admit(round(best.tokens - best.worth) + asked.further, now, best.matched, asked.tells)
        if asked.further or not asked.keys:
            ticket.alone = False  # what is computed for it is a guess, and teaches nothing
        if asked.full_report and rank.feed is not None:
            rank.feed.full_report_began()
        theirs = asked.of(rank)
        book, hit, prediction = self._predict(theirs, rank, decision.hits[best.number], now)
        if prediction is not None and self.board is not None:
            self._tell(self.board, theirs, rank, hit.blocks, now)
        expires = now + self.config.index.predicted_ttl
        return Placed(decision, ticket, book, prediction, hit, quiet, pod, breaker.epoch, expires)

    def first_byte(self, placed: Placed, streaming: bool, now: float) -> None:
        """`streaming`: it followed the prefill at once."""
        placed.pod.served_at = now
        placed.ticket.load.first_byte(placed.ticket, now, streaming)
        if placed.decision.rank.feed is not None:
            self.proof.began(placed, now)

    def release(self, placed: Placed, served: bool, now: float) -> None:
        """Give back what `route` took. `served`: the pod did work on the request, so it may hold its blocks."""
        if not placed.ticket.load.release(placed.ticket, now):
            return
        self.in_flight -= 1
        self.proof.ended(placed)
        placed.refused = not served
        if served:
            placed.pod.served_at = now
        rank, told_by = placed.decision.rank, now + self.config.index.predicted_grace
        if placed.decision.asked.full_report and rank.feed is not None:
            rank.feed.full_report_ended(told_by)
        if placed.prediction is None:
            return
        if not served:
            placed.book.settle(placed.prediction, now)
        elif placed.book is self.index and rank.tells:  # the truth, a moment after the response
            self.index.settle(placed.prediction, told_by)
            placed.expires = min(placed.expires, told_by)

    def reported(self, placed: Placed, prompt_tokens: int, cached_tokens: int | None) -> None:
        """What the pod says of a prompt that it has served: proof of what was believed of it, or against it."""
        decision, pod = placed.decision, placed.pod
        if not decision.asked.reads_cache:
            return  # it did not look, nor does it count such prompts
        rank = decision.rank
        asked = decision.asked.of(rank)
        if decision.asked.alone and prompt_tokens != asked.tokens:
            self.proof.counted(placed, prompt_tokens)
        pod.evidence.usage = cached_tokens is not None or (pod.evidence.usage and pod.hides_zero)
        if not pod.evidence.usage:
            pod.evidence.unreported(prompt_tokens, decision.matched_tokens)
            return
        grain, hit, cached = rank.grain or 0, placed.hit, cached_tokens or 0
        if not decision.asked.alone or prompt_tokens != asked.tokens or grain not in asked.keys:
            return
        if hit.predicted and not placed.quiet:
            return  # what it was to compute first, it may not have computed yet
        if rank.feed is not None:
            rank.feed.reported(hit, asked.tokens, cached, size_of(grain), decision.at)
        else:
            rank.trust.report(hit, asked.tokens, cached, size_of(grain))

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
            self.texts.drop(rank.id)
            rank.load.rate.leave()
            self.proof.forget(rank.id)
            if self.board is not None:
                self.board.leave(rank.id)

    # --- inside ---

    def _listen(self, board: Board, asked: Asked, now: float) -> None:
        """Have what other workers did a moment ago: what is in flight, and where they sent what begins as this one."""
        board.listen(now)
        if asked.text is not None:
            self._heed(board, self.texts, asked.text, now)
        for each in (asked, *(asked.by_version or {}).values()):
            for size, keys in each.keys.items():
                if self._heed(board, self.index, keys, now):
                    each.matches.pop(size, None)

    def _heed(self, board: Board, book: PrefixIndex, keys: Keys, now: float) -> bool:
        """Believe of a prompt what others have sent; False where it was known."""
        sent = board.sent(keys, now)
        if sent is None:
            return False
        held = book.match(keys).hits.get(sent.rank, MISS).blocks
        if held < sent.blocks:
            book.predict(sent.rank, keys[: sent.blocks], held, sent.expires)
        return held < sent.blocks

    def _tell(self, board: Board, asked: Asked, rank: Rank, held: int, now: float) -> None:
        """Let other workers know where a prompt goes; believed until events tell all of them, if they do."""
        keys, index = asked.text, self.config.index
        if keys is None:
            keys = asked.keys[rank.grain or 0]
        if asked.text is not None or not rank.tells:
            ttl_s = index.blind_ttl
        else:
            ttl_s = min(index.predicted_ttl, _LATE * rank.load.backlog_s(now) + index.predicted_grace)
        board.tell(rank.id, keys, held, now + ttl_s)

    @property
    def _all_in_flight(self) -> int:
        """Through all workers."""
        return self.in_flight if self.board is None else self.in_flight + self.board.in_flight

    def _fit(self, asked: Asked, exclude: frozenset[str], now: float) -> Sequence[Rank]:
        ranks = left = self.fleet.serving(asked.model)
        if asked.pods is not None:
            ranks = left = [rank for rank in ranks if rank.id.pod in asked.pods]
        answer, shortest = asked.answer, self.fleet.shortest
        if answer is not None and shortest is not None and asked.tokens + answer > shortest:
            left = _long_enough(left, asked.tokens + answer)
        if exclude:
            left = [rank for rank in left if rank.id.pod not in exclude]
        fit = [rank for rank in left if rank.pod.fit(now)]
        if not fit:  # a suspect or an ejected one is better than nobody; on a retry, not one that asked for peace
            willing = [rank for rank in left if not (exclude and rank.pod.breaker.avoided(now))]
            fit = [rank for rank in willing if rank.pod.usable]
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
        candidates, hits = self._comparison.candidates(asked, ranks, now)
        slow = self._slowness(ranks, now) if self.fleet.cold or now < self._slow_until else None
        best = pick(candidates, self._settings, self.turn, slow)
        return Decision(now, asked, ranks, hits, best, _reason(asked, best))

    def _slowness(self, ranks: Sequence[Rank], now: float) -> list[float] | None:
        for pod in [pod for pod in self.fleet.cold if pod.fit(now)]:
            self.fleet.cold.discard(pod)
            self._start_slowly(pod, now)
        scoring = self.config.scoring
        if now >= self._slow_until:
            return None
        return slowness([rank.pod.slow_until - now for rank in ranks], scoring.slow_start, scoring.slow_start_factor)

    def _start_slowly(self, pod: Pod, now: float) -> None:
        pod.slow_until = now + self.config.scoring.slow_start
        self._slow_until = max(self._slow_until, pod.slow_until)

    def _predict(self, asked: Asked, rank: Rank, hit: Hit, now: float) -> tuple[PrefixIndex, Hit, Prediction | None]:
        """Enter the prompt's blocks as predicted for the picked rank. Returns where, and the hit as known here."""
        if asked.text is not None:
            if not asked.reads_cache:
                hit = self.texts.match(asked.text).hits.get(rank.id, MISS)
            return self.texts, hit, self._predict_all(self.texts, rank, asked.text, hit, now)
        index, keys = self.index, asked.keys.get(rank.grain or 0)
        if keys is None:
            return index, hit, None
        if (hit.blocks and asked.shared) or not asked.reads_cache:
            hit = self.match(keys).hits.get(rank.id, MISS)
        if not rank.tells:
            return index, hit, self._predict_all(index, rank, keys, hit, now)
        if hit.blocks >= len(keys):
            return index, hit, None
        return index, hit, index.predict(rank.id, keys, hit.blocks, now + self.config.index.predicted_ttl)

    def _predict_all(self, index: PrefixIndex, rank: Rank, keys: Keys, hit: Hit, now: float) -> Prediction | None:
        """Where nothing confirms, what is used again lives on; a failure takes back what was new only."""
        ttl_s, start = self.config.index.blind_ttl, hit.blocks
        if start and index.believed_until(rank.id, int(keys[0])) < now + ttl_s / 2:
            start = 0
        if start == len(keys):
            return None
        prediction = index.predict(rank.id, keys, start, now + ttl_s)
        return prediction._replace(rows=prediction.rows[hit.blocks - start :])


def _long_enough(ranks: Sequence[Rank], tokens: int) -> Sequence[Rank]:
    """Those whose context takes so much; if none does, those with the longest, whose refusal the client gets."""
    lengths = [rank.pod.context_tokens for rank in ranks]
    enough = min(tokens, max((length for length in lengths if length is not None), default=0))
    if None in lengths:  # it may take any length
        enough = tokens
    return [rank for rank, length in zip(ranks, lengths, strict=True) if length is None or length >= enough]


def _reason(asked: Asked, best: Pick) -> str:
    if asked.reason is None:
        return best.reason
    return f"{asked.reason}; its text: {best.reason}" if best.best.matched else asked.reason


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
