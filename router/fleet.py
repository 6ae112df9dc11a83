"""What is known of the pods: who they are, what they serve, whether they are fit. Pure: others find the facts out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from indexer.feed import Feed
from router.breaker import Breaker
from router.errors import UnknownModel
from scorer.load import PodLoad

_NAMED_MAX = 10  # models named in an error message
_NUMBERS = re.compile(r"v?(\d+)\.(\d+)")
_ZERO_REPORTED = (0, 24)


class RankId(NamedTuple):
    """One publisher of events, one candidate: a data-parallel rank of a pod (0 where there is only one)."""

    pod: str
    rank: int


@dataclass(slots=True, eq=False)
class Rank:
    """One candidate."""

    id: RankId
    pod: Pod
    load: PodLoad
    feed: Feed | None  # None: the pod publishes no events

    @property
    def block_size(self) -> int | None:
        """Tokens a block: learned from events, else what the pod's metrics or the configuration say."""
        learned = self.feed.block_size if self.feed is not None else None
        return learned or self.pod.block_size

    @property
    def state(self) -> str:
        return self.feed.state if self.feed is not None else "blind"

    @property
    def tells(self) -> bool:
        """Its events will say what becomes of a prompt; if not, our own picks are all that there is to go by."""
        feed = self.feed
        return feed is not None and feed.heard and not feed.truncated


@dataclass(slots=True, eq=False)
class Evidence:
    """How a pod's predictions are checked: by each response's usage, else by its counters of cached tokens.

    The counters prove something only of a stretch between two looks in which the pod looked up just what we sent it.
    """

    usage: bool = False  # its responses report cached tokens
    asked_tokens: int = 0  # in requests served since the last look
    predicted_tokens: int = 0
    queries: float | None = None  # its counters, at the last look
    hits: float | None = None

    @property
    def source(self) -> str:
        if self.usage:
            return "usage"
        return "counters" if self.queries is not None else "none"

    def unreported(self, asked_tokens: int, predicted_tokens: int) -> None:
        """A request was served, and its response does not tell."""
        self.asked_tokens += asked_tokens
        self.predicted_tokens += predicted_tokens

    def looked(self, queries: float | None, hits: float | None) -> tuple[int, int] | None:
        """The counters now: predicted and reported tokens of the stretch since the last look, if it proves anything."""
        if queries is not None and queries == self.queries:
            return None  # it counts a moment after it has answered
        had_queries, had_hits = self.queries, self.hits
        asked, predicted = self.asked_tokens, self.predicted_tokens
        self.queries, self.hits, self.asked_tokens, self.predicted_tokens = queries, hits, 0, 0
        if queries is None or hits is None or had_queries is None or had_hits is None or self.usage:
            return None
        if not asked or queries - had_queries != asked:
            return None
        return predicted, round(hits - had_hits)


@dataclass(slots=True, eq=False)
class Pod:
    """One vLLM server. `models` is its /v1/models list, None as long as it has not answered."""

    name: str
    address: str
    ranks: list[Rank] = field(default_factory=list)
    models: list[dict[str, Any]] | None = None
    block_size: int | None = None
    blocks: int | None = None  # of one rank's cache, as its metrics say
    version: str | None = None
    healthy: bool = False
    failures: int = 0  # in a row
    suspect_until: float = 0.0  # a request failed to reach it: others first
    draining: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    slow_until: float = 0.0  # its slow start ends then
    engine: dict[str, float] = field(default_factory=dict)  # scraped figures
    evidence: Evidence = field(default_factory=Evidence)

    def fit(self, now: float) -> bool:
        if not self.healthy or self.draining or self.suspect_until > now:
            return False
        return self.breaker.blocked_until <= now

    @property
    def hides_zero(self) -> bool:
        """Up to vLLM 0.23, a pod that reports cached tokens leaves them out where they are 0."""
        numbers = _NUMBERS.match(self.version or "0.0")
        return numbers is None or (int(numbers[1]), int(numbers[2])) < _ZERO_REPORTED

    @property
    def requests(self) -> int:
        return sum(rank.load.requests for rank in self.ranks)


class Served(NamedTuple):
    """A model name that requests may give: the base model, whose tokenizer it has, and its adapter if it is one."""

    base: str
    lora: str | None


