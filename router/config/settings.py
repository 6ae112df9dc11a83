"""The configuration: one frozen, validated model, and `load`, which reads it from its sources.

Durations are stored in seconds (float), sizes in bytes (int). Keys may be written in snake_case or camelCase.
What a field means, its bounds and its default stand with the field; docs/configuration.md is made from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, model_validator

from router.config import sources
from router.config.admission import Admission, Breaker
from router.config.events import Events
from router.config.fleet import ASK_THE_PODS, Discovery, ModelConfig, StaticPod, check_bound, twice
from router.config.gateway import KEY_HEADERS, OF_ORIGINS, Serving
from router.config.index import SharedRedis
from router.config.keys import KEY_CHARS_MAX, check_key, read_keys
from router.config.tokens import PROFILES, Parity, Profile
from router.config.upstream import PodKeys, UpstreamConfig
from router.config.values import Bytes, Count, Port, Ratio, Seconds, Section
from router.errors import ConfigError

S = TypeVar("S", bound="Section")

KIB, MIB, GIB = 2**10, 2**20, 2**30


class Gateway(Serving):
    """The gateway's own server: where it listens, what it takes at most and from whom, how it stops."""

    host: str = Field(default="0.0.0.0", min_length=1, description="Address to listen on.")
    port: Port = Field(default=8080, description="Port of the data plane. 0: any free one.")
    ops_port: Port | None = Field(default=None, description="Port of the operators' endpoints. null: the data port.")
    workers: Count = Field(
        default=1, ge=1, le=64, description="Processes that serve, each on a core of its own, see above."
    )
    workers_ranks_max: Count = Field(
        default=1024, ge=1, le=65_536, description="Pods (ranks) whose load workers tell each other; not that of more."
    )
    workers_sendings_max: Count = Field(
        default=16_384,
        ge=16,
        le=1_048_576,
        description="Beginnings of prompts and where they went that a worker keeps for others: the newest.",
    )
    workers_timeout: Seconds = Field(
        default=2.0, gt=0, le=60, description="For the answers of all workers to what an operator asks one of them."
    )
    body_max: Bytes = Field(default=64 * MIB, ge=KIB, le=GIB, description="Largest request body; above it: 413.")
    header_max: Bytes = Field(default=64 * KIB, ge=KIB, le=MIB, description="Largest request head (line and headers).")
    requests_max: Count = Field(
        default=4096, ge=1, le=1_000_000, description="Requests at the pods; above it: they wait their turn, then 429."
    )
    keep_alive_timeout: Seconds = Field(
        default=75.0,
        gt=0,
        le=3600,
        description="Idle client connections live so long: above the 60 s of load balancers.",
    )
    drain_delay: Seconds = Field(
        default=0.0,
        ge=0,
        le=300,
        description="On SIGTERM: be unready so long before new connections are refused.",
    )
    drain_timeout: Seconds = Field(
        default=120.0, ge=0, le=3600, description="On SIGTERM: requests in flight may take so long to end."
    )
    operator_key: SecretStr | None = Field(default=None, description="Key of the operators' endpoints. null: open.")
    operator_key_file: str | None = Field(default=None, min_length=1, description="File that holds the operator key.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ops_port and self.ops_port == self.port:
            raise ValueError("ops_port is the same as port: leave it out to serve both on one port")
        if self.operator_key is not None:
            if self.operator_key_file is not None:
                raise ValueError("operator_key and operator_key_file are both given: keep one")
            check_key(self.operator_key.get_secret_value(), "the operator key")
        return self


class TierWeights(Section):
    """What a matched block is worth, by the tier that holds it; 1 is a block that costs nothing to use."""

    gpu: Ratio = Field(default=1.0, ge=0, le=1, description="In the pod's GPU memory.")
    cpu: Ratio = Field(default=0.8, ge=0, le=1, description="Offloaded to the host's memory.")
    disk: Ratio = Field(default=0.5, ge=0, le=1, description="Offloaded to files or an object store.")


class Index(Section):
    """The index: who holds which block."""

    tier_weights: TierWeights = TierWeights()
    blocks_max: Count = Field(default=8_000_000, ge=1024, le=1_000_000_000, description="Distinct blocks kept.")
    predicted_ttl: Seconds = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="A routed prompt's blocks count as held so long without an event.",
    )
    predicted_grace: Seconds = Field(
        default=1.0, ge=0, le=60, description="After a response, the events of its request may take so long."
    )
    blind_ttl: Seconds = Field(
        default=300.0, ge=0, le=86400, description="As predicted_ttl, for a pod without events: nothing confirms."
    )
    text_max: Bytes = Field(
        default=128 * KIB,
        ge=KIB,
        le=64 * MIB,
        description="Of the text of a prompt that can't be tokenized: so much is compared with what went before.",
    )
    text_blocks_max: Count = Field(
        default=500_000, ge=1024, le=1_000_000_000, description="Distinct blocks of such texts kept, of 128 bytes each."
    )
    orphans_max: Count = Field(
        default=100_000,
        ge=0,
        le=100_000_000,
        description="Blocks of a pod kept whose parent is not known yet, and as many for which there is no room yet.",
    )
    pods_max: Count = Field(
        default=512, ge=1, le=4096, description="Pods, each rank counted: not fewer than there are."
    )
    redis: SharedRedis = SharedRedis()


