"""The decision: index, feeds, load and fleet joined. Sync methods only; time comes in as `now`; no I/O, no metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from indexer.blocks import Keys, KeySpace
from indexer.index import Prediction, PrefixIndex
from indexer.match import MISS, Hit, Match
from router.config import Config
from router.errors import NoFitPod
from router.fleet import Fleet, Pod, Rank
from scorer.candidates import Candidate, Pick
from scorer.load import Ticket
from scorer.pick import pick
from scorer.policies import Settings


@dataclass(slots=True)
class Asked:
    """One request, as far as the decision needs it. `keys` and `matches` are by block size, empty if not tokenized."""

    model: str | None
    tokens: int = 0  # of the prompt; an estimate if it could not be tokenized
    further: int = 0  # tokens of further prompts in the same request: load, nothing more
    keys: dict[int, Keys] = field(default_factory=dict)
    matches: dict[int, Match] = field(default_factory=dict)
    lookup: Literal["hit", "partial", "miss"] = "miss"
    reason: str | None = None  # why the prefix is not known
    pods: frozenset[str] | None = None  # only these
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


class Core:
    """See the module."""

    def __init__(self, config: Config, space: KeySpace) -> None:
        self.config = config
        self.space = space
        self.fleet = Fleet()
        self.index = PrefixIndex(space, config.index.blocks_max, orphans_max=config.index.orphans_max)
        self.decisions: deque[Decision] = deque(maxlen=config.decisions.kept)
        self.turn = 0
        weights = config.index.tier_weights
        self._weights = (weights.gpu, weights.cpu, weights.disk)
        self._settings = Settings(config.scoring.policy, config.scoring.beta)

    # --- deciding ---

    def match(self, keys: Keys) -> Match:
        return self.index.match(keys)

    def decide(self, asked: Asked, exclude: frozenset[str], now: float) -> Decision:
        """The pick for a request, without acting on it; raises `UnknownModel` or `NoFitPod`."""
        ranks = self._fit(asked, exclude, now)
        candidates, hits = self._candidates(asked, ranks, now)
        best = pick(
            candidates,
            self._settings,
            self.turn,
        )
        return Decision(now, asked, ranks, hits, best, asked.reason or best.reason)

    def route(self, asked: Asked, exclude: frozenset[str], now: float) -> Placed:
        """Decide, take the ticket, and enter the prompt's blocks as predicted for the picked pod."""
        decision = self.decide(asked, exclude, now)
        self.turn += 1
        self.decisions.append(decision)
        best, rank = decision.pick.best, decision.rank
        ticket = rank.load.admit(round(best.tokens - best.worth) + asked.further, now)
        prediction = None
        keys = asked.keys.get(rank.block_size or 0)
        if keys is not None:
            held = decision.hits[best.number].blocks
            if held < len(keys):
                expires = now + self._predicted_ttl_s(rank)
                prediction = self.index.predict(rank.id, keys, held, expires)
        return Placed(decision, ticket, prediction)

    def first_byte(self, placed: Placed, streaming: bool, now: float) -> None:
        placed.ticket.load.first_byte(placed.ticket, now, streaming)

    def release(self, placed: Placed, served: bool, now: float) -> None:
        """Give back what `route` took. `served`: the pod did work on the request, so it may hold its blocks."""
        if not placed.ticket.load.release(placed.ticket) or placed.prediction is None:
            return
        rank = placed.decision.rank
        if not served:
            self.index.settle(placed.prediction, now)
        elif rank.state != "blind":  # its events tell the truth, a moment after the response
            self.index.settle(placed.prediction, now + self.config.index.predicted_grace)

    def suspect(self, pod: str, now: float) -> None:
        """A request could not reach the pod: until the next probe, others come first."""
        known = self.fleet.pods.get(pod)
        if known is not None:
            known.suspect_until = now + self.config.probe.interval

    # --- pods ---

    def block_sizes(self, model: str | None) -> list[int]:
        """The block sizes of the pods that serve a model; raises `UnknownModel`."""
        sizes: list[int] = []
        for rank in self.fleet.serving(model):
            size = rank.block_size
            if size is not None and size not in sizes:
                sizes.append(size)
        return sizes

    def leave(self, pod: Pod) -> None:
        """A pod is gone for good."""
        self.fleet.leave(pod.name)
        for rank in pod.ranks:
            self.index.drop(rank.id)

    # --- inside ---

    def _fit(self, asked: Asked, exclude: frozenset[str], now: float) -> Sequence[Rank]:
        ranks = self.fleet.serving(asked.model)
        if asked.pods is not None:
            ranks = [rank for rank in ranks if rank.id.pod in asked.pods]
        left = [rank for rank in ranks if rank.id.pod not in exclude]
        fit = [rank for rank in left if rank.pod.fit(now)]
        if not fit:  # a suspect is better than nobody
            fit = [rank for rank in left if rank.pod.healthy and not rank.pod.draining]
        if not fit:
            raise NoFitPod(f"None of the {len(ranks)} pods for this request is fit to take it now.")
        return fit

    def _candidates(self, asked: Asked, ranks: Sequence[Rank], now: float) -> tuple[list[Candidate], list[Hit]]:
        tokens, candidates, hits = asked.tokens, [], []
        matches = {size: asked.matches.get(size) or self.match(keys) for size, keys in asked.keys.items()}
        for number, rank in enumerate(ranks):
            load = rank.load
            size = rank.block_size or 0
            match = matches.get(size)
            hit = match.hits.get(rank.id, MISS) if match is not None else MISS
            matched = min(hit.blocks, (tokens - 1) // size) * size if hit.blocks else 0
            worth = float(matched) if hit.gpu + hit.predicted == hit.blocks else matched * self._share(hit)
            hits.append(hit)
            room = self._room(rank, size)
            candidates.append(
                Candidate(
                    number, tokens, matched, worth,
                    load.requests, load.prefill_tokens, load.backlog_s(now), load.rate.token_s,
                    0 if room is None else max(0, tokens - matched - room),
                )
            )  # fmt: skip
        return candidates, hits

    def _room(self, rank: Rank, size: int) -> int | None:
        """Tokens that the pod can take without giving up what it holds, None if that is not known."""
        blocks = rank.pod.blocks
        if blocks is None or rank.feed is None:
            return None
        return (blocks - self.index.held(rank.id)) * size

    def _share(self, hit: Hit) -> float:
        gpu, cpu, disk = self._weights
        return (gpu * (hit.gpu + hit.predicted) + cpu * hit.cpu + disk * hit.disk) / hit.blocks

    def _predicted_ttl_s(self, rank: Rank) -> float:
        return self.config.index.blind_ttl if rank.state == "blind" else self.config.index.predicted_ttl
