"""The configuration: one frozen, validated model of all sections. `reading.load` reads it from its sources.

Durations are stored in seconds (float), sizes in bytes (int). Keys may be written in snake_case or camelCase.
What a field means, its bounds and its default stand with the field; docs/configuration.md is made from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from router.config.admission import AdmissionConfig, BreakerConfig
from router.config.events import EventsConfig
from router.config.fleet import (
    DiscoveryConfig,
    HandoverConfig,
    ModelConfig,
    ProbeConfig,
    WarmupConfig,
    check_bound,
    twice,
)
from router.config.gateway import KEY_HEADERS, OF_ORIGINS, GatewayConfig, PageConfig
from router.config.index import IndexConfig, PeersConfig, StateConfig
from router.config.tokens import ParityConfig, PrefixStoreConfig, TokensConfig
from router.config.upstream import PodKeysConfig, UpstreamConfig
from router.config.values import Bytes, Count, Ratio, Seconds, Section
from scorer.policies import PolicyName


class WeightsConfig(Section):
    """What each share counts for in the policy `weighted`."""

    prefix: Ratio = Field(default=3.0, ge=0, le=1000, description="Share of the prompt that the pod was sent before.")
    queue: Ratio = Field(default=2.0, ge=0, le=1000, description="How few requests it has, beside the other pods.")
    kv: Ratio = Field(default=2.0, ge=0, le=1000, description="Share of its memory that no request uses now.")


Mode = Literal["auto", "interactive", "streaming", "bulk", "batch"]

MODES: Mapping[str, Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "interactive": {"scoring": {"beta": 0.5, "request_cost": 0.004}, "admission": {"look_ahead": 0.25}},
        "streaming": {"scoring": {"beta": 1.0, "request_cost": 0.01}, "admission": {"look_ahead": 0.5}},
        "bulk": {"scoring": {"beta": 4.0, "eviction": 6.0}, "admission": {"look_ahead": 2.0, "wait_max": 30.0}},
        "batch": {
            "scoring": {"beta": 8.0, "eviction": 8.0, "request_cost": 0.0},
            "admission": {"look_ahead": 4.0, "wait_max": 300.0, "hold_max": 600.0},
        },
    }
)
"""By section, what a mode sets that is not given. `auto` is what everything is by default, and what is measured."""


class PiecesConfig(Section):
    """Long prompts that a pod has to compute go there in pieces, so that short ones get their turns between.

    Only where most prompts continue others, and not while many long ones wait; never more than one at a pod at a time.
    Each piece is a completion of one token, of the prompt's token ids up to there; the request follows as it came, and
    finds the most of its prompt cached. So its usage calls cached what was computed for it a moment before.
    """

    enabled: bool = Field(default=True, description="Send them so.")
    tokens: Count = Field(
        default=16_384,
        ge=512,
        le=10_000_000,
        description="Of a piece. A prompt of which the pod lacks less than one and a half of it goes whole.",
    )


class ScoringConfig(Section):
    """How a pod is picked."""

    mode: Mode = Field(
        default="auto", description="Settings for a kind of work, see above; those that are given win over it."
    )
    policy: PolicyName = Field(default="predicted-ttft", description="Policy that picks the pod, see above.")
    shadow: PolicyName | None = Field(
        default=None, description="Another policy: what it would have picked is counted, and nothing else comes of it."
    )
    saturated: Seconds = Field(
        default=2.0,
        gt=0,
        le=3600,
        description="Of `affinity-until-saturated`: a pod is, when so much prefill waits there.",
    )
    weights: WeightsConfig = WeightsConfig()
    hash_block_size: Count = Field(
        default=64,
        ge=1,
        le=65_536,
        description="Of `weighted` and `approximate`: tokens a block of what pods were sent.",
    )
    max_prefix_blocks_to_match: Count = Field(
        default=256, ge=1, le=1_000_000, description="Of `weighted`: so many blocks of a prompt are looked at."
    )
    lru_capacity_per_server: Count = Field(
        default=31_250,
        ge=1,
        le=100_000_000,
        description="Of `weighted`: blocks remembered of each pod. Of `approximate`: where its capacity is not known.",
    )
    cache_hit_bonus: Ratio = Field(
        default=0.0, ge=0, le=1000, description="Of `weighted`: what any hit at all counts for, beside its length."
    )
    beta: Ratio = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Price of the fleet's work beside this request's wait; 4 to 8 near saturation.",
    )
    eviction: Ratio = Field(
        default=4.0,
        ge=0,
        le=100,
        description="Price of what a pod gives up for a request, as far as it is asked for again.",
    )
    request_cost: Seconds = Field(
        default=0.002,
        ge=0,
        le=10,
        description="Each request in flight is taken to delay another's first token by so much.",
    )
    adapter_load: Seconds = Field(
        default=0.2,
        ge=0,
        le=60,
        description="A pod that has not loaded a request's LoRA adapter is later by so much, and by as much again "
        "where another one has to go for it.",
    )
    prefill_tokens_per_second: Ratio = Field(
        default=8000.0,
        gt=0,
        le=10_000_000,
        description="A pod's prefill speed before it is learned. Better too low than too high.",
    )
    chain_keys_max: Count = Field(
        default=65_536,
        ge=1024,
        le=10_000_000,
        description="Prompts are recognised when they are continued by so many keys, one for 256 tokens.",
    )
    slow_start: Seconds = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="The price of a pod that is new or was away falls to its own in this time. 0: at once.",
    )
    slow_start_factor: Ratio = Field(
        default=4.0, ge=1, le=1000, description="By what that price is multiplied at first."
    )
    pieces: PiecesConfig = PiecesConfig()


class RecordConfig(Section):
    """Requests written down as they end: when they came, lengths, keyed hashes of blocks, outcomes."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="File that is appended to; `PATH.1` has what is older. null: none.",
    )
    size_max: Bytes = Field(
        default=2**30,
        ge=2**20,
        le=2**40,
        description="Bytes of both files together. The newest are kept: at half of it, the file becomes `PATH.1`.",
    )
    queue_max: Count = Field(
        default=10_000,
        ge=1,
        le=10_000_000,
        description="Requests that wait to be written; more are dropped, and counted.",
    )


