"""The part of the configuration that is about the index: who holds what, how it is kept, and how gateways share it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from router.config.fleet import DnsConfig, KubernetesConfig
from router.config.values import (
    Bytes,
    Count,
    HttpAddress,
    PortNumber,
    Ratio,
    Seconds,
    Section,
    UdpAddress,
)  # fmt: skip

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
_SCHEMES = ("redis://", "rediss://", "unix://")


def _redis_url(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(_SCHEMES):
        raise ValueError(
            "should be like redis://host:6379/0, rediss://user:password@host:6379 or unix:///run/redis.sock"
        )
    return url


class RedisConfig(Section):
    """What several gateways know of pods, in Redis or Valkey from version 7; needs the extra `warmroute[redis]`."""

    url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = Field(
        default=None,
        description="redis://, rediss:// (TLS) or unix:// URL with its password. null: nothing is shared.",
    )
    key_prefix: str = Field(
        default="warmroute:",
        min_length=1,
        max_length=200,
        description="All keys begin so: one for each fleet. In a Redis Cluster it needs a {hash tag}.",
    )
    deadline: Seconds = Field(
        default=0.005, gt=0, le=1, description="For an answer; after it a request is routed by what is known here."
    )
    blocks_max: Count = Field(
        default=1_000_000, ge=1024, le=1_000_000_000, description="Blocks shared of one pod (or rank); not more of it."
    )
    queue_max: Count = Field(
        default=100_000,
        ge=1024,
        le=100_000_000,
        description="Changed blocks of one pod that wait to be written; above it: it is written anew.",
    )
    keys_max: Count = Field(default=8192, ge=1, le=65536, description="Leading blocks of a prompt that are asked for.")
    block_ttl: Seconds = Field(
        default=1800.0,
        ge=10,
        le=86400,
        description="A block that is not written again lives so long; blocks held are, three times in it.",
    )
    lease: Seconds = Field(
        default=3.0,
        ge=0.5,
        le=60,
        description="A gateway that was not heard for so long no longer writes a pod: another one does.",
    )
    timeout: Seconds = Field(default=1.0, gt=0, le=60, description="For connecting and writing.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.block_ttl <= self.lease:
            raise ValueError("block_ttl is not more than lease")
        return self


class TierWeightsConfig(Section):
    """What a matched block is worth, by the tier that holds it; 1 is a block that costs nothing to use."""

    gpu: Ratio = Field(default=1.0, ge=0, le=1, description="In the pod's GPU memory.")
    cpu: Ratio = Field(default=0.8, ge=0, le=1, description="Offloaded to the host's memory.")
    disk: Ratio = Field(default=0.5, ge=0, le=1, description="Offloaded to files or an object store.")


class IndexConfig(Section):
    """The index: who holds which block."""

    tier_weights: TierWeightsConfig = TierWeightsConfig()
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
        default=128 * _KIB,
        ge=_KIB,
        le=64 * _MIB,
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
    redis: RedisConfig = RedisConfig()


class StateConfig(Section):
    """What is known of the pods, kept on disk and asked of other gateways at the start."""

    path: str | None = Field(
        default=None, min_length=1, description="File that it is kept in, in a folder of ours. null: nothing on disk."
    )
    interval: Seconds = Field(default=60.0, ge=1, le=86400, description="Between two savings.")
    size_max: Bytes = Field(
        default=_GIB,
        ge=64 * _KIB,
        le=1024 * _GIB,
        description="Bytes of a snapshot, on disk or from another gateway; what was used least is left out of ours.",
    )
    age_max: Seconds = Field(default=86400.0, gt=0, description="An older file is not read.")
    restore: str | None = Field(
        default=None, min_length=1, description="File to begin with, in place of `path` (`--restore`)."
    )
    load_timeout: Seconds = Field(
        default=10.0,
        gt=0,
        le=600,
        description="At the start, feeds and /readyz wait so long for what other gateways or the file tell.",
    )


class PeersDnsConfig(Section):
    """A name with one address for each gateway, as a headless Service has."""

    name: str = Field(min_length=1, max_length=253, description="Host name: its A and AAAA records are the gateways.")
    port: PortNumber = Field(default=8080, description="Port of their operators' endpoints.")
    interval: Seconds = Field(default=5.0, gt=0, le=3600, description="Between two looks at the name.")

    @property
    def as_discovery(self) -> DnsConfig:
        """The same, to be looked up as pods are."""
        return DnsConfig(name=self.name, port=self.port, events_port=None, replay_port=None, interval=self.interval)


class PeersKubernetesConfig(Section):
    """The gateways' own Pods, listed and watched as those of vLLM are. In-cluster only."""

    namespace: str | None = Field(
        default=None, min_length=1, max_length=63, description="Namespace. null: the gateway's own."
    )
    selector: str | None = Field(default=None, max_length=4096, description="Label selector of the gateways' Pods.")
    service: str | None = Field(
        default=None, min_length=1, max_length=63, description="Service whose selector counts, in place of `selector`."
    )
    port: PortNumber = Field(default=8080, description="Port of their operators' endpoints.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.selector is None) == (self.service is None):
            raise ValueError("give selector or service: which of the namespace's Pods are gateways?")
        return self

    @property
    def as_discovery(self) -> KubernetesConfig:
        """The same, to be watched as pods are."""
        return KubernetesConfig(
            namespace=self.namespace,
            selector=self.selector,
            service=self.service,
            port=self.port,
            events_port=None,
            replay_port=None,
        )


class PeersConfig(Section):
    """Other gateways in front of the same pods: who joins asks them what they know, and all tell what is in flight."""

    static: tuple[HttpAddress, ...] = Field(
        default=(),
        max_length=1000,
        description="URLs of their operators' endpoints; our own among them is known as such.",
    )
    dns: PeersDnsConfig | None = Field(default=None, description="Gateways from a name. null: none.")
    kubernetes: PeersKubernetesConfig | None = Field(default=None, description="Gateways of Kubernetes. null: none.")
    key_file: str | None = Field(
        default=None,
        min_length=1,
        description="File of the key that all have. null: no load is shared, and snapshots are as safe as their way.",
    )
    listen: UdpAddress | None = Field(
        default=None, description="host:port for the datagrams. null: the operators' port number, on gateway.host."
    )
    interval: Seconds = Field(default=2.0, ge=0.1, le=3600, description="Between two looks at which of them is there.")
    share_interval: Seconds = Field(
        default=0.02, ge=0.01, le=1, description="Between two datagrams about what is in flight."
    )
    silence: Seconds = Field(
        default=1.0, ge=0.1, le=60, description="A gateway that is not heard for so long has nothing in flight."
    )
    gateways_max: Count = Field(
        default=16, ge=1, le=256, description="Other gateways (each worker counted) whose load is heard; not of more."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.silence < 2 * self.share_interval:
            raise ValueError("silence is less than twice share_interval")
        return self

    @property
    def are_there(self) -> bool:
        """May there be any?"""
        return bool(self.static or self.dns is not None or self.kubernetes is not None)

    @property
    def guests(self) -> int:
        """Workers of other gateways whose load is heard, at most."""
        return self.gateways_max if self.are_there and self.key_file is not None else 0
