"""What sources of pods say, and what follows for the fleet: who joins, who waits, who leaves. Pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from router.config.fleet import StaticPod


class FoundPod(NamedTuple):
    """A pod as a source knows it. `uid` tells it from any other that had, or will have, its name or its address."""

    uid: str
    pod: StaticPod
    ready: bool = True
    """It may be sent requests."""
    leaving: bool = False
    """It was told to end: nothing new goes there, and what is there may end."""


class Gone(NamedTuple):
    """There is no such pod any more."""

    uid: str


Change: TypeAlias = FoundPod | Gone


class PodSource(Protocol):
    """Where pods are known from."""

    @property
    def name(self) -> str: ...

    synced: bool
    """What it has told is what it would tell now."""

    @property
    def trouble(self) -> str | None:
        """In words: why it can't tell, or knows of no pod."""

    def changes(self) -> AsyncGenerator[list[Change]]:
        """What is there, at once (perhaps nothing), then what changes; for ever. Its troubles are its own to say."""


def in_url(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def pod_at(
    host: str, port: int | str, events: int | str | None, replay: int | str | None, scheme: str = "http", **more: Any
) -> StaticPod:
    """The server that listens at these ports (`more`: its other fields); without events there is no replay.

    Raises `pydantic.ValidationError`.
    """
    host = in_url(host)
    sockets = {"events": events, "replay": replay if events is not None else None}
    endpoints = {name: None if number is None else f"tcp://{host}:{number}" for name, number in sockets.items()}
    return StaticPod.model_validate({"address": f"{scheme}://{host}:{port}", **endpoints, **more})


class Joins(NamedTuple):
    """A pod is new to the fleet, under a name that nobody else has."""

    found: FoundPod
    called: str
    """What its source calls it."""


class Stands(NamedTuple):
    """How a pod of the fleet stands with its source now."""

    name: str
    ready: bool
    leaving: bool


class Leaves(NamedTuple):
    """A pod is gone."""

    name: str


Step: TypeAlias = Joins | Stands | Leaves


@dataclass(slots=True)
class _Entry:
    """One address. `by`: what each source says of it, the one that came first leads."""

    name: str
    by: dict[tuple[str, str], FoundPod] = field(default_factory=dict)

    @property
    def lead(self) -> tuple[str, str]:
        return next(iter(self.by))


class Roster:
    """All sources together: the same address from two of them is one pod, as long as one of them knows it."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}  # by address
        self._addresses: dict[tuple[str, str], str] = {}  # (source, uid) -> address
        self._names: set[str] = set()

    def counts(self) -> dict[str, int]:
        """Pods by source."""
        counts: dict[str, int] = {}
        for source, _ in self._addresses:
            counts[source] = counts.get(source, 0) + 1
        return counts

    def names(self, source: str) -> dict[str, str]:
        """What the pods of a source, by their uids, are called in the fleet."""
        return {uid: self._entries[address].name for (of, uid), address in self._addresses.items() if of == source}

    def apply(self, source: str, changes: Iterable[Change]) -> list[Step]:
        """What follows of what a source says, in order."""
        steps: list[Step] = []
        for change in changes:
            key = (source, change.uid)
            if isinstance(change, Gone):
                steps += self._drop(key)
                continue
            address = change.pod.address
            known = self._addresses.get(key)
            if known is not None and (known != address or self._entries[known].by[key].pod != change.pod):
                steps += self._drop(key)  # what it is has changed: it is another pod
                known = None
            steps += self._stand(key, change) if known is not None else self._enter(key, change)
        return steps

    def _enter(self, key: tuple[str, str], found: FoundPod) -> list[Step]:
        address = found.pod.address
        steps: list[Step] = []
        entry = self._entries.get(address)
        if entry is not None:
            before = [other for other in entry.by if other[0] == key[0]]
            for other in before:  # an address is used again before its last owner was said to be gone
                steps += self._drop(other)
            entry = self._entries.get(address)
        self._addresses[key] = address
        if entry is not None:
            entry.by[key] = found
            return steps
        name = self._name_for(found)
        self._names.add(name)
        self._entries[address] = _Entry(name, {key: found})
        named = found if name == found.pod.name else found._replace(pod=found.pod.model_copy(update={"name": name}))
        return [*steps, Joins(named, found.pod.name)]

    def _name_for(self, found: FoundPod) -> str:
        name = found.pod.name
        if name not in self._names:
            return name
        rest = found.pod.address.rpartition("/")[2].strip("[]").replace("]", "")
        return f"{name}-{rest}" if f"{name}-{rest}" not in self._names else f"{name}-{found.uid}"

    def _stand(self, key: tuple[str, str], found: FoundPod) -> list[Step]:
        entry = self._entries[found.pod.address]
        before, entry.by[key] = entry.by[key], found
        if entry.lead != key or (before.ready, before.leaving) == (found.ready, found.leaving):
            return []
        return [Stands(entry.name, found.ready, found.leaving)]

    def _drop(self, key: tuple[str, str]) -> list[Step]:
        address = self._addresses.pop(key, None)
        if address is None:
            return []
        entry = self._entries[address]
        led = entry.lead == key
        del entry.by[key]
        if not entry.by:
            del self._entries[address]
            self._names.discard(entry.name)
            return [Leaves(entry.name)]
        if not led:
            return []
        lead = entry.by[entry.lead]
        return [Stands(entry.name, lead.ready, lead.leaving)]


def difference(known: dict[str, FoundPod], now: dict[str, FoundPod]) -> list[Change]:
    """The changes that make `now` of what was known, those who are gone first."""
    gone: list[Change] = [Gone(uid) for uid in known if uid not in now]
    return gone + [found for uid, found in now.items() if known.get(uid) != found]
