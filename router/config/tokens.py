"""The part of the configuration that is about tokens: the store's profiles, and how tokens are checked."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from router.config.values import Count, Ratio, Seconds, Section

Profile = Literal["chat_completions", "code_completion", "summarization"]

_MIB = 2**20

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


class Parity(Section):
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
