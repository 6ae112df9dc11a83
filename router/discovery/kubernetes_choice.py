"""Which Pods of a namespace are meant, and where servers listen in them. Pure.

Labels say it, or a Service, or an InferencePool: these by their own selectors and target ports, asked again with
every watch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from router.config.fleet import KubernetesConfig

_POOLS = (
    "/apis/inference.networking.k8s.io/v1/namespaces/{}/inferencepools/{}",
    "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/{}/inferencepools/{}",
)
"""Where a pool is, the newest first: a cluster may know either kind of it."""
_HTTP = ("http", "https", "vllm", "api")  # of several ports of a Service, the one of the server


class NothingChosen(ValueError):
    """What is named can't say which Pods it means, in words."""


class Choice(NamedTuple):
    """A label selector; and the ports of the servers in each Pod: numbers, or names of container ports. Empty: as
    configured."""

    selector: str
    ports: tuple[int | str, ...] = ()


def paths_of(given: KubernetesConfig, namespace: str) -> Sequence[str]:
    """The paths at which what chooses may be, in order; empty where the configuration itself does."""
    if given.service is not None:
        return (f"/api/v1/namespaces/{namespace}/services/{given.service}",)
    if given.inference_pool is not None:
        return [place.format(namespace, given.inference_pool) for place in _POOLS]
    return ()


def choice_of(given: KubernetesConfig, thing: Mapping[str, Any]) -> Choice:
    """What a Service or a pool chooses; a port that is configured goes before its own. Raises `NothingChosen`."""
    spec = thing.get("spec") or {}
    chosen = spec.get("selector") or {}
    if given.service is not None:
        what, ports = f"the Service {given.service}", _ports_of_service(spec)
    else:
        what, ports = f"the InferencePool {given.inference_pool}", _ports_of_pool(spec)
        chosen = chosen.get("matchLabels") or {} if isinstance(chosen.get("matchLabels"), Mapping) else chosen
    if not chosen:
        raise NothingChosen(f"{what} selects no Pods: it has no selector")
    selector = ",".join(f"{name}={value}" for name, value in sorted(chosen.items()))
    return Choice(selector, () if "port" in given.model_fields_set else ports)


def _ports_of_service(spec: Mapping[str, Any]) -> tuple[int | str, ...]:
    """The target of its only port, or of the one that is named like a server's."""
    ports = spec.get("ports") or []
    named = [port for name in _HTTP for port in ports if port.get("name") == name]
    one = ports[0] if len(ports) == 1 else next(iter(named), None)
    target = None if one is None else one.get("targetPort") or one.get("port")
    return () if target is None else (target,)


def _ports_of_pool(spec: Mapping[str, Any]) -> tuple[int | str, ...]:
    """Each is a server of its own; v1alpha2 has one."""
    if spec.get("targetPortNumber"):
        return (spec["targetPortNumber"],)
    return tuple(port["number"] for port in spec.get("targetPorts") or () if port.get("number"))
