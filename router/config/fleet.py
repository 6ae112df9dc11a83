"""The part of the configuration that describes the fleet: its pods and its models."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from router.config.upstream import PodKeyConfig, PodTlsConfig
from router.config.values import (
    PORT_MAX,
    Bytes,
    Count,
    Endpoint,
    HttpAddress,
    ModelName,
    Name,
    PortNumber,
    Ratio,
    Seconds,
    Section,
    Topic,
    VllmVersion,
)  # fmt: skip

ASK_THE_PODS = "pod"
"""A model's `tokenizer` when the pods' own /tokenize is asked."""


class StaticPod(PodKeyConfig):
    """One vLLM server, given by hand."""

    name: Name = Field(description="Name of the pod in headers, metrics and answers; unique.")
    address: HttpAddress = Field(description="Base URL of its HTTP server: `http://…`, `https://…` or `unix:/…`.")
    events: Endpoint | None = Field(
        default=None,
        description="Its KV-event feed (ZMQ PUB): `tcp://…` or `ipc://…`. null: `events.bind`, else routed blind.",
    )
    topic: Topic | None = Field(
        default=None,
        description="Its topic at `events.bind`. null: `kv@…@…` with its name or the host:port of its address.",
    )
    replay: Endpoint | None = Field(
        default=None,
        description="Its replay socket (ZMQ ROUTER). null: a gap in the feed forgets the pod's blocks.",
    )
    data_parallel_size: Count = Field(
        default=1,
        ge=1,
        le=1024,
        description="Data-parallel ranks; feed and replay of rank r are at the given port + r.",
    )
    first_rank: Count | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Number of its first rank, where it is not 0 (`--data-parallel-hybrid-lb`). null: its batches say.",
    )
    model: ModelName | None = Field(
        default=None, description="The only model, with its adapters, that is asked of it. null: all that it serves."
    )
    tls: PodTlsConfig = PodTlsConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.topic is not None and self.events is not None:
            raise ValueError("topic is for a pod that connects to events.bind, and this one has events of its own")
        if self.tls.model_fields_set and not self.address.startswith("https://"):
            raise ValueError("tls is given for an address that is not https://…")
        if self.data_parallel_size > 1 and any(port == 0 for _, port, _ in self.sockets()):
            raise ValueError("an ipc:// endpoint has no port to count ranks from: data_parallel_size must be 1")
        if any(end > PORT_MAX + 1 for _, _, end in self.sockets()):
            raise ValueError(f"the ports of {self.data_parallel_size} ranks end above {PORT_MAX}")
        if _overlap([self]) is not None:
            raise ValueError("events and replay share a port or path")
        return self

    @property
    def claims(self) -> tuple[str, ...]:
        """What tells the frames of this pod at the bound endpoint: its topic, else what the topic's middle may be."""
        if self.topic is not None:
            return (self.topic,)
        parts = urlsplit(self.address)
        if parts.hostname is None:
            return (self.name,)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return tuple(dict.fromkeys((self.name, f"{host}:{port}")))

    def sockets(self) -> Iterable[tuple[str, int, int]]:
        """Host, first port and port after the last of each ZMQ endpoint; path, 0 and 1 of an ipc:// one."""
        for endpoint in (self.events, self.replay):
            if endpoint is not None:
                parts = urlsplit(endpoint)
                first = parts.port or 0
                host = endpoint if parts.scheme == "ipc" else parts.hostname or ""
                yield host, first, first + self.data_parallel_size


class FileConfig(Section):
    """A file of pods, read again when it changes."""

    path: str = Field(min_length=1, description="YAML or JSON: a list as under `discovery.static`.")
    interval: Seconds = Field(default=1.0, gt=0, le=3600, description="Between two looks at whether it has changed.")


class DnsConfig(Section):
    """A name with one address for each pod, as a headless Service has."""

    name: str = Field(
        min_length=1,
        max_length=253,
        description="Host name: its A and AAAA records are the pods. With a leading underscore "
        "(`_http._tcp.vllm.default.svc.cluster.local`): its SRV records are, with their ports.",
    )
    port: PortNumber = Field(default=8000, description="Port of their HTTP servers, where no SRV record says it.")
    events_port: PortNumber | None = Field(
        default=5557,
        description="Port of their KV-event feeds (of further servers of one address, one more each). null: none.",
    )
    replay_port: PortNumber | None = Field(default=5558, description="Port of their replay sockets. null: none.")
    interval: Seconds = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="Between two looks at the name; records that may be kept for less long are looked at sooner.",
    )
    timeout: Seconds = Field(default=5.0, gt=0, le=60, description="For an answer, of whichever nameserver.")
    nameserver: str | None = Field(
        default=None, description="IP address or IP:port ([IPv6]:port) that is asked. null: those of /etc/resolv.conf."
    )

    @field_validator("nameserver")
    @classmethod
    def _is_address(cls, text: str | None) -> str | None:
        if text is not None:
            nameserver_of(text)
        return text