@dataclass(slots=True, eq=False)
class TokenizerState:
    """Whether the token ids that are made here are those of the pods; `degraded`: they are not, the pods are asked."""

    state: Literal["unverified", "exact", "degraded"] = "unverified"
    reason: str | None = None
    compared: int = 0
    different: int = 0


class Fleet:
    """All pods, and who serves which model."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self.epoch = 0  # counts changes of who serves what, and how
        self.cold: set[Pod] = set()  # new, restarted or unhealthy: slow start when they are fit
        self.tokenizers: dict[str, TokenizerState] = {}  # of models that are tokenized here
        self._serving: dict[str, list[Rank]] = {}
        self._served: dict[str, Served] = {}
        self._sizes: dict[str | None, list[int]] = {}
        self._noticed: list[int | None] = []

    def join(self, pod: Pod) -> None:
        self.pods[pod.name] = pod
        self.cold.add(pod)
        self.changed()

    def leave(self, name: str) -> None:
        left = self.pods.pop(name, None)
        if left is not None:
            self.cold.discard(left)
        self.changed()

    def learned_models(self, pod: Pod, models: list[dict[str, Any]]) -> None:
        """The pod answered /v1/models."""
        if models == pod.models:
            return
        pod.models = models
        adapters = [m["id"] for m in models if m.get("parent")]
        for rank in pod.ranks:
            if rank.feed is not None:
                rank.feed.adapters = adapters
        self.changed()

    def changed(self) -> None:
        """Who serves what, or in blocks of which size, has changed."""
        self.epoch += 1
        self._sizes.clear()
        self._serving.clear()
        self._served.clear()
        for pod in self.pods.values():
            bases = [m["id"] for m in pod.models or () if not m.get("parent")]
            for model in pod.models or ():
                base = self._base(model, bases)
                self._serving.setdefault(model["id"], []).extend(pod.ranks)
                self._served.setdefault(model["id"], Served(base, model["id"] if model.get("parent") else None))

    def serving(self, model: str | None) -> Sequence[Rank]:
        """The candidates for a model (None: any), fit or not; raises `UnknownModel` naming the known ones."""
        if model is None:
            return [rank for pod in self.pods.values() for rank in pod.ranks]
        ranks = self._serving.get(model)
        if ranks is None:
            raise UnknownModel(f"The model {model[:200]!r} is not served here. {self._known()}")
        return ranks

    def notice_sizes(self) -> None:
        """Pods tell their block sizes with their events: has one changed?"""
        sizes = [rank.block_size for rank in self.ranks]
        if sizes != self._noticed:
            self._noticed = sizes
            self.changed()

    def block_sizes(self, model: str | None) -> list[int]:
        """The block sizes of the pods that serve a model, each once; raises `UnknownModel`."""
        sizes = self._sizes.get(model)
        if sizes is None:
            sizes = list(dict.fromkeys(rank.block_size for rank in self.serving(model) if rank.block_size))
            self._sizes[model] = sizes
        return sizes

    def served(self, model: str) -> Served | None:
        return self._served.get(model)

    def is_known(self, model: str) -> bool:
        return model in self._serving

    def may_eject(self) -> bool:
        """Whether one pod more may be ejected: never more than half of those that answer probes."""
        healthy = [pod for pod in self.pods.values() if pod.healthy]
        return sum(pod.breaker.tripped for pod in healthy) < len(healthy) // 2

    @property
    def ranks(self) -> Iterable[Rank]:
        return (rank for pod in self.pods.values() for rank in pod.ranks)

    def union_of_models(self) -> list[dict[str, Any]]:
        """One entry a model, as the first pod that serves it describes it."""
        union: dict[str, dict[str, Any]] = {}
        for pod in self.pods.values():
            for model in pod.models or ():
                union.setdefault(model["id"], model)
        return list(union.values())

    def base_models(self) -> list[str]:
        """The models that pods serve, without adapters, each once."""
        return [model["id"] for model in self.union_of_models() if not model.get("parent")]

    def _known(self) -> str:
        names = sorted(self._serving)
        if not names:
            return "No pod has told its models yet."
        more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
        return f"Known models: {', '.join(names[:_NAMED_MAX])}{more}."

    @staticmethod
    def _base(model: dict[str, Any], bases: list[str]) -> str:
        parent = model.get("parent")
        if not parent:
            return str(model["id"])
        if parent in bases or not bases:
            return str(parent)
        return bases[0]  # vLLM names the parent by its path; a pod has one base model
