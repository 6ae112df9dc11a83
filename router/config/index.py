"""The part of the configuration that is about the index that several gateways share."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from router.config.values import Count, Seconds, Section

_SCHEMES = ("redis://", "rediss://", "unix://")


def _redis_url(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(_SCHEMES):
        raise ValueError(
            "should be like redis://host:6379/0, rediss://user:password@host:6379 or unix:///run/redis.sock"
        )
    return url


class SharedRedis(Section):
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