def nameserver_of(text: str) -> tuple[str, int]:
    """The address and port of `nameserver`; ValueError where it is none."""
    host, port = text, "53"
    if text.startswith("["):
        host, end, rest = text[1:].partition("]")
        port = (rest.removeprefix(":") if rest else port) if end else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    ipaddress.ip_address(host)
    if not port.isdigit() or not 0 < int(port) <= PORT_MAX:
        raise ValueError(f"{port!r} is not a port")
    return host, int(port)


class KubernetesConfig(Section):
    """Pods of one namespace, listed and watched. Needs `get`, `list`, `watch` of pods (and `get` of what chooses)."""

    namespace: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        description="Namespace. null: the gateway's own, or the kubeconfig's.",
    )
    selector: str | None = Field(default=None, max_length=4096, description='Label selector: `"app=vllm"`.')
    service: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        description="Service whose selector and target port count, in place of `selector`.",
    )
    inference_pool: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="InferencePool (Gateway API inference extension, v1 or v1alpha2) whose selector and ports count.",
    )
    port: PortNumber = Field(
        default=8000,
        description="Port of the HTTP servers, unless a Pod says it (`warmroute.io/port`). Where it is not given, that "
        "of the Service or pool goes before.",
    )
    events_port: PortNumber | None = Field(default=5557, description="Port of the KV-event feeds. null: none.")
    replay_port: PortNumber | None = Field(default=5558, description="Port of the replay sockets. null: none.")
    scheme: Literal["http", "https"] = Field(default="http", description="How pods are spoken to, likewise.")
    deletion_cost: Seconds = Field(
        default=0.0,
        ge=0,
        le=86400,
        description="Between two updates of `controller.kubernetes.io/pod-deletion-cost`, so that those go first whose "
        "loss costs least (`/scale-in`). Needs `patch` of pods. 0: never.",
    )
    kubeconfig: str | None = Field(
        default=None, min_length=1, description="File. null: in-cluster, else ~/.kube/config."
    )
    api: HttpAddress | None = Field(default=None, description="URL of the API server, in place of a kubeconfig.")
    token_file: str | None = Field(default=None, min_length=1, description="File of a bearer token, read anew.")
    ca_file: str | None = Field(default=None, min_length=1, description="PEM file that the API server is trusted by.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(chooses is not None for chooses in (self.selector, self.service, self.inference_pool)) != 1:
            raise ValueError("give one of selector, service and inference_pool: which of the Pods are vLLM's?")
        if self.api is not None and self.kubeconfig is not None:
            raise ValueError("api and kubeconfig are both given: keep one")
        return self


class DiscoveryConfig(Section):
    """Where the pods come from: any of these, together. The same address from two of them is one pod."""

    static: tuple[StaticPod, ...] = Field(default=(), max_length=10_000, description="Pods given by hand.")
    file: FileConfig | None = Field(default=None, description="Pods from a file that is watched. null: none.")
    dns: DnsConfig | None = Field(default=None, description="Pods from a name. null: none.")
    kubernetes: KubernetesConfig | None = Field(default=None, description="Pods of Kubernetes. null: none.")

    @property
    def is_empty(self) -> bool:
        """Whether there will never be a pod."""
        return not self.static and not any((self.file, self.dns, self.kubernetes))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if again := twice(pod.name for pod in self.static):
            raise ValueError(f"static: two pods are named {again}")
        if again := twice(pod.address for pod in self.static):
            raise ValueError(f"static: two pods have the address {again}")
        if pods := _overlap(self.static):
            raise ValueError(f"static: pods {pods[0]} and {pods[1]} share an events or replay endpoint")
        return self


class HandoverConfig(Section):
    """What pods that leave pass on: others compute the most asked-for prompts that nobody else holds, while idle."""

    kept_max: Bytes = Field(
        default=32 * 2**20,
        ge=0,
        le=2**36,
        description="Bodies of requests of late kept for it, in memory only. 0: nothing is handed over, and "
        "`/scale-in` knows of no reuse.",
    )
    body_max: Bytes = Field(default=2**20, ge=1024, le=2**30, description="Larger bodies are not kept.")
    half_life: Seconds = Field(
        default=300.0, gt=0, le=86400, description="After so long, that a prompt was asked for counts half."
    )
    before: Seconds = Field(
        default=2.0,
        ge=0,
        le=600,
        description="A pod that is drained is used until its prompts are handed over, so long at most "
        "(`POST /pods/{name}/drain?wait=30` says otherwise).",
    )
    patience: Seconds = Field(default=60.0, ge=0, le=3600, description="What is not handed over by then is lost.")
    prompts_max: Count = Field(default=1000, ge=0, le=100_000, description="Of one pod, the most asked for.")
    tokens_min: Count = Field(default=64, ge=1, le=1_000_000, description="Fewer are not worth a request.")
    room_share: Ratio = Field(
        default=0.5, ge=0, le=1, description="Of heirs' caches, what they inherit from one pod takes no more."
    )
    backlog_max: Seconds = Field(
        default=0.05,
        ge=0,
        le=60,
        description="A pod with more prefill to do than this is not idle, and inherits later.",
    )
    per_pod: Count = Field(default=1, ge=1, le=100, description="Prompts that one heir computes at a time.")
    prefill_timeout: Seconds = Field(default=60.0, gt=0, le=3600, description="For one prompt.")


class WarmupConfig(Section):
    """Prompts that are warmed at the start, and again when a pod joins: see above."""

    files: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Files of prompts; `env:NAME` is the text of a variable.",
    )
    prefill_pods: Count = Field(
        default=0,
        ge=0,
        le=1000,
        description="So many pods compute each of them, while idle. 0: the prefix store alone.",
    )
    delimiter: str | None = Field(
        default=None, min_length=1, description="Between the prompts of a text. null: a text is one prompt."
    )
    file_max: Bytes = Field(default=64 * 2**20, ge=1024, le=2**30, description="Largest file.")
    patience: Seconds = Field(
        default=60.0, ge=0, le=3600, description="A prompt that finds no idle pod for so long is not computed."
    )