class PrefixStore(Section):
    """The prefix store: prompts' text to token ids, and the cached matches of pods (pod mappings)."""

    profile: Profile = Field(
        default="chat_completions",
        description="Settings of the store for a kind of work, see above; those that are given win over it.",
    )
    enable_pod_mapping_cache: bool = Field(
        default=True,
        serialization_alias="enablePodMappingCache",
        description="Cache pod mappings, if the switch at the top level is on too.",
    )
    pod_mapping_ttl: Seconds = Field(
        default=30.0,
        serialization_alias="podMappingTTL",
        gt=0,
        le=86400,
        description="A mapping lives so long at most; an event that touches it ends it at once.",
    )
    max_pod_sets_per_block: Count = Field(
        default=5,
        serialization_alias="maxPodSetsPerBlock",
        ge=1,
        le=1000,
        description="Mappings kept per block of text, one for each set of pods asked for.",
    )
    bytes_max: Bytes = Field(
        default=256 * MIB,
        ge=MIB,
        le=1024 * GIB,
        description="Memory of the store; the least recently used goes first.",
    )
    piece_bytes: Bytes = Field(
        default=2 * KIB,
        ge=256,
        le=64 * KIB,
        description="About every so many bytes a text may be cut: what is behind its last cut is tokenized again.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_profile(cls, given: Any) -> Any:
        """The profile's settings, under those that are given."""
        if not isinstance(given, Mapping):
            return given
        profile = given.get("profile")
        return {**PROFILES.get(profile, {}), **given} if isinstance(profile, str) else given


class Tokens(Section):
    """Tokenization, the dearest part of a cold decision."""

    threads: Count = Field(
        default=1, ge=1, le=64, description="Threads that tokenize long texts; each takes 30 MB for each model."
    )
    deadline: Seconds = Field(
        default=2.0, gt=0, le=60, description="After it a request is routed by load alone, and says so."
    )
    text_max: Bytes = Field(
        default=8 * MIB,
        ge=KIB,
        le=GIB,
        description="Longer prompts are routed by load: above any context, they would keep a thread for seconds.",
    )
    inline_max: Bytes = Field(
        default=16 * KIB,
        ge=0,
        le=MIB,
        description="New text up to here is tokenized at once: others wait for 0.7 ms, 4 ms if it is made to be slow.",
    )
    sliced_max: Bytes = Field(
        default=48 * KIB,
        ge=0,
        le=MIB,
        description="New text up to here is tokenized in such slices, with others' turns between; longer in threads.",
    )
    waiting_max: Bytes = Field(
        default=64 * MIB,
        ge=KIB,
        le=GIB,
        description="Text of all prompts that wait for slices or threads; above it they are routed by load.",
    )
    hedge_delay: Seconds = Field(
        default=0.15,
        ge=0,
        le=60,
        description="Where pods tokenize: a second pod is asked after so long without an answer.",
    )
    questions_max: Count = Field(
        default=32, ge=1, le=10_000, description="Where pods tokenize: questions under way; more wait their turn."
    )
    question_max: Bytes = Field(
        default=2 * MIB, ge=KIB, le=64 * MIB, description="Where pods tokenize: longer prompts are routed by load."
    )
    body_inline_max: Bytes = Field(
        default=MIB,
        ge=KIB,
        le=GIB,
        description="Bodies up to here are read at once, if they are no more than text; larger ones in a thread.",
    )
    decoded_max: Bytes = Field(
        default=48 * MIB,
        ge=KIB,
        le=64 * GIB,
        description="Memory for what is used of a large body when it is decoded; above it, it is routed by load.",
    )
    recall_max: Bytes = Field(
        default=64 * MIB, ge=0, le=64 * GIB, description="Memory for whole requests seen before: not parsed again."
    )
    recall_body_max: Bytes = Field(default=MIB, ge=0, le=GIB, description="Larger bodies are not kept for that.")


class Scoring(Section):
    """How a pod is picked."""

    policy: Literal["predicted-ttft", "weighted", "round-robin", "least-load"] = Field(
        default="predicted-ttft", description="Policy that picks the pod."
    )
    beta: Ratio = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Price of the fleet's work beside this request's wait; 4 to 8 near saturation.",
    )
    prefill_tokens_per_second: Ratio = Field(
        default=8000.0,
        gt=0,
        le=10_000_000,
        description="A pod's prefill speed before it is learned. Better too low than too high.",
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


class Probe(Section):
    """Probing of the pods."""

    interval: Seconds = Field(default=2.0, gt=0, le=3600, description="Between two probes of a pod.")
    timeout: Seconds = Field(default=2.0, gt=0, le=60, description="For one probe.")
    failures_max: Count = Field(default=3, ge=1, le=100, description="Failures in a row after which a pod is unfit.")
    look_interval: Seconds = Field(
        default=2.0,
        gt=0,
        le=3600,
        description="Between two looks at all pods' models because a request names one that a pod does not know.",
    )
    panic_share: Ratio = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Where more of the pods than this do not answer probes in time, the probes are not believed.",
    )


