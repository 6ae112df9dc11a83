"""The part of the configuration that describes how pods' KV events come."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from router.config.values import BindEndpoint, Bytes, Count, Seconds, Section

KIB, MIB, GIB = 2**10, 2**20, 2**30


class EventsConfig(Section):
    """KV-event feeds of the pods."""

    bind: BindEndpoint | None = Field(
        default=None,
        description="Endpoint that publishers of pods without `events` connect to: `tcp://*:5557`.",
    )
    queue_max: Count = Field(
        default=10_000,
        ge=1,
        le=10_000_000,
        description="Batches of one feed that wait for missing ones; above it: a gap.",
    )
    queue_bytes_max: Bytes = Field(
        default=32 * MIB, ge=KIB, le=64 * GIB, description="Bytes of these batches; above it: a gap."
    )
    receive_hwm: Count = Field(
        default=1000,
        ge=0,
        le=10_000_000,
        description="Batches of one publisher that ZMQ keeps unread; more wait at the pod (its own mark: 100,000).",
    )
    batch_bytes_max: Bytes = Field(
        default=16 * MIB,
        ge=KIB,
        le=GIB,
        description="Largest batch that is received; who sends a larger one is cut off.",
    )
    slice_seconds: Seconds = Field(
        default=0.001,
        gt=0,
        le=0.1,
        description="Events of all feeds are applied for so long at most before requests have their turn.",
    )
    replay_timeout: Seconds = Field(
        default=5.0, gt=0, le=300, description="For a replay to begin; vLLM looks for requests every 0.1 s."
    )
    replay_stall: Seconds = Field(
        default=0.5, gt=0, le=300, description="A replay that is silent for so long was cut: the rest is asked for."
    )
    replay_time_max: Seconds = Field(
        default=30.0, gt=0, le=3600, description="One answer to a request for a replay may take so long."
    )
    replay_retries: Count = Field(
        default=3, ge=0, le=100, description="Replays in vain, one after the other, before blocks are forgotten."
    )
    replays_max: Count = Field(
        default=32, ge=1, le=10_000, description="Replays at a time; more wait, and have their turns pod by pod."
    )
    replay_batches_max: Count = Field(
        default=100_000,
        ge=1,
        le=100_000_000,
        description="Batches of one replay; above it, it has no end. vLLM: 10,000.",
    )
    replay_bytes_max: Bytes = Field(
        default=GIB, ge=KIB, le=1024 * GIB, description="Bytes of one replay; above it, it has no end."
    )
    replay_waiting_max: Bytes = Field(
        default=64 * MIB,
        ge=KIB,
        le=64 * GIB,
        description="Bytes of one replay that wait to be applied; above it, the rest is asked for after them.",
    )
    join_timeout: Seconds = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="At the start, /readyz waits so long for the first state of all feeds that answer.",
    )
    reconnect_delay: Seconds = Field(
        default=0.1, ge=0.01, le=60, description="Before a connection is tried again; each time twice as long."
    )
    reconnect_delay_max: Seconds = Field(
        default=0.25, ge=0.01, le=300, description="The longest such delay. A host that is a name is looked up anew."
    )
    connect_timeout: Seconds = Field(
        default=0.5, ge=0.05, le=60, description="For one attempt to connect, and as long again for the handshake."
    )
    heartbeat_interval: Seconds = Field(
        default=1.0,
        ge=0.05,
        le=600,
        description="Of ZMQ's own heartbeat: it finds connections that died silently.",
    )
    heartbeat_timeout: Seconds = Field(
        default=3.0, ge=0.05, le=600, description="A publisher that does not answer it for so long is connected anew."
    )
    keepalive_idle: Seconds = Field(
        default=30.0, ge=1, le=7200, description="TCP keepalive: a connection silent for so long is probed."
    )
    keepalive_interval: Seconds = Field(default=5.0, ge=1, le=600, description="TCP keepalive: between two probes.")
    keepalive_probes: Count = Field(
        default=3, ge=1, le=100, description="TCP keepalive: unanswered probes after which the connection is dead."
    )
    topics_named_max: Count = Field(
        default=100, ge=0, le=10_000, description="Bound endpoint: topics of no pod that the log names, once each."
    )
    disputes_max: Count = Field(
        default=4,
        ge=2,
        le=1000,
        description="Bound endpoint: so many restarts of a feed within dispute_time are two who use one topic.",
    )
    dispute_time: Seconds = Field(
        default=60.0, ge=1, le=3600, description="Bound endpoint: nothing is believed of such a feed for so long."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reconnect_delay > self.reconnect_delay_max:
            raise ValueError("reconnect_delay is longer than reconnect_delay_max")
        return self
