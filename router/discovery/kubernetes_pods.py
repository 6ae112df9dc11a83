"""A Pod object of Kubernetes to the vLLM servers in it. Pure.

Ports and the rest come from annotations `warmroute.io/…`, else from what chose the Pod, else from the configuration.
A server is ready when its Pod is; a Pod with a deletionTimestamp is leaving from that moment on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from router.config.fleet import StaticPod
from router.discovery.found import FoundPod, pod_at

_PREFIX = "warmroute.io/"
"""Of annotations: port (of several servers `8000,8001`), events-port, replay-port, data-parallel-size, first-rank,
model, scheme; and of the annotation or label role."""

_PREFILL_ONLY = frozenset(("prefill",))  # llm-d's role of pods that are sent to by others
_ROLE_LABELS = (_PREFIX + "role", "llm-d.ai/role")
_NONE = frozenset(("", "0", "none", "-"))


class Ports(NamedTuple):
    """Where servers listen, as far as a Pod does not say it itself. None: no such socket."""

    port: int
    events: int | None
    replay: int | None
    scheme: str = "http"
    servers: tuple[int | str, ...] = ()
    """In place of `port`, one for each server in a Pod: numbers, or names of container ports."""


class NotAServer(ValueError):
    """Why no server can be made of a Pod, in words."""


def servers_of(pod: Mapping[str, Any], ports: Ports) -> list[FoundPod]:
    """The servers of a Pod object; empty while it has no address, and when it has ended. Raises `NotAServer`."""
    meta, status = pod.get("metadata") or {}, pod.get("status") or {}
    addresses = [each["ip"] for each in status.get("podIPs") or () if each.get("ip")]
    host = status.get("podIP") or next(iter(addresses), None)
    if not host or status.get("phase") in ("Succeeded", "Failed") or _role(meta) in _PREFILL_ONLY:
        return []
    notes = {
        name.removeprefix(_PREFIX): value
        for name, value in (meta.get("annotations") or {}).items()
        if name.startswith(_PREFIX)
    }
    ready = any(each.get("type") == "Ready" and each.get("status") == "True" for each in status.get("conditions") or ())
    leaving = meta.get("deletionTimestamp") is not None
    given: list[int | str] = [*notes["port"].split(",")] if "port" in notes else [*(ports.servers or (ports.port,))]
    listening = [_number(pod, str(port).strip()) for port in given]
    if len(set(listening)) < len(listening):
        raise NotAServer(f"two of its servers have the port {max(listening, key=listening.count)}")
    found = []
    for place, port in enumerate(listening):
        server = _server(meta["name"], host, port, place, len(given), notes, ports)
        found.append(FoundPod(f"{meta['uid']}/{port}", server, ready, leaving))
    return found


def _number(pod: Mapping[str, Any], port: str) -> str:
    """The number of a port that may be given by the name that a container has for it."""
    if port.isdigit():
        return port
    spec = pod.get("spec") or {}
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]  # sidecars are among the latter
    declared = (each for container in containers for each in container.get("ports") or ())
    number = next((each["containerPort"] for each in declared if each.get("name") == port), None)
    if number is None:
        raise NotAServer(f"none of its containers has a port named {port!r}")
    return str(number)


def _server(
    name: str, host: str, port: str, place: int, count: int, notes: Mapping[str, str], ports: Ports
) -> StaticPod:
    events, replay = (
        _socket(notes.get(what), default, place)
        for what, default in (("events-port", ports.events), ("replay-port", ports.replay))
    )
    fields: dict[str, Any] = {"name": name if count == 1 else f"{name}-{port}"}
    for note, field in (("data-parallel-size", "data_parallel_size"), ("first-rank", "first_rank"), ("model", "model")):
        if note in notes:
            fields[field] = notes[note]
    try:
        return pod_at(host, port, events, replay, notes.get("scheme", ports.scheme), **fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise NotAServer(f"{'.'.join(str(part) for part in first['loc']) or 'it'}: {first['msg']}") from None


def _socket(note: str | None, default: int | None, place: int) -> int | str | None:
    """The port of the server at `place`: of several ports the one there, of one port the one so much higher."""
    if note is None:
        return default + place if default is not None else None
    given = [each.strip() for each in note.split(",")]
    if len(given) > 1:
        text = given[place] if place < len(given) else ""
        return text if text not in _NONE else None
    if given[0] in _NONE:
        return None
    if not given[0].isdigit():
        raise NotAServer(f"{note!r} is not a port")
    return int(given[0]) + place


def _role(meta: Mapping[str, Any]) -> str | None:
    labels = meta.get("labels") or {}
    return next((labels[name] for name in _ROLE_LABELS if name in labels), None)
