"""The part of the configuration that says where pods are known from, beside a list by hand."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from router.config.values import Address, Port, Seconds, Section


class FileConfig(Section):
    """A file of pods, read again when it changes."""

    path: str = Field(min_length=1, description="YAML or JSON: a list as under `discovery.static`.")
    interval: Seconds = Field(default=1.0, gt=0, le=3600, description="Between two looks at whether it has changed.")


class DnsConfig(Section):
    """A name with one address for each pod, as a headless Service has."""

    name: str = Field(min_length=1, max_length=253, description="Host name: its A and AAAA records are the pods.")
    port: Port = Field(default=8000, description="Port of their HTTP servers.")
    events_port: Port | None = Field(default=5557, description="Port of their KV-event feeds. null: none.")
    replay_port: Port | None = Field(default=5558, description="Port of their replay sockets. null: none.")
    interval: Seconds = Field(default=5.0, gt=0, le=3600, description="Between two looks at the name.")


class KubernetesConfig(Section):
    """Pods of one namespace, listed and watched. Needs `get`, `list` and `watch` of pods (and `get` of services)."""

    namespace: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        description="Namespace. null: the gateway's own, or the kubeconfig's.",
    )
    selector: str | None = Field(default=None, max_length=4096, description='Label selector: `"app=vllm"`.')
    service: str | None = Field(
        default=None, min_length=1, max_length=63, description="Service whose selector counts, in place of `selector`."
    )
    port: Port = Field(default=8000, description="Port of the HTTP servers, where a Pod has no `warmroute.io/port`.")
    events_port: Port | None = Field(default=5557, description="Port of the KV-event feeds, likewise. null: none.")
    replay_port: Port | None = Field(default=5558, description="Port of the replay sockets, likewise. null: none.")
    scheme: Literal["http", "https"] = Field(default="http", description="How pods are spoken to, likewise.")
    kubeconfig: str | None = Field(
        default=None, min_length=1, description="File. null: in-cluster, else ~/.kube/config."
    )
    api: Address | None = Field(default=None, description="URL of the API server, in place of a kubeconfig.")
    token_file: str | None = Field(default=None, min_length=1, description="File of a bearer token, read anew.")
    ca_file: str | None = Field(default=None, min_length=1, description="PEM file that the API server is trusted by.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.selector is None) == (self.service is None):
            raise ValueError("give selector or service: which of the namespace's Pods are vLLM's?")
        if self.api is not None and self.kubeconfig is not None:
            raise ValueError("api and kubeconfig are both given: keep one")
        return self
