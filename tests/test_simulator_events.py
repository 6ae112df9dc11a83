"""Encodings of KV events: byte for byte those of recorded servers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from simulator.events import Cleared, Dialect, Event, Lora, Origin, Removed, Stored, parse_version

VECTORS = Path(__file__).parent / "vectors"
SETS = ("vllm-0.32.0", "vllm-0.32.0-dp2", "vllm-0.28.0", "vllm-0.20.2", "vllm-0.11.2.post2", "vllm-0.10.1.1.post2")


def digest_of(shown: int | bytes) -> bytes:
    """A digest that is shown as the given hash."""
    return shown if isinstance(shown, bytes) else (shown % 2**64).to_bytes(32, "big")


def event_of(row: dict[str, Any]) -> Event:
    """A recorded event as a value."""
    if row["type"] == "BlockRemoved":
        return Removed(digest_of(row["block_hashes"][0]))
    if row["type"] == "AllBlocksCleared":
        return Cleared()
    parent = row["parent_block_hash"]
    keys = (row.get("extra_keys") or [None])[0] or []
    lora = Lora(row["lora_id"], row["lora_name"]) if row.get("lora_id") else None
    salts = [key for key in keys if lora is None or key != lora.name]
    origin = Origin(lora, salts[0] if salts else None, row.get("session_id"))
    digests = tuple(digest_of(shown) for shown in row["block_hashes"])
    first = 0 if parent is None or salts else 1
    return Stored(digests, None if parent is None else digest_of(parent), tuple(row["token_ids"]), first, origin)


@pytest.mark.parametrize("name", SETS)
def test_recorded_batches_are_encoded_to_the_same_bytes(name: str) -> None:
    """Every frame of every set, decoded to values and encoded again, is the recorded payload."""
    version = parse_version(name.removeprefix("vllm-"))
    hash_kind = "bytes" if name == "vllm-0.28.0" else None
    dialect = Dialect.of(version).but(None, hash_kind)
    lines = (VECTORS / name / "frames.jsonl").read_text("utf-8").splitlines()
    for line in lines:
        payload = base64.b64decode(json.loads(line)["parts"][2])
        ts, events, rank = msgspec.msgpack.decode(payload)
        fields = {"BlockStored": dialect.stored_fields, "BlockRemoved": dialect.removed_fields, "AllBlocksCleared": ()}
        rows = [
            event if isinstance(event, dict) else dict(zip(("type", *fields[event[0]]), event, strict=False))
            for event in events
        ]
        block_size = next((row["block_size"] for row in rows if row["type"] == "BlockStored"), 16)
        assert dialect.encode(ts, [event_of(row) for row in rows], block_size, rank) == payload
    assert len(lines) >= (4 if "dp2" in name else 400)


def test_versions_are_read_from_their_text() -> None:
    """Post-releases count as their release; versions without events are refused."""
    assert parse_version("0.10.1.1.post2") == (0, 10, 1, 1)
    assert parse_version("v0.32.0") == (0, 32, 0)
    for bad in ("0.8.5", "latest", ""):
        with pytest.raises(ValueError, match="vLLM"):
            parse_version(bad)


@pytest.mark.parametrize(
    ("version", "form", "hashes", "fields", "topic"),
    [
        ("0.9.0", "array", "signed", 5, False),
        ("0.10.2", "array", "int", 6, False),
        ("0.14", "array", "int", 7, False),
        ("0.17", "array", "int", 8, False),
        ("0.23", "array", "int", 11, False),
        ("0.24", "map", "int", 11, False),
        ("0.26", "map", "int", 12, True),
        ("0.29", "map", "int", 13, True),
        ("0.30", "map", "int", 14, True),
    ],
)
def test_each_version_has_its_own_form(version: str, form: str, hashes: str, fields: int, topic: bool) -> None:
    """Array or map, the kind of hashes, the number of BlockStored's fields, and the topic in replay answers."""
    dialect = Dialect.of(parse_version(version))
    assert (dialect.format, dialect.hash_kind, len(dialect.stored_fields), dialect.replay_topic) == (
        form,
        hashes,
        fields,
        topic,
    )


def test_the_first_version_sends_no_rank() -> None:
    """0.9.0 and 0.9.1 batches have two elements."""
    assert msgspec.msgpack.decode(Dialect.of((0, 9, 1)).encode(1.0, [Cleared()], 16, 0)) == [
        1.0,
        [["AllBlocksCleared"]],
    ]


def test_settings_override_the_version() -> None:
    """Any version may be told to speak maps, or to show whole digests."""
    dialect = Dialect.of((0, 11)).but("map", "bytes")
    _, (event,), _ = msgspec.msgpack.decode(dialect.encode(1.0, [Removed(b"x" * 32)], 16, 0))
    assert event == {"type": "BlockRemoved", "block_hashes": [b"x" * 32], "medium": "GPU"}
