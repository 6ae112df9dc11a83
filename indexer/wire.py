"""Bytes of vLLM's KV-event feed to `Batch`: every shape published from 0.9 to 0.33; raises `WireError`, nothing else.

A payload is msgpack `[ts, [event, …], data_parallel_rank?]`. An event is positional, `["BlockStored", …]` (up to
0.23), or a map, `{"type": "BlockStored", …}` (since 0.24), either of them perhaps inside a `bin`. Trailing fields
and keys that we do not know are ignored; fields that a version lacks have their default. One event that can't be
decoded spoils that event only: its reason is in `Batch.bad`. Neighbouring removals are one: vLLM says each removed
block by itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from math import isfinite
from typing import TypeAlias, cast

import msgspec
import numpy as np

from indexer.blocks import AHEAD_MAX, BLOCK_SIZE_MAX, Tokens
from indexer.errors import WireError
from indexer.events import PREFIX_KINDS, AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event, Tier

_HASH_MASK = 0xFFFF_FFFF_FFFF_FFFF

_TIER_OF_MEDIUM: dict[str | None, Tier] = {
    None: "gpu", "GPU": "gpu", "CPU": "cpu", "FS": "disk", "OBJ": "disk", "STORAGE": "disk", "DISK": "disk",
}  # fmt: skip

_Hash = int | bytes


class _Stored(msgspec.Struct, array_like=True, gc=False, tag="BlockStored"):
    block_hashes: list[_Hash]
    parent_block_hash: _Hash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[object] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class _Removed(msgspec.Struct, array_like=True, gc=False, tag="BlockRemoved"):
    block_hashes: list[_Hash]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, array_like=True, gc=False, tag="AllBlocksCleared"):
    medium: object = None  # not yet: a text if it comes


class _StoredMap(_Stored, array_like=False, gc=False, tag="BlockStored", tag_field="type"):
    lookahead_token_ids: list[list[int]] | None = None  # since 0.33, which has maps only


class _RemovedMap(_Removed, array_like=False, gc=False, tag="BlockRemoved", tag_field="type"):
    pass


class _ClearedMap(_Cleared, array_like=False, gc=False, tag="AllBlocksCleared", tag_field="type"):
    pass


class _Envelope(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _Arrays(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[_Stored | _Removed | _Cleared]
    data_parallel_rank: int | None = None


class _Maps(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[_StoredMap | _RemovedMap | _ClearedMap]
    data_parallel_rank: int | None = None


class _Ranked(msgspec.Struct, array_like=True):
    ts: float
    events: msgspec.Raw
    data_parallel_rank: int | None = None


_Said: TypeAlias = _Stored | _Removed | _Cleared

_decode_ranked = msgspec.msgpack.Decoder(_Ranked).decode
_decode_envelope = msgspec.msgpack.Decoder(_Envelope).decode
_decode_arrays = msgspec.msgpack.Decoder(_Arrays).decode
_decode_maps = msgspec.msgpack.Decoder(_Maps).decode
_decode_array = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared).decode
_decode_map = msgspec.msgpack.Decoder(_StoredMap | _RemovedMap | _ClearedMap).decode
_decode_any = msgspec.msgpack.Decoder().decode
_decode_bin = msgspec.msgpack.Decoder(bytes).decode

_Decode = Callable[[bytes | memoryview], _Maps | _Arrays]
_DECODE_FROM: dict[int, _Decode] = {
    **dict.fromkeys((*range(0x80, 0x90), 0xDE, 0xDF), cast(_Decode, _decode_maps)),
    **dict.fromkeys((*range(0x90, 0xA0), 0xDC, 0xDD), cast(_Decode, _decode_arrays)),
}
"""By the first byte of a batch's first event: what all of its events are decoded by."""

# Places of bytes in a batch `[float64, [event, …], …]`: the header of its list of events, the first event by header.
_HEADER = 10
_FIRST_EVENT = {0xDC: _HEADER + 3, 0xDD: _HEADER + 5}  # else it follows at once
_FIRST_EVENT_LATEST = _HEADER + 5