class DecisionsConfig(Section):
    """The last picks, for `/decisions` and the page; what is remembered to say why prompts were not cached."""

    kept: Count = Field(default=200, ge=0, le=100_000, description="Decisions kept.")
    errors_kept: Count = Field(default=100, ge=0, le=100_000, description="Requests kept that ended in an error.")
    remembered_blocks: Count = Field(
        default=262_144,
        ge=0,
        le=1 << 28,
        description="Blocks of which it is remembered who asked for them and who gave them up: 33 bytes each. 0: none.",
    )
    remembered_prompts: Count = Field(
        default=4096,
        ge=0,
        le=1_000_000,
        description="Prompts whose fingerprints are kept, to see what was changed in one: hashes, never text. 0: none.",
    )
    compared_max: Bytes = Field(
        default=1 << 20, ge=0, le=1 << 26, description="Larger bodies are not compared with earlier ones."
    )
    comparing_share: Ratio = Field(
        default=0.02, ge=0, le=1, description="Share of one core's time for that; what comes beyond it is not compared."
    )


class LogConfig(Section):
    """The log, and its one line for each request, at its end. Its level says how the request ended."""

    format: Literal["console", "json"] = Field(default="console", description="Text, or a JSON object on each line.")
    requests: Literal["all", "errors", "none"] = Field(
        default="all", description="Which requests get their line: `errors` are those that failed or were retried."
    )
    prompts: bool = Field(default=False, description="Bodies of requests, as they came, are in that line, too.")
    prompt_max: Bytes = Field(default=4096, ge=0, le=1 << 20, description="So much of a body, where it is.")


class SessionsConfig(Section):
    """Who asks again and again, named by `x-warmroute-session`, `header`, the body's `prompt_cache_key` or `user`.

    One without a name is a chain of prompts that continue one another. `GET /sessions` tells of them.
    """

    header: str = Field(
        default="X-Session-ID",
        min_length=1,
        max_length=100,
        pattern="^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
        description="Header of clients that names a session.",
    )
    idle: Seconds = Field(default=600.0, gt=0, le=86400, description="One that asks nothing for so long is forgotten.")
    kept_max: Count = Field(default=10_000, ge=1, le=1_000_000, description="Sessions kept, the newest.")


class SeriesConfig(Section):
    """What `/metrics` tells of requests, by model, pod and code."""

    series_max: Count = Field(
        default=20_000, ge=100, le=1_000_000, description="Series of requests; what is new then counts as `other`."
    )
    departed_kept: Seconds = Field(
        default=3600.0, ge=0, description="The series of pods and models (adapters, too) that are gone end after this."
    )


class AlertsConfig(Section):
    """When `/alerts` speaks up. Shares are of the last minute."""

    hit_ratio_min: Ratio = Field(
        default=0.3, ge=0, le=1, description="Fewer of the prompt tokens cached: `hit_ratio_low`. 0: never."
    )
    decision_p99: Seconds = Field(default=0.1, gt=0, le=60, description="A longer p99 of decisions: `decision_slow`.")
    evictions_max: Ratio = Field(
        default=10.0,
        ge=0,
        le=1_000_000,
        description="More entries of index and prefix store given up a second: `evictions_high`.",
    )
    memory_max: Ratio = Field(
        default=0.9, gt=0, le=1, description="A larger share of the memory limit used: `memory_high`."
    )
    prediction_error_max: Ratio = Field(
        default=0.05,
        ge=0,
        le=1,
        description="A larger share of predictions off by more than 64 tokens: `predictions_wrong`.",
    )
    requests_min: Count = Field(
        default=10, ge=1, le=1_000_000, description="With fewer requests in a minute, their shares and p99 say nothing."
    )
    patience: Seconds = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="A pod may be blind or degraded, or a gap open, for so long: both are usual at a pod's start.",
    )
    interval: Seconds = Field(default=1.0, ge=0.05, le=3600, description="Between two looks.")