class Decisions(Section):
    """The last picks, for `/decisions` and the page."""

    kept: Count = Field(default=200, ge=0, le=100_000, description="Decisions kept.")


class Config(Section):
    """All settings of the gateway."""

    gateway: Gateway = Gateway()
    discovery: Discovery = Discovery()
    models: tuple[ModelConfig, ...] = Field(default=(), max_length=1000, description="The models and their tokenizers.")
    index: Index = Index()
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
    prefix_store_config: PrefixStore = Field(default=PrefixStore(), serialization_alias="prefixStoreConfig")
    tokens: Tokens = Tokens()
    parity: Parity = Parity()
    scoring: Scoring = Scoring()
    upstream: UpstreamConfig = UpstreamConfig()
    pods: PodKeys = PodKeys()
    breaker: Breaker = Breaker()
    admission: Admission = Admission()
    events: Events = Events()
    probe: Probe = Probe()
    decisions: Decisions = Decisions()

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


# --- reading


def load(path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """The configuration of flags > environment > file > defaults; ConfigError with one plain line.

    `flags` has dotted keys (`gateway.port`); None is a flag that was not given. Files that the configuration
    names must exist, relative to the working directory; the operator key is read from its file.
    """
    layers = [] if path is None else [sources.file_layer(Config, path)]
    layers += sources.environment_layers(Config, environ)
    layers += sources.flag_layers(Config, flags)
    try:
        config = Config.model_validate(sources.merged(layers))
    except ValidationError as error:
        raise ConfigError(_line(Config, error, layers)) from None
    _check_files(config)
    return _with_key(config)


def parse_pod(text: str) -> StaticPod:
    """A pod of `name=pod-0,address=http://…,events=tcp://…,replay=tcp://…[,data_parallel_size=2]`."""
    return _parsed(StaticPod, text, "--pod")


def parse_model(text: str) -> ModelConfig:
    """A model of `name=…,tokenizer=…`; lists and mappings are JSON (`aliases=["a","b"]`)."""
    return _parsed(ModelConfig, text, "--model")


def _parsed(model: type[S], text: str, flag: str) -> S:
    try:
        return model.model_validate(sources.pairs(model, text, flag))
    except ValidationError as error:
        raise ConfigError(f"{flag}: {_line(model, error, [])}") from None


def _line(model: type[Section], error: ValidationError, layers: Sequence[sources.Layer]) -> str:
    return sources.one_line(model, error, layers, frozenset({"operator_key", "api_key", "api_keys", "url"}))


def _check_files(config: Config) -> None:
    for model in config.models:
        where = f"models: {model.name}"
        if model.tokenizer != ASK_THE_PODS and not Path(model.tokenizer, "tokenizer.json").is_file():
            raise ConfigError(f"{where}: tokenizer: there is no {model.tokenizer}/tokenizer.json")
        if model.chat_template is not None and not Path(model.chat_template).is_file():
            raise ConfigError(f"{where}: chat_template: there is no file {model.chat_template}")
    for what, path in (
        ("cert_file", config.gateway.tls.cert_file),
        ("key_file", config.gateway.tls.key_file),
        ("client_ca_file", config.gateway.tls.client_ca_file),
    ):
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"gateway.tls.{what}: there is no file {path}")
    _check_keys("gateway.api_keys_file", config.gateway.api_keys_file)
    _check_keys("pods.api_key_file", config.pods.api_key_file)
    for pod in config.discovery.static:
        _check_keys(f"discovery.static: {pod.name}: api_key_file", pod.api_key_file)


def _check_keys(where: str, path: str | None) -> None:
    try:
        if path is not None and not read_keys(path):
            raise ConfigError(f"{where}: {path}: holds no key")
    except OSError as error:
        raise ConfigError(f"{where}: {path}: can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {path}: {error}") from None


def _with_key(config: Config) -> Config:
    """The same with `operator_key` read from `operator_key_file`, where that is given."""
    path = config.gateway.operator_key_file
    if path is None:
        return config
    where = f"gateway.operator_key_file: {path}"
    try:
        with Path(path).open(encoding="utf-8") as file:
            key = file.read(KEY_CHARS_MAX + 2).strip()
        check_key(key, "the operator key")
    except OSError as error:
        raise ConfigError(f"{where}: can't be read: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError is one
        reason = "is not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigError(f"{where}: {reason}") from None
    gateway = config.gateway.model_copy(update={"operator_key": SecretStr(key)})
    return config.model_copy(update={"gateway": gateway})
