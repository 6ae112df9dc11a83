"""The part of the configuration that is about tokens: how they are made, kept and checked."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from indexer.eviction import EvictionLimits, EvictionPolicy
from router.config.values import Bytes, Count, Ratio, Seconds, Section

Profile = Literal["chat_completions", "code_completion", "summarization"]

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30

PROFILES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        # Conversations that grow by some hundred tokens a turn, and come back within half a minute.
        "chat_completions": MappingProxyType(
            {"bytes_max": 256 * _MIB, "piece_bytes": 2048, "pod_mapping_ttl": 30.0, "max_pod_sets_per_block": 5}
        ),
        # A few kilobytes that change a little with every key pressed, and do not come back as they were. Measured, of
        # 12 KB that grow by 12 bytes: half the time of pieces of 2 KiB, and a fifth less memory.
        "code_completion": MappingProxyType(
            {"bytes_max": 256 * _MIB, "piece_bytes": 512, "pod_mapping_ttl": 10.0, "max_pod_sets_per_block": 2}
        ),
        # Long documents, each with a few questions over minutes: a tenth less memory for each token, kept longer.
        "summarization": MappingProxyType(
            {"bytes_max": 512 * _MIB, "piece_bytes": 4096, "pod_mapping_ttl": 120.0, "max_pod_sets_per_block": 2}
        ),
    }
)
"""What the settings of the prefix store are under a profile, where they are not given."""


class EvictionConfig(Section):
    """What the prefix store gives up first. `weighted_lru` looks at what was not used for longest, and of that gives up
    what is worth least: `recency`, `frequency` and `size` (which counts against it) are weights of shares in [0, 1]."""

    policy: EvictionPolicy = Field(
        default="weighted_lru", description="`lru`: in the order of use. `weighted_lru`: what is worth least first."
    )
    frequency: Ratio = Field(default=0.5, ge=0, le=100, description="Weight of how often it was used.")
    size: Ratio = Field(default=0.0, ge=0, le=100, description="Weight of its bytes.")
    recency: Ratio = Field(default=1.0, ge=0, le=100, description="Weight of its place in the order of use.")
    threshold: Ratio = Field(
        default=0.9, gt=0, le=1, description="Share of `bytes_max` from which on something is given up."
    )
    batch_size: Count = Field(default=16, ge=1, le=10_000, description="Pieces of text that are given up in one go.")


class PrefixStoreConfig(Section):
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
        default=256 * _MIB,
        ge=_MIB,
        le=1024 * _GIB,
        description="Memory of the store; what goes first is said by `eviction`.",
    )
    piece_bytes: Bytes = Field(
        default=2 * _KIB,
        ge=256,
        le=64 * _KIB,
        description="About every so many bytes a text may be cut: what is behind its last cut is tokenized again.",
    )
    eviction: EvictionConfig = EvictionConfig()

    @property
    def evictions(self) -> EvictionLimits:
        """The same for the store."""
        given = self.eviction
        weights = (given.frequency, given.size, given.recency)
        return EvictionLimits(given.policy, *weights, given.threshold, given.batch_size)

    @model_validator(mode="before")
    @classmethod
    def _of_profile(cls, given: Any) -> Any:
        """The profile's settings, under those that are given."""
        if not isinstance(given, Mapping):
            return given
        profile = given.get("profile")
        return {**PROFILES.get(profile, {}), **given} if isinstance(profile, str) else given


class TokensConfig(Section):
    """Tokenization, the dearest part of a cold decision."""

    threads: Count = Field(
        default=1, ge=1, le=64, description="Threads that tokenize long texts; each takes 30 MB for each model."
    )
    deadline: Seconds = Field(
        default=2.0, gt=0, le=60, description="After it a request is routed by load alone, and says so."
    )
    reading_max: Seconds = Field(
        default=5.0, gt=0, le=300, description="A large body that is not read after so long is routed by load, too."
    )
    text_max: Bytes = Field(
        default=8 * _MIB,
        ge=_KIB,
        le=_GIB,
        description="Longer prompts are routed by load: above any context, they would keep a thread for seconds.",
    )
    inline_max: Bytes = Field(
        default=16 * _KIB,
        ge=0,
        le=_MIB,
        description="New text up to here is tokenized at once: others wait for 0.7 ms, 4 ms if it is made to be slow.",
    )
    sliced_max: Bytes = Field(
        default=48 * _KIB,
        ge=0,
        le=_MIB,
        description="New text up to here is tokenized in such slices, with others' turns between; longer in threads.",
    )
    waiting_max: Bytes = Field(
        default=64 * _MIB,
        ge=_KIB,
        le=_GIB,
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
        default=2 * _MIB, ge=_KIB, le=64 * _MIB, description="Where pods tokenize: longer prompts are routed by load."
    )
    body_inline_max: Bytes = Field(
        default=_MIB,
        ge=_KIB,
        le=_GIB,
        description="Bodies up to here are read at once, if they are no more than text; larger ones in a thread.",
    )
    decoded_max: Bytes = Field(
        default=48 * _MIB,
        ge=_KIB,
        le=64 * _GIB,
        description="Memory for what is used of a large body when it is decoded; above it, it is routed by load.",
    )
    recall_max: Bytes = Field(
        default=64 * _MIB, ge=0, le=64 * _GIB, description="Memory for whole requests seen before: not parsed again."
    )
    recall_body_max: Bytes = Field(default=_MIB, ge=0, le=_GIB, description="Larger bodies are not kept for that.")


class ParityConfig(Section):
    """Checking that the token ids that are made here are the pods' own, by their /tokenize, beside the requests."""

    first: Count = Field(
        default=8,
        ge=0,
        le=10_000,
        description="Requests that are compared of each model, version of vLLM and kind of request.",
    )
    share: Ratio = Field(default=0.001, ge=0, le=1, description="Share of the requests after them. 0: none.")
    recheck_interval: Seconds = Field(
        default=60.0,
        gt=0,
        le=86400,
        description="After a difference: between two looks whether it is gone. Meanwhile the pods tokenize.",
    )
    queue_max: Count = Field(default=8, ge=1, le=1000, description="Requests that wait to be compared.")