class ProbeConfig(Section):
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


class ModelConfig(Section):
    """One model: how its prompts become the token ids that its pods see."""

    name: ModelName = Field(description="Name that requests give, as the pods serve it.")
    tokenizer: str = Field(
        default=ASK_THE_PODS,
        min_length=1,
        description="Folder with tokenizer.json, or `pod`: ask the pods' /tokenize.",
    )
    aliases: tuple[ModelName, ...] = Field(default=(), max_length=1000, description="Other names for the same prompts.")
    block_size: Count | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Tokens per block. null: learned from events; given: checked.",
    )
    chat_template: str | None = Field(
        default=None, min_length=1, description="File of a chat template that replaces the tokenizer's own."
    )
    content_format: Literal["auto", "string", "openai"] = Field(
        default="auto", description="As vLLM's --chat-template-content-format."
    )
    vllm_version: VllmVersion | None = Field(
        default=None,
        description='Version whose rendering is followed, in quotes: "0.28". null: that of each pod.',
    )
    trust_request_chat_template: bool = Field(default=False, description="As vLLM's --trust-request-chat-template.")
    exclude_tools_when_tool_choice_none: bool = Field(
        default=False, description="As vLLM's --exclude-tools-when-tool-choice-none."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="As vLLM's --default-chat-template-kwargs."
    )
    reasoning_effort_map: dict[str, str] = Field(
        default_factory=dict, description="As vLLM's --reasoning-effort-map (0.33)."
    )

    @property
    def version(self) -> tuple[int, int] | None:
        """`vllm_version` as (major, minor); None: that of each pod."""
        if self.vllm_version is None:
            return None
        major, minor = re.findall("[0-9]+", self.vllm_version)[:2]
        return int(major), int(minor)


def middle_of(topic: str) -> str | None:
    """What names the pod in `kv@<pod>@<model>`; None of another topic."""
    kind, _, rest = topic.partition("@")
    middle, at, _ = rest.partition("@")
    return middle if kind == "kv" and at and middle else None


def check_bound(pods: Iterable[StaticPod], bind: str | None) -> None:
    """ValueError if pods can't be told apart at the endpoint `bind`, or count on one that is not there."""
    claimed: dict[str, str] = {}
    bound = sorted((pod for pod in pods if pod.events is None), key=lambda pod: pod.topic is not None)
    for pod in bound:  # those with a topic of their own last: it must not be what names another one
        where = f"discovery.static: {pod.name}: "
        if bind is None:
            if pod.replay is not None or pod.topic is not None:
                given = "replay" if pod.replay is not None else "topic"
                raise ValueError(f"{where}{given} is given without events, and there is no events.bind")
            continue
        middle = middle_of(pod.topic) if pod.topic is not None else None
        for claim in pod.claims:
            other = claimed.get(middle or "") or claimed.setdefault(claim, pod.name)
            if other != pod.name:
                raise ValueError(f"{where}its topic {claim!r} could be that of {other}, too: give both a topic")
        ranks, parts = pod.data_parallel_size, urlsplit(bind)
        if ranks > 1 and (parts.scheme == "ipc" or int(bind.rpartition(":")[2]) + ranks > PORT_MAX + 1):
            raise ValueError(f"{where}events.bind has no ports for {ranks} ranks: rank r connects to its port + r")


def twice(names: Iterable[str]) -> str | None:
    """The first name that was there before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _overlap(pods: Iterable[StaticPod]) -> tuple[str, str] | None:
    """The names of two pods (or one, twice) of which endpoints share a port or path."""
    spans = sorted((*socket, pod.name) for pod in pods for socket in pod.sockets())
    for (host, _, end, name), (next_host, start, _, next_name) in pairwise(spans):
        if host == next_host and start < end:
            return name, next_name
    return None
