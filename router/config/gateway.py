"""The part of the configuration that is about our own server: ports, limits of clients, keys, origins, TLS, the end."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from router.config.keys import api_key, check_key
from router.config.values import Bytes, Count, PortNumber, Seconds, Section

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
KEY_HEADERS = frozenset((b"authorization", b"x-api-key"))
OF_ORIGINS = frozenset((b"origin", b"access-control-request-method", b"access-control-request-headers"))


class TlsConfig(Section):
    """TLS of the gateway's own ports. Without a certificate they speak plain HTTP."""

    cert_file: str | None = Field(default=None, min_length=1, description="PEM file: the certificate and its chain.")
    key_file: str | None = Field(default=None, min_length=1, description="PEM file: its private key.")
    client_ca_file: str | None = Field(
        default=None, min_length=1, description="PEM file: clients must show a certificate of one of these. null: none."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.client_ca_file is not None and self.cert_file is None:
            raise ValueError("client_ca_file is given without cert_file")
        return self


class GatewayConfig(Section):
    """The gateway's own server: where it listens, what it takes at most and from whom, how it stops."""

    url_max: Bytes = Field(default=32 * _KIB, ge=256, le=_MIB, description="Longest request target; above it: 414.")
    header_count_max: Count = Field(default=128, ge=8, le=10_000, description="Headers of a request; above it: 431.")
    header_timeout: Seconds = Field(
        default=15.0, gt=0, le=3600, description="From the first byte of a request's head to its last; above it: 408."
    )
    body_timeout: Seconds = Field(
        default=60.0, gt=0, le=3600, description="Between two pieces of a request's body; above it: 408."
    )
    body_rate_min: Bytes = Field(
        default=_KIB,
        ge=0,
        le=_GIB,
        description="Bytes per second that a body must come with on the average, once body_timeout has passed.",
    )
    bodies_max: Bytes = Field(
        default=2 * _GIB,
        ge=_MIB,
        le=1024 * _GIB,
        description="Bodies of all requests that are not answered yet; above it: 503.",
    )
    upload_kept_max: Bytes = Field(
        default=_MIB,
        ge=0,
        le=64 * _MIB,
        description="Larger forms, sounds and the like go on to one pod while they come, see above.",
    )
    send_timeout: Seconds = Field(
        default=120.0, gt=0, le=3600, description="A client that takes nothing of its response for so long is cut."
    )
    requests_per_connection_max: Count | None = Field(
        default=None, ge=1, description="After so many a connection is closed, to spread clients anew. null: never."
    )
    pipelined_max: Count = Field(
        default=16,
        ge=1,
        le=1000,
        description="Requests on one connection that wait for those before; then it is not read.",
    )
    body_buffer_max: Bytes = Field(
        default=256 * _KIB, ge=4 * _KIB, le=64 * _MIB, description="Bytes of a body that wait to be taken; likewise."
    )
    linger_time: Seconds = Field(
        default=2.0, ge=0, le=60, description="A refused client is read on for so long, so that it sees the refusal."
    )
    connections_max: Count = Field(default=16_384, ge=1, le=1_000_000, description="Connections in all; above it: 503.")
    connections_per_client_max: Count | None = Field(
        default=None,
        ge=1,
        description="Connections from one address; above it: 429. null: no bound, as behind a load balancer.",
    )
    api_keys: tuple[SecretStr, ...] = Field(
        default=(),
        max_length=10_000,
        description="Keys of the data plane; `KEY -4` may claim priorities from -4 on. None here and no file: open.",
    )
    api_keys_file: str | None = Field(
        default=None,
        min_length=1,
        description="File of more keys, one a line; read again when it changes.",
    )
    forward_api_keys: bool | None = Field(
        default=None,
        description="Send the key that a client shows on to the pod. null: unless the gateway asks for keys.",
    )
    tell_matches: bool = Field(
        default=True,
        description="Tell clients how much of a prompt is cached (`x-warmroute-matched-tokens`, `/score`), see above. "
        "false: operators only.",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), max_length=1000, description='Origins whose pages may use the gateway; `"*"`: all. Empty: none.'
    )
    tls: TlsConfig = TlsConfig()
    host: str = Field(default="0.0.0.0", min_length=1, description="Address to listen on.")
    port: PortNumber = Field(default=8080, description="Port of the data plane. 0: any free one.")
    ops_port: PortNumber | None = Field(
        default=None, description="Port of the operators' endpoints. null: the data port."
    )
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
        description="Beginnings of prompts and where they went that a worker keeps for others, the newest; "
        "and a quarter as many prompts, and what these use of caches.",
    )
    workers_timeout: Seconds = Field(
        default=2.0, gt=0, le=60, description="For the answers of all workers to what an operator asks one of them."
    )
    body_max: Bytes = Field(default=64 * _MIB, ge=_KIB, le=_GIB, description="Largest request body; above it: 413.")
    header_max: Bytes = Field(
        default=64 * _KIB, ge=_KIB, le=_MIB, description="Largest request head (line and headers)."
    )
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

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            api_key(key.get_secret_value())
        return keys

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
                raise ValueError("an origin should be like https://chat.example.org, without a path")
        return origins

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ops_port and self.ops_port == self.port:
            raise ValueError("ops_port is the same as port: leave it out to serve both on one port")
        if self.operator_key is not None:
            if self.operator_key_file is not None:
                raise ValueError("operator_key and operator_key_file are both given: keep one")
            check_key(self.operator_key.get_secret_value(), "the operator key")
        return self

    @property
    def asks_for_keys(self) -> bool:
        """Whether the data plane is closed to those who show no key."""
        return bool(self.api_keys) or self.api_keys_file is not None

    @property
    def forwards_keys(self) -> bool:
        """Whether what a client shows is for the pods: it is not where it is for us."""
        return not self.asks_for_keys if self.forward_api_keys is None else self.forward_api_keys


class PageConfig(Section):
    """The page `/ui`. Nothing is computed for it while nobody looks."""

    viewers_max: Count = Field(
        default=16, ge=0, le=1000, description="Who may look at once, at each worker; then 503. 0: nobody."
    )
    interval: Seconds = Field(default=1.0, ge=1, le=60, description="Between two updates.")
    history: Seconds = Field(
        default=600.0, ge=1, le=86_400, description="Of the curves, as far as somebody looked: who comes later sees it."
    )
    decisions: Count = Field(default=40, ge=1, le=1000, description="Decisions shown: the newest.")
    pass_time: Seconds = Field(
        default=43_200.0, gt=0, le=30 * 86_400, description="The operator key, once shown, counts so long in a browser."
    )
