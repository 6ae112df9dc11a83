"""KV events: values, and their encodings on the wire by vLLM version.

Sources: vLLM's `kv_events.py` of 0.9.0 to 0.33.0 and recordings of running servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import msgspec

HashKind = Literal["signed", "int", "bytes"]
EventFormat = Literal["array", "map"]
Version = tuple[int, ...]

NEWEST: Version = (0, 33)
OLDEST: Version = (0, 9)
MEDIUM = "GPU"
SPEC_KIND = "full_attention"

_STORED_FIELDS: tuple[tuple[str, Version], ...] = (
    ("block_hashes", (0, 9)),
    ("parent_block_hash", (0, 9)),
    ("token_ids", (0, 9)),
    ("block_size", (0, 9)),
    ("lora_id", (0, 9)),
    ("medium", (0, 10, 2)),
    ("lora_name", (0, 14)),
    ("extra_keys", (0, 17)),
    ("group_idx", (0, 20)),
    ("kv_cache_spec_kind", (0, 22)),
    ("kv_cache_spec_sliding_window", (0, 22)),
    ("locality", (0, 26)),
    ("ownership", (0, 29)),
    ("session_id", (0, 30)),
    ("lookahead_token_ids", (0, 33)),
)
_REMOVED_FIELDS: tuple[tuple[str, Version], ...] = (
    ("block_hashes", (0, 9)),
    ("medium", (0, 10, 2)),
    ("group_idx", (0, 20)),
    ("locality", (0, 26)),
    ("ownership", (0, 29)),
)
_WITHOUT_DEFAULT = frozenset(
    {"block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"}
)
"""Fields that are sent even when nil; all others are cut (array) or left out (map) at their default, nil."""


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter: `id` counts from 1 in the order of loading."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Origin:
    """What a request brings beside its tokens that its blocks carry."""

    lora: Lora | None = None
    salt: str | None = None
    session: str | None = None

    @property
    def lora_name(self) -> str | None:
        """The adapter's name; None for the base model."""
        return self.lora.name if self.lora else None

    def extra_keys(self, number: int) -> list[str] | None:
        """What events say was hashed into block `number` beside its tokens: the salt in the first block only."""
        keys = [key for key in (self.lora_name, self.salt if number == 0 else None) if key is not None]
        return keys or None


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks `first`, `first` + 1, … of one sequence have become full; `parent` None: the first is block 0.

    `ahead`: for each block the tokens behind it, where its digest covers some. A `group` beside full attention names
    only the blocks that it keeps. `medium`: where; below the pod's own cache, blocks may be told of without tokens.
    """

    digests: tuple[bytes, ...]
    parent: bytes | None
    token_ids: tuple[int, ...]
    first: int
    origin: Origin
    ahead: tuple[tuple[int, ...], ...] = ()
    group: int = 0
    kind: str = SPEC_KIND
    window: int | None = None
    medium: str = MEDIUM


@dataclass(frozen=True, slots=True)
class Removed:
    """One physical copy of a block was evicted."""

    digest: bytes
    group: int = 0
    medium: str = MEDIUM


@dataclass(frozen=True, slots=True)
class Cleared:
    """The whole cache was reset."""


Event: TypeAlias = Stored | Removed | Cleared


def parse_version(text: str) -> Version:
    """`0.11.2.post2` -> (0, 11, 2). Raises ValueError for what is no version or older than KV events."""
    match = re.match(r"v?(\d+(?:\.\d+)+)", text)
    if match is None:
        raise ValueError(f"not a vLLM version: {text!r}")
    version = tuple(int(part) for part in match[1].split("."))
    if version < OLDEST:
        raise ValueError(f"vLLM {text} has no KV events; the oldest version with them is 0.9.0")
    return version


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one vLLM version puts on the wire."""

    version: Version
    stored_fields: tuple[str, ...]
    removed_fields: tuple[str, ...]
    format: EventFormat
    hash_kind: HashKind
    replay_topic: bool
    """Replay answers carry the topic (from 0.26 on)."""

    @classmethod
    def of(cls, version: Version) -> Dialect:
        """The dialect of a version with its default settings."""
        return cls(
            version=version,
            stored_fields=tuple(name for name, since in _STORED_FIELDS if version >= since),
            removed_fields=tuple(name for name, since in _REMOVED_FIELDS if version >= since),
            format="map" if version >= (0, 24) else "array",
            hash_kind="int" if version >= (0, 10, 2) else "signed",
            replay_topic=version >= (0, 26),
        )

    def but(self, event_format: EventFormat | None, hash_kind: HashKind | None) -> Dialect:
        """This dialect with other settings where they are given."""
        return replace(self, format=event_format or self.format, hash_kind=hash_kind or self.hash_kind)

    def encode(self, ts: float, events: Iterable[Event], block_size: int, rank: int) -> bytes:
        """One batch: msgpack `[ts, [events], rank]` (before 0.9.2 without the rank)."""
        batch: list[object] = [ts, [self._event(event, block_size) for event in events]]
        if self.version >= (0, 9, 2):
            batch.append(rank)
        return msgspec.msgpack.encode(batch)

    def engine_hash(self, digest: bytes) -> int | bytes:
        """A digest as this dialect shows it: its low 64 bits as an integer, or all its bytes."""
        if self.hash_kind == "bytes":
            return digest
        return int.from_bytes(digest[-8:], "big", signed=self.hash_kind == "signed")

    def _event(self, event: Event, block_size: int) -> object:
        match event:
            case Stored():
                return self._shape("BlockStored", self.stored_fields, self._stored(event, block_size))
            case Removed(digest, group, medium):
                values = {"block_hashes": [self.engine_hash(digest)], "medium": medium, "group_idx": group}
                return self._shape("BlockRemoved", self.removed_fields, values)
            case Cleared():
                return self._shape("AllBlocksCleared", (), {})

    def _stored(self, event: Stored, block_size: int) -> dict[str, object]:
        origin = event.origin
        numbers = range(event.first, event.first + len(event.digests))
        told = event.group == 0 and event.medium == MEDIUM
        extras = [origin.extra_keys(number) for number in numbers] if told else None
        return {
            "block_hashes": [self.engine_hash(digest) for digest in event.digests],
            "parent_block_hash": None if event.parent is None else self.engine_hash(event.parent),
            "token_ids": event.token_ids,
            "block_size": block_size if event.token_ids else 0,
            "lora_id": origin.lora.id if origin.lora else None,
            "medium": event.medium,
            "lora_name": origin.lora_name,
            "extra_keys": extras,
            "group_idx": event.group,
            "kv_cache_spec_kind": event.kind,
            "kv_cache_spec_sliding_window": event.window,
            "lookahead_token_ids": event.ahead or None,
            "session_id": origin.session,
        }

    def _shape(self, tag: str, fields: Sequence[str], values: dict[str, object]) -> object:
        if self.format == "map":
            shaped: dict[str, object] = {"type": tag}
            for name in fields:
                value = values.get(name)
                if value is not None or name in _WITHOUT_DEFAULT:
                    shaped[name] = value
            return shaped
        row = [values.get(name) for name in fields]
        while row and row[-1] is None and fields[len(row) - 1] not in _WITHOUT_DEFAULT:
            row.pop()
        return [tag, *row]