_REMOVED = frozenset({_Removed, _RemovedMap})
_STORED = frozenset({_Stored, _StoredMap})
_UINT32 = np.dtype(np.uint32)  # numpy looks longer at the type
_KNOWN = ("BlockStored", "BlockRemoved", "AllBlocksCleared")


def decode(payload: bytes | memoryview) -> Batch:
    """One payload to one Batch; `WireError` if the payload as a whole is not a batch of events."""
    return _whole(payload) or _piecemeal(payload)


def rank_of(payload: bytes | memoryview) -> int | None:
    """The data-parallel rank that a payload is of, its events left unread; `WireError` if it is not a batch."""
    try:
        rank = _decode_ranked(payload).data_parallel_rank
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError(f"not a batch of events: {error}") from error
    if rank is not None and rank < 0:
        raise WireError(f"a batch of rank {rank}")
    return rank


def _whole(payload: bytes | memoryview) -> Batch | None:
    """All events in one go, as they nearly always come; None where it takes a closer look."""
    header = payload[_HEADER] if len(payload) > _FIRST_EVENT_LATEST else 0
    first = payload[_FIRST_EVENT.get(header, _HEADER + 1)] if header else 0
    decode_from = _DECODE_FROM.get(first)
    if decode_from is None:
        return None
    try:
        batch = decode_from(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not isfinite(batch.ts):
        return None
    bad: list[str] = []
    events = _values(batch.events, bad)
    return Batch(batch.ts, events, batch.data_parallel_rank, tuple(bad) if bad else ())


def _piecemeal(payload: bytes | memoryview) -> Batch:
    """Event by event, each decoded by itself, so that one which can't be read spoils no other."""
    try:
        envelope = _decode_envelope(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError(f"not a batch of events: {error}") from error
    if not isfinite(envelope.ts):  # no clock: a restart could never be told from a duplicate
        raise WireError(f"a batch at {envelope.ts}")
    events: list[_Said] = []
    bad: list[str] = []
    unknown: list[str] = []
    for raw in envelope.events:
        try:
            events.append(_event(raw))
        except _UnknownEvent as error:
            unknown.append(str(error))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            bad.append(str(error))
    return Batch(envelope.ts, _values(events, bad), envelope.data_parallel_rank, tuple(bad), tuple(unknown))


class _UnknownEvent(Exception):
    """A well-formed event of a type that we do not know: counted, never wrong."""


def _event(raw: msgspec.Raw | bytes) -> _Said:
    first = memoryview(raw)[0]
    if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
        decoder = _decode_array
    elif 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
        decoder = _decode_map
    elif first in (0xC4, 0xC5, 0xC6):
        return _event_in_bin(_decode_bin(raw))
    else:
        raise ValueError(f"an event starts with byte 0x{first:02x}")
    try:
        said: _Said = decoder(raw)
        return said
    except msgspec.ValidationError as error:
        _raise_unknown(raw)
        raise ValueError(str(error)) from error


def _event_in_bin(inner: bytes) -> _Said:
    if not inner or inner[0] in (0xC4, 0xC5, 0xC6):
        raise ValueError("an event in a bin holds no event")
    return _event(inner)


def _raise_unknown(raw: msgspec.Raw | bytes) -> None:
    plain = _decode_any(raw)
    tag = plain.get("type") if isinstance(plain, dict) else plain[0] if plain else None
    if isinstance(tag, str) and tag not in _KNOWN:
        raise _UnknownEvent(tag[:64])


def _values(events: Sequence[_Said], bad: list[str]) -> list[Event]:
    """What events say; why one says nothing sound goes to `bad`."""
    values: list[Event] = []
    for event in _joined(events) if len(events) > 1 else events:
        try:
            values.append(_value(event))
        except (ValueError, OverflowError) as error:
            bad.append(str(error))
    return values


def _joined(events: Sequence[_Said]) -> list[_Said]:
    """The same events, but neighbouring removals are one: a full cache gives up as many blocks as it takes."""
    joined: list[_Said] = []
    last: _Removed | None = None
    for event in events:
        if event.__class__ not in _REMOVED:  # `isinstance` of a struct costs as much as all of this
            last = None
        elif last is not None and event.medium == last.medium and event.group_idx == last.group_idx:
            last.block_hashes += event.block_hashes
            continue
        else:
            last = event
        joined.append(event)
    return joined


def _value(event: _Said) -> Event:
    if event.__class__ in _STORED:
        return _stored(event)
    if event.__class__ in _REMOVED:
        return BlockRemoved(_hashes(event.block_hashes), tier_of(event.medium), event.group_idx)
    return AllBlocksCleared(tier_of(event.medium) if isinstance(event.medium, str) else "gpu")


def _stored(event: _Stored) -> BlockStored:
    stored = BlockStored(
        _hashes(event.block_hashes),
        None if event.parent_block_hash is None else _hash(event.parent_block_hash),
        np.frombuffer(array("I", event.token_ids), _UINT32),
        event.block_size,
        tier_of(event.medium),
        lora_id=event.lora_id,
        lora_name=event.lora_name,
        extras=event.extra_keys,
        group=event.group_idx,
        kind=event.kv_cache_spec_kind,
        window=event.kv_cache_spec_sliding_window,
        ahead=_ahead(event) if event.__class__ is _StoredMap else None,
    )
    check_stored(stored)
    return stored


def _ahead(event: _Stored) -> Tokens | None:
    """The tokens that the hashes cover behind their blocks, if they do."""
    told: list[list[int]] | None = event.lookahead_token_ids  # type: ignore[attr-defined]
    if not told or not told[0]:
        return None
    count = len(told[0])
    if count > AHEAD_MAX or len(told) != len(event.block_hashes) or any(len(ids) != count for ids in told):
        raise ValueError(f"lookahead_token_ids of {len(told)} blocks for {len(event.block_hashes)}")
    return np.frombuffer(array("I", [token for ids in told for token in ids]), dtype=np.uint32)


def check_stored(event: BlockStored) -> None:
    """ValueError if the event contradicts itself."""
    blocks, size, tokens, extras = len(event.hashes), event.block_size, len(event.tokens), event.extras
    if tokens == blocks * size and 0 < size <= BLOCK_SIZE_MAX and (extras is None or len(extras) == blocks):
        return
    if not 0 < size <= BLOCK_SIZE_MAX and (size or tokens or event.tier == "gpu"):
        raise ValueError(f"block_size {size}")
    # Groups that keep some blocks only list just these; a lower tier may store without tokens, and without a size.
    if not tokens or event.kind not in PREFIX_KINDS:
        return
    if tokens != blocks * size:
        if event.kind is None and event.group is not None and tokens > blocks * size:
            return  # 0.20 and 0.21 do not say which group is of which kind
        raise ValueError(f"{tokens} tokens for {blocks} blocks of {size}")
    if extras is not None and len(extras) != blocks:
        raise ValueError(f"{len(extras)} extra_keys for {blocks} blocks")


def _hashes(values: list[_Hash]) -> list[int]:
    """The low 64 bits of each."""
    try:
        unsigned = not values or min(values) >= 0  # type: ignore[operator]
    except TypeError:  # there are digests
        unsigned = False
    if unsigned:  # as nearly all are: they stay as they are
        return values  # type: ignore[return-value]
    return [_hash(value) for value in values]


def _hash(value: _Hash) -> int:
    """The low 64 bits: vLLM's own int form is that, so both forms of one digest are equal here."""
    if isinstance(value, bytes):
        return int.from_bytes(value[-8:], "big")
    return value & _HASH_MASK


def tier_of(medium: str | None) -> Tier:
    """Where a medium that vLLM names is; None: where it does not say."""
    tier = _TIER_OF_MEDIUM.get(medium)
    return tier if tier is not None else _TIER_OF_MEDIUM.get(medium.upper() if medium else None, "disk")
