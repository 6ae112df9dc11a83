"""Limits as they are configured when nothing is, but for what a test says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from indexer.eviction import EvictionLimits
from indexer.prefixes import VARIANTS_MAX, PrefixLimits
from router.config.events import EventsConfig
from router.config.gateway import GatewayConfig
from router.config.tokens import ParityConfig, PrefixStoreConfig, TokensConfig
from router.config.upstream import UpstreamConfig
from router.events.bound_endpoint import BoundLimits
from router.events.sockets import FeedLimits
from router.server.limits import ServingLimits
from router.tokens.local import LocalTokensLimits
from router.tokens.parity import ParityLimits
from router.tokens.remote import RemoteTokensLimits
from router.upstream.connection import UpstreamLimits


def serving_limits(**said: Any) -> ServingLimits:
    """Of clients' connections."""
    return replace(ServingLimits.of(GatewayConfig()), **said)


def upstream_limits(**said: Any) -> UpstreamLimits:
    """Of one pod's connections."""
    return replace(UpstreamLimits.of(UpstreamConfig()), **said)


def feed_limits(**said: Any) -> FeedLimits:
    """Of one feed."""
    return replace(FeedLimits.of(EventsConfig()), **said)


def bound_limits(**said: Any) -> BoundLimits:
    """Of the bound endpoint."""
    return replace(BoundLimits.of(EventsConfig()), **said)


def local_tokens_limits(**said: Any) -> LocalTokensLimits:
    """Of tokenizing here."""
    return replace(LocalTokensLimits.of(TokensConfig()), **said)


def remote_tokens_limits(**said: Any) -> RemoteTokensLimits:
    """Of asking pods to tokenize."""
    return replace(RemoteTokensLimits.of(TokensConfig(), UpstreamConfig().breaks_max), **said)


def parity_limits(**said: Any) -> ParityLimits:
    """Of comparing tokens."""
    return replace(ParityLimits.of(ParityConfig()), **said)


def prefix_limits(
    bytes_max: int | None = None,
    mapping_ttl_s: float | None = None,
    pod_sets_per_block_max: int | None = None,
    eviction: EvictionLimits | None = None,
) -> PrefixLimits:
    """Of the prefix store."""
    given = PrefixStoreConfig()
    return PrefixLimits(
        given.bytes_max if bytes_max is None else bytes_max,
        given.pod_mapping_ttl if mapping_ttl_s is None else mapping_ttl_s,
        given.max_pod_sets_per_block if pod_sets_per_block_max is None else pod_sets_per_block_max,
        VARIANTS_MAX,
        eviction or LRU,
    )


LRU = EvictionLimits("lru", 0.0, 0.0, 1.0, 1.0, 1)
"""In the order of use, one by one, when there is no room."""
