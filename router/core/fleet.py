"""What is known of the pods: who they are, what they serve, whether they are fit. Pure: others find the facts out."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from indexer.blocks import Grain, size_of
from indexer.feed import Feed
from indexer.trust import Trust
from router.core.breaker import Breaker, Standing
from router.core.cards import Card, Evidence, Served, card_of, served_by, shared_base, version_of
from router.core.token_states import Ladder, TokenizerState
from router.errors import BadRequest, UnknownModel
from scorer.adapters import Adapters
from scorer.load import PodLoad
from scorer.recency import Recency
from scorer.working_set import WorkingSet

_NAMED_MAX = 10  # models named in an error message
_VERSION = re.compile(r"[!-~]{1,64}")  # what is none ends in logs and answers
_ZERO_REPORTED = (0, 24)
_NULL_BLOCKS = 1  # of num_gpu_blocks, vLLM keeps one for itself
_ROOTS_MAX = 1000  # names of a pod whose weights are remembered: an adapter that comes back may be another one

Rest = Literal["asleep", "paused"]
"""Why a pod that answers probes computes nothing."""


class RankId(NamedTuple):
    """One publisher of events, one candidate: a data-parallel rank of a pod (0 where there is only one)."""

    pod: str
    rank: int

    def __str__(self) -> str:
        """As logs name it."""
        return f"{self.pod} rank {self.rank}" if self.rank else self.pod


@dataclass(slots=True, eq=False)
class Rank:
    """One candidate."""

    id: RankId
    pod: Pod
    load: PodLoad
    feed: Feed | None  # None: the pod publishes no events
    trust: Trust = field(init=False)
    room: float = float("inf")  # tokens that fit in before it gives something up, when it was last looked at
    fill: float = 1.0  # share of its cache that is in use, or will be; 1 where that is not known
    again: float = 0.0  # how likely what it gives up then is asked for again
    recency: Recency = field(default_factory=Recency)
    lives: WorkingSet = field(default_factory=WorkingSet)
    adapters: Adapters = field(default_factory=Adapters)
    removed: int = 0  # blocks that it had given up then
    removed_at: float = float("-inf")
    stood: str = "blind"  # its state, when it was last looked at

    def __post_init__(self) -> None:
        self.trust = self.feed.trust if self.feed is not None else Trust()

    @property
    def name(self) -> RankId:
        return self.id

    @property
    def capacity(self) -> int | None:
        """Tokens that its cache holds, if that is known."""
        blocks, size = self.pod.blocks, self.block_size
        return None if blocks is None or size is None else blocks * size

    @property
    def used(self) -> float:
        """Share of its cache that requests use now: of what was sent from here, else as its metrics said."""
        capacity = self.capacity
        if capacity:
            return min(1.0, self.recency.in_use / capacity)
        return self.pod.engine.get("kv_usage", 0.0)

    @property
    def grain(self) -> Grain | None:
        """By which its blocks have keys: learned from events, else what its metrics or the configuration say."""
        learned = self.feed.grain if self.feed is not None else None
        return learned or self.pod.block_size

    @property
    def block_size(self) -> int | None:
        """Tokens a block."""
        grain = self.grain
        return None if grain is None else size_of(grain)

    @property
    def state(self) -> str:
        """That of its feed; of a pod that does not answer, nothing is exact."""
        if self.feed is None:
            return "blind"
        return "degraded" if self.pod.silent and self.feed.state == "exact" else self.feed.state

    @property
    def tells(self) -> bool:
        """Its events will say what becomes of a prompt; if not, our own picks are all that there is to go by."""
        feed = self.feed
        return feed is not None and feed.heard and not feed.truncated


@dataclass(slots=True, eq=False)
class Pod:
    """One vLLM server. `models` is its /v1/models list, None as long as it has not answered."""

    name: str
    address: str
    ranks: list[Rank] = field(default_factory=list)
    models: list[dict[str, Any]] | None = None
    cards: Sequence[Card] = ()  # the same, as far as anything depends on it
    served: dict[str, Served] = field(default_factory=dict)
    roots: dict[str, str | None] = field(default_factory=dict)  # what each name stood for, last
    context_tokens: int | None = None  # the longest prompt with its answer that it takes
    first_rank: int | None = None  # as configured: what its ranks count from
    block_size: int | None = None
    blocks: int | None = None  # of one rank's cache, as its metrics say
    version: str | None = None
    healthy: bool = False  # as far as routing believes
    answers: bool = False  # probes
    unanswered: str | None = None  # what the last failed probe was like
    listens: bool = True  # the last probe found somebody who might be slow: neither nobody, nor one that says no
    served_at: float = float("-inf")  # a request
    rest: Rest | None = None
    failures: int = 0  # in a row
    suspect_until: float = 0.0  # a request failed to reach it: others first
    draining: bool = False
    uid: str = ""  # tells it from any other at its address
    joined: int = 0  # its place among all that have joined: answers name pods in this order
    ready: bool = True  # as whoever told of it says
    leaving: bool = False  # likewise: it was told to end
    breaker: Breaker = field(default_factory=Breaker)
    slow_until: float = 0.0  # its slow start ends then
    engine: dict[str, float] = field(default_factory=dict)  # scraped figures
    engine_names: dict[str, str] = field(default_factory=dict)  # as what it told them
    restarts: int = 0  # that its figures have shown
    evidence: Evidence = field(default_factory=Evidence)

    def drain(self, draining: bool) -> None:
        """An operator has no new request go there, or lifts that."""
        self.draining = draining
        self.breaker.standing.changes += 1

    def stands(self, ready: bool, leaving: bool) -> None:
        """How it stands, as whoever told of it says."""
        self.ready, self.leaving = ready, leaving
        self.breaker.standing.changes += 1

    def believe(self, healthy: bool) -> None:
        """Whether it is taken to be well."""
        self.healthy = healthy
        self.breaker.standing.changes += 1

    def suspect(self, until: float) -> None:
        """It comes after others until then."""
        self.suspect_until = until
        self.breaker.standing.changes += 1

    def fails(self, how: str, listens: bool | None = None) -> bool:
        """A probe has failed like this; `listens`: whether somebody is there who might be slow, if that is known.

        True: it is the first in a row.
        """
        self.unanswered = how
        if listens is not None:
            self.listens = listens
        return self.failures == 0

    def fit(self, now: float) -> bool:
        if not self.healthy or not self.ready or self.draining or self.leaving or self.rest is not None:
            return False
        return self.suspect_until <= now and self.breaker.blocked_until <= now

    @property
    def silent(self) -> bool:
        """Probes get no answer: nothing says that it is still there."""
        return not self.healthy or (self.failures > 0 and not self.answers)

    @property
    def usable(self) -> bool:
        """It may be asked for want of a better one."""
        return self.healthy and self.ready and not (self.draining or self.leaving) and self.rest is None

    def unfit(self, now: float) -> list[str]:
        """Why it is not fit, in words; what is said of a pod that is fit says why it might soon be otherwise."""
        reasons = []
        if not self.healthy or not self.answers:
            reasons.append(self.unanswered or "it has not been probed yet")
        if self.rest is not None:
            reasons.append(f"it is {self.rest}")
        if not self.ready:
            reasons.append("it is not ready, its platform says")
        if self.leaving:
            reasons.append("it is terminating")
        if self.draining:
            reasons.append("it is being drained")
        if self.suspect_until > now:
            reasons.append("a request could not reach it")
        if self.breaker.blocked_until > now:
            reason = self.breaker.reason if self.breaker.tripped else None
            reasons.append(f"it is ejected: {reason}" if reason else "it asked to be left alone")
        return reasons

    def global_rank(self, number: int) -> int | None:
        """What the pod itself calls its rank `number`: with several nodes (hybrid load balancing) it counts on from
        the ranks of nodes before. As its batches say, else as configured; 0 is the first where there are no batches.

        None: its batches are yet to say it.
        """
        feed = self.ranks[number].feed
        if feed is not None and feed.rank is not None:
            return feed.rank
        if self.first_rank is not None:
            return self.first_rank + number
        told = [(other, rank.feed.rank) for other, rank in enumerate(self.ranks) if rank.feed is not None]
        for other, global_rank in told:
            if global_rank is not None:
                return max(0, global_rank - other) + number
        return None if told else number

    @property
    def hides_zero(self) -> bool:
        """Up to vLLM 0.23, a pod that reports cached tokens leaves them out where they are 0."""
        version = version_of(self.version)
        return version is None or version < _ZERO_REPORTED

    @property
    def requests(self) -> int:
        return sum(rank.load.requests for rank in self.ranks)


class Fleet:
    """All pods, and who serves which model."""

    def __init__(self, panic_share: float = 1.0) -> None:
        """`panic_share`: of the pods; where more do not answer probes, it is the probes that are not believed."""
        self.pods: dict[str, Pod] = {}
        self.epoch = 0  # counts changes of who serves what, and how
        self.standing = Standing()
        self._joins = 0
        self.cold: set[Pod] = set()  # new, restarted or unhealthy: slow start when they are fit
        self.tokenizers: dict[str, TokenizerState] = {}  # of models that are tokenized here
        self.panics = False
        self.shortest: int | None = None  # of what pods take at most, in tokens
        self._panic_share = panic_share
        self.ladders: dict[str, Ladder] = {}  # the sources of each base model's tokens
        self._serving: dict[str, list[Rank]] = {}
        self._served: dict[str, Served] = {}
        self._adapted = False  # there are adapters
        self._grains: dict[str | None, list[Grain]] = {}
        self._versions: dict[str | None, tuple[str | None, ...]] = {}
        self._noticed: list[int | None] = []
        self.unnamed: str | None = None  # the model of requests that name none; None: no pod has told, or other ones

    def join(self, pod: Pod) -> None:
        self._joins += 1
        pod.joined = self._joins
        self.pods[pod.name] = pod
        pod.breaker.standing = self.standing
        self.cold.add(pod)
        self.changed()

    def leave(self, name: str) -> None:
        left = self.pods.pop(name, None)
        if left is not None:
            self.cold.discard(left)
            self._list(left, {})
        self.changed()

    def learned_models(self, pod: Pod, models: list[dict[str, Any]]) -> bool:
        """The pod answered /v1/models. True: a name stands for other weights than before."""
        cards = tuple([card_of(model) for model in models])
        if pod.models is not None and cards == pod.cards:
            return False
        other = any(pod.roots.get(card.id, card.root) != card.root for card in cards)
        for card in cards:
            pod.roots.pop(card.id, None)  # the newest last
            pod.roots[card.id] = card.root
        for name in list(pod.roots)[: max(0, len(pod.roots) - max(_ROOTS_MAX, len(cards)))]:
            del pod.roots[name]
        pod.models, pod.cards = models, cards
        pod.context_tokens = max((card.max_model_len for card in cards if card.max_model_len), default=None)
        adapters = [card.id for card in cards if card.parent]
        for rank in pod.ranks:
            if rank.feed is not None:
                rank.feed.adapters = adapters
        self._list(pod, served_by(cards))
        self.changed()
        return other

    def learned_version(self, pod: Pod, said: object) -> None:
        """The pod answered /version. What is no word is no version."""
        version = said if isinstance(said, str) and _VERSION.fullmatch(said) else None
        if version != pod.version:
            pod.version = version
            self.changed()  # its prompts may have other texts now

    def changed(self) -> None:
        """Who serves what, or in blocks of which size, has changed."""
        self.epoch += 1
        self.unnamed = shared_base([pod.served for pod in self.pods.values() if pod.served])
        self._grains.clear()
        self._versions.clear()

    def probed(self, pod: Pod, fine: bool, since: float, failures_max: int) -> None:
        """A probe is over. A pod that has served a request `since` the one before is well, however late it answers; one
        that misses `failures_max` in a row is not.
        """
        if fine:
            pod.suspect(0.0)
            pod.unanswered = None
        if fine or pod.served_at >= since:
            pod.failures, pod.answers = 0, True
        else:
            pod.failures += 1
            if pod.failures < failures_max:
                return
            pod.answers = False
        self._judge()

    def rests(self, pod: Pod, rest: Rest | None) -> bool:
        """Whether it computes, and why not. True: that is new, and what it held is gone."""
        if rest == pod.rest:
            return False
        pod.rest = rest
        self.standing.changes += 1
        self.cold.add(pod)
        return True

    def restarted(self, pod: Pod) -> None:
        """The pod was started anew: what was learned of the one before counts no more."""
        pod.evidence, pod.rest = Evidence(), None
        self.standing.changes += 1
        pod.restarts += 1
        self.cold.add(pod)
        for rank in pod.ranks:
            if rank.feed is not None:
                rank.feed.suspect()
            else:
                rank.trust.forget()
            rank.adapters.forget()

    def measured(self, pod: Pod, figures: dict[str, float]) -> bool:
        """The pod answered /metrics. True: it was started anew since it did so last."""
        before = pod.engine.get("started")
        anew = before is not None and before != figures.get("started", before)
        if anew:
            self.restarted(pod)
        pod.engine = figures
        drafter, caches = figures.get("drafter", 0.0) > 0, figures.get("caches", 1.0) > 0
        for rank in pod.ranks:
            if rank.feed is not None:
                rank.feed.told(drafter, caches)
            else:
                rank.trust.told(caches)
        feed = pod.ranks[0].feed if len(pod.ranks) == 1 else None  # the counters of several tell of no one
        proof = pod.evidence.looked(figures.get("cache_queries"), figures.get("cache_hits"))
        if proof is not None and feed is not None:
            feed.counted(*proof)
        size = figures.get("block_size")
        if size is not None and size >= 1:
            pod.block_size = int(size)
        slots = int(figures.get("lora_max", 0.0))
        for rank in pod.ranks if slots else ():
            rank.adapters.told(pod.engine_names.get("adapters", "").split(","), slots)
        blocks = figures.get("blocks")
        if blocks is not None and blocks > _NULL_BLOCKS:
            pod.blocks = int(blocks) - _NULL_BLOCKS
        return anew

    def adapter_of(self, model: str | None) -> str | None:
        """The LoRA adapter that a model's name stands for, if it is one."""
        served = self._served.get(model) if self._adapted and model is not None else None
        return None if served is None else served.lora

    def _judge(self) -> None:
        """Who is healthy: who answers probes, and where too many do not at once, who may only be slow to answer."""
        known = [pod for pod in self.pods.values() if pod.answers or (pod.models is not None and pod.unanswered)]
        silent = sum(not pod.answers for pod in known)
        self.panics = silent > self._panic_share * len(known)
        for pod in self.pods.values():
            healthy = pod.answers or (self.panics and pod.listens and pod.models is not None)
            if not healthy and pod.healthy:
                self.cold.add(pod)
            if healthy is not pod.healthy:
                pod.believe(healthy)

    def _list(self, pod: Pod, served: dict[str, Served]) -> None:
        """Have `pod` stand under the names that it serves now. The lists are not changed but replaced."""
        before, pod.served = pod.served, served
        for name in [*before, *(name for name in served if name not in before)]:
            if before.get(name) == served.get(name):
                continue
            ranks = [rank for rank in self._serving.get(name, ()) if rank.pod is not pod]
            if name in served:
                ranks = sorted([*ranks, *pod.ranks], key=lambda rank: rank.pod.joined)  # whoever told first
            if ranks:
                self._serving[name] = ranks
                self._served[name] = ranks[0].pod.served[name]
            else:
                self._serving.pop(name, None)
                self._served.pop(name, None)
        self._adapted = any(each.lora is not None for each in self._served.values())
        lengths = [pod.context_tokens for pod in self.pods.values() if pod.context_tokens is not None]
        self.shortest = min(lengths, default=None)

    def serving(self, model: str | None) -> Sequence[Rank]:
        """The candidates for a model (None: any), fit or not; raises `UnknownModel` naming the known ones."""
        if model is None:
            return [rank for pod in self.pods.values() for rank in pod.ranks]
        ranks = self._serving.get(model)
        if ranks is None:
            raise UnknownModel(f"The model {model[:200]!r} is not served here. {self._known()}")
        return ranks

    @property
    def is_of_one_model(self) -> bool:
        """A model is served by all pods, as far as they have told."""
        return self.unnamed is not None or not any(pod.served for pod in self.pods.values())

    def check_unnamed(self) -> None:
        """A request names no model: raises `BadRequest` where no model is served by all pods, naming those that are."""
        if not self.is_of_one_model:
            raise BadRequest(f"model: it is missing, and pods serve different ones. {self._known()}")

    def notice_grains(self) -> None:
        """Pods tell with their events how their blocks are made: is that another way now?"""
        grains = [rank.grain for rank in self.ranks]
        if grains != self._noticed:
            self._noticed = grains
            self.changed()

    def grains(self, model: str | None) -> list[Grain]:
        """By which the pods that serve a model make keys, each once; raises `UnknownModel`."""
        grains = self._grains.get(model)
        if grains is None:
            grains = list(dict.fromkeys(rank.grain for rank in self.serving(model) if rank.grain))
            self._grains[model] = grains
        return grains

    def versions(self, model: str | None) -> tuple[str | None, ...]:
        """What the pods that serve a model say of their vLLM, each once; raises `UnknownModel`."""
        versions = self._versions.get(model)
        if versions is None:
            versions = self._versions[model] = tuple(dict.fromkeys(rank.pod.version for rank in self.serving(model)))
        return versions

    def served(self, model: str) -> Served | None:
        return self._served.get(model)

    def names_of(self, base: str) -> list[str]:
        """What the pods call a base model: its id, and where it was loaded from."""
        cards = (card for pod in self.pods.values() for card in pod.models or () if card["id"] == base)
        return [base, *(str(card["root"]) for card in cards if card.get("root"))]

    def is_known(self, model: str) -> bool:
        return model in self._serving

    def may_eject(self) -> bool:
        """Whether one pod more may be ejected: never more than half of those that answer probes."""
        healthy = [pod for pod in self.pods.values() if pod.healthy]
        return sum(pod.breaker.tripped for pod in healthy) < len(healthy) // 2

    @property
    def ranks(self) -> Iterable[Rank]:
        return (rank for pod in self.pods.values() for rank in pod.ranks)

    def rank(self, name: Hashable) -> Rank | None:
        """By its name."""
        pod = self.pods.get(name.pod) if isinstance(name, RankId) else None
        return None if pod is None else next((rank for rank in pod.ranks if rank.id == name), None)

    def union_of_models(self) -> list[dict[str, Any]]:
        """One entry a model, as the first pod that serves it describes it."""
        told: dict[Pod, dict[str, dict[str, Any]]] = {}
        union = []
        for name, ranks in self._serving.items():
            pod = ranks[0].pod
            if pod not in told:
                for card in pod.models or []:
                    told.setdefault(pod, {}).setdefault(card["id"], card)
            union.append(told[pod][name])
        return union

    def base_models(self) -> list[str]:
        """The models that pods serve, without adapters, each once."""
        return [name for name, served in self._served.items() if served.lora is None]

    def _known(self) -> str:
        names = sorted(self._serving)
        if not names:
            return "No pod has told its models yet."
        more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
        return f"Known models: {', '.join(names[:_NAMED_MAX])}{more}."