class TracingConfig(Section):
    """Traces of requests, told to an OpenTelemetry collector. Needs `warmroute[otel]`."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="Where it takes OTLP over HTTP, like `http://collector:4318/v1/traces`. null: no traces.",
    )
    service: str = Field(default="warmroute", min_length=1, max_length=200, description="The gateway's name in traces.")
    sample: Ratio = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of requests that are traced; of those with a `traceparent`, it says.",
    )


class Config(Section):
    """All settings of the gateway."""

    gateway: GatewayConfig = GatewayConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    models: tuple[ModelConfig, ...] = Field(default=(), max_length=1000, description="The models and their tokenizers.")
    index: IndexConfig = IndexConfig()
    enable_pod_mapping_cache: bool = Field(
        default=True,
        serialization_alias="enablePodMappingCache",
        description="Cache pod mappings. false here wins over `prefixStoreConfig`.",
    )
    cache_cleanup_interval: Seconds = Field(
        default=60.0,
        serialization_alias="cacheCleanupInterval",
        gt=0,
        le=86400,
        description="Between two cleanups of expired mappings.",
    )
    prefix_store_config: PrefixStoreConfig = Field(default=PrefixStoreConfig(), serialization_alias="prefixStoreConfig")
    tokens: TokensConfig = TokensConfig()
    parity: ParityConfig = ParityConfig()
    scoring: ScoringConfig = ScoringConfig()
    record: RecordConfig = RecordConfig()
    upstream: UpstreamConfig = UpstreamConfig()
    pods: PodKeysConfig = PodKeysConfig()
    breaker: BreakerConfig = BreakerConfig()
    admission: AdmissionConfig = AdmissionConfig()
    sessions: SessionsConfig = SessionsConfig()
    events: EventsConfig = EventsConfig()
    probe: ProbeConfig = ProbeConfig()
    handover: HandoverConfig = HandoverConfig()
    state: StateConfig = StateConfig()
    peers: PeersConfig = PeersConfig()
    warmup: WarmupConfig = WarmupConfig()
    decisions: DecisionsConfig = DecisionsConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()
    metrics: SeriesConfig = SeriesConfig()
    page: PageConfig = PageConfig()
    alerts: AlertsConfig = AlertsConfig()

    @model_validator(mode="before")
    @classmethod
    def _of_mode(cls, given: Any) -> Any:
        """The mode's settings, under those that are given."""
        scoring = given.get("scoring") if isinstance(given, Mapping) else None
        mode = scoring.get("mode") if isinstance(scoring, Mapping) else None
        if not isinstance(mode, str) or mode not in MODES:
            return given
        set_by_it = {
            section: {**settings, **said}
            for section, settings in MODES[mode].items()
            if isinstance(said := given.get(section, {}), Mapping)
        }
        return {**given, **set_by_it}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if name := twice(name for model in self.models for name in (model.name, *model.aliases)):
            raise ValueError(f"models: the name or alias {name} is given twice")
        check_bound(self.discovery.static, self.events.bind)
        if self.events.bind is not None and self.gateway.workers > 1:
            raise ValueError("events.bind goes with one worker: a publisher can connect to one process only")
        ranks = sum(pod.data_parallel_size for pod in self.discovery.static)
        if ranks > self.index.pods_max:
            raise ValueError(f"index.pods_max is {self.index.pods_max}, and there are {ranks} pods (or ranks)")
        return self

    @property
    def shows_own_keys(self) -> bool:
        """Whether pods are shown their own keys with clients' requests."""
        replaces = self.pods.replace_client_keys
        return not self.gateway.forwards_keys if replaces is None else replaces

    @property
    def withheld(self) -> frozenset[bytes]:
        """Headers of clients that pods do not see: about origins, which are ours to answer, and maybe keys."""
        keys = self.gateway.forwards_keys and not self.pods.replace_client_keys
        return OF_ORIGINS if keys else OF_ORIGINS | KEY_HEADERS

    @property
    def pod_mappings_enabled(self) -> bool:
        """Whether pod mappings are cached: both switches are on."""
        return self.enable_pod_mapping_cache and self.prefix_store_config.enable_pod_mapping_cache
