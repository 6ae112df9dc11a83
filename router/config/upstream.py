"""The part of the configuration that is about connections and requests to pods."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, model_validator

from router.config.keys import check_key
from router.config.values import Bytes, Count, Ratio, Seconds, Section

KIB, MIB = 2**10, 2**20


class PodTlsConfig(Section):
    """TLS to pods whose address is `https://…`. What a pod's own `tls` gives wins, key by key, over `upstream.tls`."""

    ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file: pods' certificates must be by one of these. null: the system's.",
    )
    cert_file: str | None = Field(
        default=None, min_length=1, description="PEM file: the certificate (and its chain) that pods are shown."
    )
    key_file: str | None = Field(
        default=None, min_length=1, description="PEM file: its private key, without passphrase."
    )
    verify: bool = Field(
        default=True, description="false: whoever answers at the address is believed to be the pod. Not for production."
    )
    server_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="Name in the pod's certificate. null: the address's host.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self

    def over(self, under: PodTlsConfig) -> PodTlsConfig:
        """What is given here, and of `under` what is not."""
        return under.model_copy(update=self.model_dump(exclude_unset=True))


class PodKeyConfig(Section):
    """The key that a pod asks for, as vLLM does with `--api-key`."""

    api_key: SecretStr | None = Field(default=None, description="Key that the gateway shows to it.")
    api_key_file: str | None = Field(
        default=None, min_length=1, description="File with that key in its first line; read again when it changes."
    )

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.api_key is not None:
            if self.api_key_file is not None:
                raise ValueError("api_key and api_key_file are both given: keep one")
            check_key(self.api_key.get_secret_value(), "the pods' API key")
        return self


class PodKeysConfig(PodKeyConfig):
    """The key that all pods ask for; a pod's own wins. Shown with probes, with questions to `/tokenize`, and so on."""

    replace_client_keys: bool | None = Field(
        default=None,
        description="Show it in place of what clients show, too. null: where clients' keys are not sent on to pods.",
    )


class UpstreamConfig(Section):
    """Connections and requests to pods."""

    connect_timeout: Seconds = Field(default=2.0, gt=0, le=60, description="To open a connection.")
    first_byte_timeout: Seconds = Field(
        default=600.0,
        gt=0,
        le=86400,
        description="To the first byte: queue and prefill; the whole answer if not streamed.",
    )
    idle_timeout: Seconds = Field(
        default=120.0, gt=0, le=86400, description="Between two bytes of a response, or taken of an upload."
    )
    total_timeout: Seconds = Field(default=3600.0, gt=0, le=86400, description="For one request, streams included.")
    keep_alive_idle: Seconds = Field(
        default=4.0,
        ge=0,
        le=3600,
        description="Idle connections are kept so long: below the 5 s after which vLLM closes them.",
    )
    connections_max: Count = Field(default=1024, ge=1, le=65536, description="Connections to one pod.")
    idle_connections_max: Count = Field(
        default=256, ge=0, le=65536, description="Idle connections to one pod that are kept; more are closed."
    )
    response_header_max: Bytes = Field(
        default=64 * KIB, ge=KIB, le=MIB, description="Largest head of a pod's response; above it: 502."
    )
    attempts_max: Count = Field(
        default=3,
        ge=1,
        le=10,
        description="Pods tried for one request, all before the first byte of a response.",
    )
    breaks_max: Count = Field(
        default=1,
        ge=0,
        le=9,
        description="Times that a request is tried again after a pod broke off amid it, perhaps by its fault.",
    )
    retry_share: Ratio = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of requests that may be tried again: what an outage adds to the load of the pods left.",
    )
    retry_floor: Count = Field(
        default=10, ge=0, le=10_000, description="Retries that are free in every 10 s, whatever the traffic."
    )
    retry_after_max: Seconds = Field(
        default=30.0, ge=0, le=3600, description="A pod's Retry-After keeps requests from it for so long at most."
    )
    response_buffer_max: Bytes = Field(
        default=256 * KIB,
        ge=4 * KIB,
        le=64 * MIB,
        description="Bytes held for a slow client before the pod is held back.",
    )
    response_whole_max: Bytes = Field(
        default=64 * KIB,
        ge=0,
        le=64 * MIB,
        description="A response of known length up to this (and to response_buffer_max) is sent on in one piece.",
    )
    tls_reload_interval: Seconds = Field(
        default=10.0,
        gt=0,
        le=86400,
        description="Between two looks at the files of `tls`: new connections are made with what is there.",
    )
    tls: PodTlsConfig = PodTlsConfig()
