"""Every shape of event that vLLM has published, and everything that is none of them."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from indexer.blocks import ahead_of, cut, size_of
from indexer.errors import WireError
from indexer.events import AllBlocksCleared, Batch, BlockRemoved, BlockStored
from indexer.wire import decode
from tests.fakes.recordings import VERSIONS, frames

_pack = msgspec.msgpack.encode
_TOKENS = [5, 6, 7, 8]
_HASHES = [2**64 - 1, 17]
_DIGESTS = [b"\x01" * 24 + b"\xff" * 8, b"\x02" * 31 + b"\x11"]  # 32 bytes; their low 64 bits are not those of _HASHES


def _one(event: object, *rank: int) -> Any:
    """The only event of a batch, which must be sound."""
    batch = decode(_pack([1.5, [event], *rank]))
    assert batch.ts == 1.5 and not batch.bad and not batch.unknown and len(batch.events) == 1
    return batch.events[0]


# First version -> positional fields of BlockStored behind the tag, and of BlockRemoved.
_POSITIONAL: dict[str, tuple[list[Any], list[Any]]] = {
    "0.9": ([_HASHES, 3, _TOKENS, 2, None], [_HASHES]),
    "0.10.2": ([_HASHES, 3, _TOKENS, 2, None, "GPU"], [_HASHES, "GPU"]),
    "0.14": ([_HASHES, 3, _TOKENS, 2, 1, "GPU", "adapter"], [_HASHES, "GPU"]),
    "0.17": ([_HASHES, 3, _TOKENS, 2, 1, "GPU", "adapter", [["adapter", "salt"], ["adapter"]]], [_HASHES, "GPU"]),
    "0.20": ([_HASHES, 3, _TOKENS, 2, None, "GPU", None, [None, None], 0], [_HASHES, "GPU", 0]),
    "0.22": ([_HASHES, 3, _TOKENS, 2, None, "GPU", None, None, 1, "full_attention", 128], [_HASHES, "GPU", 1]),
    "later": (
        [_HASHES, 3, _TOKENS, 2, None, "GPU", None, None, 1, "full_attention", 128, "LOCAL", {"new": 1}],
        [_HASHES, "GPU", 1, "LOCAL", 5],
    ),
}
_STORED_FIELDS = (
    "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys",
    "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window", "locality", "invented_later",
)  # fmt: skip
_REMOVED_FIELDS = ("block_hashes", "medium", "group_idx", "locality", "invented_later")


def _check_stored(event: BlockStored, fields: list[Any]) -> None:
    given_ = dict(zip(_STORED_FIELDS, fields, strict=False))
    assert isinstance(event, BlockStored)
    assert (event.hashes, event.parent, event.block_size) == (_HASHES, 3, 2)
    assert event.tokens.tolist() == _TOKENS and event.tokens.dtype == "uint32"
    assert event.tier == "gpu"
    assert event.lora_id == given_.get("lora_id") and event.lora_name == given_.get("lora_name")
    assert event.extras == given_.get("extra_keys") and event.group == given_.get("group_idx")
    assert event.kind == given_.get("kv_cache_spec_kind")
    assert event.window == given_.get("kv_cache_spec_sliding_window")


@pytest.mark.parametrize("version", _POSITIONAL)
def test_positional(version: str) -> None:
    """Arrays with the tag first; later fields are ignored, and trailing defaults may be cut anywhere."""
    stored, removed = _POSITIONAL[version]
    _check_stored(_one(["BlockStored", *stored]), stored)
    assert _one(["BlockRemoved", *removed]) == BlockRemoved(_HASHES, "gpu", (removed + [None] * 3)[2])
    for length in range(4, len(stored)):
        _check_stored(_one(["BlockStored", *stored[:length]]), stored[:length])


@pytest.mark.parametrize("version", _POSITIONAL)
def test_map(version: str) -> None:
    """Maps with a type, in any order of keys; unknown keys are ignored, absent ones have their default."""
    stored, removed = _POSITIONAL[version]
    fields = dict(zip(_STORED_FIELDS, stored, strict=False))
    _check_stored(_one({"type": "BlockStored", **fields}), stored)
    _check_stored(_one({**dict(reversed(fields.items())), "type": "BlockStored"}), stored)
    event = _one({"type": "BlockRemoved", **dict(zip(_REMOVED_FIELDS, removed, strict=False))})
    assert event == BlockRemoved(_HASHES, "gpu", (removed + [None] * 3)[2])


@pytest.mark.parametrize("event", [["AllBlocksCleared"], {"type": "AllBlocksCleared"}, ["AllBlocksCleared", 1]])
def test_cleared(event: object) -> None:
    """It has no fields, and may get some."""
    assert _one(event) == AllBlocksCleared()


@pytest.mark.parametrize("version", _POSITIONAL)
def test_in_a_bin(version: str) -> None:
    """Either form may be packed once more, as bytes; but a bin in a bin is no event."""
    stored, _ = _POSITIONAL[version]
    packed = _pack(["BlockStored", *stored])
    _check_stored(_one(packed), stored)
    _check_stored(_one(_pack(dict(zip(("type", *_STORED_FIELDS), ["BlockStored", *stored], strict=False)))), stored)
    assert decode(_pack([0.0, [_pack(packed)]])).bad and decode(_pack([0.0, [b""]])).bad


def test_hashes_of_all_kinds() -> None:
    """Signed ints (the low 64 bits, two's complement), unsigned ints, and digests of any length: the low 64 bits."""
    event = _one(["BlockStored", [-1, 2**63], -2, _TOKENS, 2, None])
    assert event.hashes == [2**64 - 1, 2**63] and event.parent == 2**64 - 2
    event = _one(["BlockStored", _DIGESTS, _DIGESTS[0], _TOKENS, 2, None, "GPU"])
    assert event.hashes == [2**64 - 1, 0x0202020202020211] and event.parent == 2**64 - 1
    assert _one(["BlockRemoved", [b"\x07" * 16, b"\x05"]]).hashes == [0x0707070707070707, 5]
    assert _one(["BlockStored", _HASHES, None, _TOKENS, 2, None]).parent is None


@pytest.mark.parametrize(
    ("medium", "tier"),
    [(None, "gpu"), ("GPU", "gpu"), ("gpu", "gpu"), ("CPU", "cpu"), ("cpu", "cpu"), ("FS", "disk"), ("OBJ", "disk"),
     ("STORAGE", "disk"), ("something new", "disk")],
)  # fmt: skip
def test_tiers(medium: str | None, tier: str) -> None:
    """No medium is the GPU; what is not known is far away."""
    assert _one(["BlockRemoved", [1], medium]).tier == tier
    assert _one(["BlockStored", [1], None, [9], 1, None, medium]).tier == tier


def test_neighbouring_removals_are_one() -> None:
    """vLLM says each by itself; those of another tier or group, or behind another event, stay apart."""
    removals: list[list[Any]] = [["BlockRemoved", [n], "GPU", 0] for n in (1, 2)]
    removals += [["BlockRemoved", [3, 4], "CPU", 0], ["BlockRemoved", [5], "CPU", 1]]
    events = [*removals, ["AllBlocksCleared"], *removals[:2]]
    expected = [
        BlockRemoved([1, 2], "gpu", 0), BlockRemoved([3, 4], "cpu", 0), BlockRemoved([5], "cpu", 1),
        AllBlocksCleared(), BlockRemoved([1, 2], "gpu", 0),
    ]  # fmt: skip
    assert decode(_pack([1.5, events])).events == expected
    in_bins = [_pack(event) for event in events]  # read one by one
    assert decode(_pack([1.5, in_bins])).events == expected


def test_rank() -> None:
    """0.9.0 has no rank; later versions always give one."""
    assert decode(_pack([1, []])) == Batch(1.0, [])
    assert decode(_pack([1, [], None])).rank is None
    assert decode(_pack([1, [], 3, "more"])).rank == 3


def test_sliding_windows_list_only_what_is_kept() -> None:
    """Fewer hashes than tokens, even none, without extra keys: sound for a window, not for full attention."""
    fields = [[17], None, _TOKENS, 2, None, "GPU", None, None, 0]
    assert _one(["BlockStored", *fields, "sliding_window", 8]).hashes == [17]
    assert _one(["BlockStored", [], *fields[1:], "sliding_window", 8]).hashes == []
    assert _one(["BlockStored", *fields]).hashes == [17], "0.20 and 0.21 have groups, and do not tell their kinds"
    for group, kind in ((None, None), (0, "full_attention"), (0, "mla_attention")):
        assert decode(_pack([0.0, [["BlockStored", *fields[:-1], group, kind]]])).bad


def test_offload_without_tokens() -> None:
    """A tier behind the GPU may name its blocks by hash alone."""
    event = _one(["BlockStored", _HASHES, None, [], 0x10, None, "CPU"])
    assert event.hashes == _HASHES and not len(event.tokens) and event.tier == "cpu"
    assert _one(["BlockStored", _HASHES, None, [], 0, None, "CPU"]).block_size == 0
    for fields in ([_TOKENS, 0, None, "CPU"], [[], 0, None, "GPU"], [[], -1, None, "CPU"]):
        assert decode(_pack([0.0, [["BlockStored", _HASHES, None, *fields]]])).bad


_SOUND = ["BlockStored", _HASHES, None, _TOKENS, 2, None]
_UNSOUND = [
    ["BlockStored", _HASHES, None, _TOKENS, 3, None],  # tokens that are no whole blocks
    ["BlockStored", _HASHES, None, _TOKENS, 0, None],
    ["BlockStored", _HASHES, None, _TOKENS, -2, None],
    ["BlockStored", _HASHES, None, [1, 2, 3, -4], 2, None],
    ["BlockStored", _HASHES, None, [1, 2, 3, 2**32], 2, None],
    ["BlockStored", _HASHES, None, [1, 2, 3, 2**64 - 1], 2, None],
    ["BlockStored", _HASHES, None, [1, 2, 3, 4.5], 2, None],
    ["BlockStored", _HASHES, None, _TOKENS, 2, None, "GPU", None, [None]],  # extras of one block for two
    ["BlockStored", _HASHES, "parent", _TOKENS, 2, None],
    ["BlockStored", [True, False], None, _TOKENS, 2, None],
    ["BlockStored", [1.0, 2.0], None, _TOKENS, 2, None],
    ["BlockStored", None, None, _TOKENS, 2, None],
    ["BlockStored", _HASHES],
    ["BlockStored"],
    ["BlockRemoved"],
    ["BlockRemoved", 5],
    [],
    [5],
    [None, 1],
    {},
    {"type": "BlockStored"},
    {"type": 5},
    {"kind": "BlockStored"},
    {1: 2},
    5,
    None,
    "BlockStored",
    1.5,
]


@pytest.mark.parametrize("event", _UNSOUND, ids=repr)
def test_a_bad_event_spoils_only_itself(event: object) -> None:
    """Its neighbours are decoded, and its reason is told."""
    batch = decode(_pack([0.0, [_SOUND, event, ["AllBlocksCleared"]]]))
    assert len(batch.events) == 2 and len(batch.bad) == 1 and batch.bad[0] and not batch.unknown


def test_an_unknown_event_is_not_a_bad_one() -> None:
    """A type that we do not know is counted by its name, cut to a length."""
    batch = decode(_pack([0.0, [["BlockMoved", 1], _SOUND, {"type": "X" * 500, "a": 1}, _pack(["InBin"])]]))
    assert batch.unknown == ("BlockMoved", "X" * 64, "InBin") and len(batch.events) == 1 and not batch.bad


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xc1", b"\xc0", _pack({}), _pack([]), _pack([1.0]), _pack(["1", []]), _pack([1.0, {}]), _pack([1.0, 5]),
        _pack([1.0, [], "rank"]), _pack([1.0, []]) + b"\x00", _pack([1.0, [_SOUND]])[:-1],
        _pack([float("nan"), []]), _pack([float("inf"), [_SOUND]]), _pack([float("-inf"), []]),
        b"\x91" * 100_000, b"\x92\x00" + b"\x91" * 100_000, b"\x92\x00\x91" + b"\x81\xa0" * 100_000,
        b"\x92\x00\xdd\xff\xff\xff\xff", b"\x92\x00\x91\xdf\xff\xff\xff\xff", b"\x92\x00\x91\xc6\xff\xff\xff\xff",
    ],
    ids=lambda payload: repr(payload[:16]),
)  # fmt: skip
def test_no_batch(payload: bytes) -> None:
    """What is not a whole batch with a clock raises `WireError`: truncated, deep, huge, or of other types."""
    with pytest.raises(WireError):
        decode(payload)


def test_deep_and_huge_within_an_event() -> None:
    """Nesting and claimed lengths inside an event are its own fault, or at worst the batch's."""
    deep: object = 1
    for _ in range(400):
        deep = [deep]
    assert len(decode(_pack([0.0, [["BlockMoved", deep], _SOUND]])).events) == 1
    huge = b"\x95\xabBlockStored\xdd\xff\xff\xff\xff"
    batch = decode(_pack([0.0, [huge, _SOUND]]))
    assert len(batch.bad) == 1 and len(batch.events) == 1


@pytest.mark.parametrize("version", [*VERSIONS, "vllm-0.32.0-dp2", "vllm-0.32.0-hybrid"])
def test_recorded_frames_are_all_sound(version: str) -> None:
    """Of what real servers published, nothing is bad or unknown; memoryviews do as well as bytes."""
    ranks = set()
    for frame in frames(version):
        batch = decode(memoryview(frame.payload))
        assert batch.events and not batch.bad and not batch.unknown and batch.ts > 0
        ranks.add(batch.rank)
    assert ranks == ({0, 1} if version.endswith("dp2") else {0})


# --- fuzz ---


def _survives(payload: bytes) -> None:
    """`decode` returns sound values, or raises `WireError`."""
    try:
        batch = decode(payload)
    except WireError:
        return
    for event in batch.events:
        if isinstance(event, BlockStored | BlockRemoved):
            assert all(0 <= engine_hash < 2**64 for engine_hash in event.hashes)
        if isinstance(event, BlockStored) and len(event.tokens) and event.kind is None:
            assert len(event.tokens) == len(event.hashes) * event.block_size


_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=40) | st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared", "type", "GPU"])
)  # fmt: skip
_anything = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200))
@example(b"\x92\x00\x91\x82\x80\x01\x91\x01\x02")  # a map as a key
@example(b"\x92\x00\x91\x92\xa3\xff\xfe\xfd\x01")  # a name that is no UTF-8
@example(b"\x92\x00\x91\x92\xa3Foo\xc7\x0c" + b"\xff" * 13)  # a timestamp that is none
def test_fuzz_bytes(payload: bytes) -> None:
    """Random bytes, alone and as an event of a sound batch."""
    _survives(payload)
    _survives(b"\x92\xca\x3f\x80\x00\x00\x91" + payload)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(_anything)
def test_fuzz_structures(value: object) -> None:
    """Any msgpack value as a batch, as an event, and in a bin."""
    for payload in (value, [1.0, value], [1.0, [value, _SOUND]], [1.0, [_pack(value)]]):
        _survives(_pack(payload))


@given(st.integers(1, len(_STORED_FIELDS) - 1), _anything, st.booleans())
def test_fuzz_fields(place: int, value: object, as_map: bool) -> None:
    """A sound event with any value in one of its fields."""
    fields = [_HASHES, 3, _TOKENS, 2, 1, "GPU", "adapter", [["adapter"], None], 0, "full_attention", None, None, 0]
    fields[place] = value
    positional = ["BlockStored", *fields]
    named = {"type": "BlockStored", **dict(zip(_STORED_FIELDS, fields, strict=True))}
    payload = _pack([1.0, [named if as_map else positional, _SOUND]])
    _survives(payload)
    assert len(decode(payload).events) >= 1


def _said(batch: Batch) -> tuple[list[object], list[str], list[str]]:
    """Events in a form that can be compared, removals block by block, and what is bad and unknown."""
    events: list[object] = []
    for e in batch.events:
        if isinstance(e, BlockStored):
            content = (list(e.hashes), e.parent, e.tokens.tolist(), e.block_size, e.extras)
            events.append(repr((content, e.tier, e.lora_id, e.lora_name, e.group, e.kind, e.window)))
        elif isinstance(e, BlockRemoved):
            events += [repr(("removed", engine_hash, e.tier, e.group)) for engine_hash in e.hashes]
        else:
            events.append(repr(e))
    return events, [*batch.bad], [*batch.unknown]


_events = st.sampled_from(
    [
        _SOUND, ["BlockRemoved", [1, -5], "CPU"], ["AllBlocksCleared"], ["BlockMoved", 1], ["BlockStored", 5],
        {"type": "BlockStored", **dict(zip(_STORED_FIELDS, _POSITIONAL["later"][0], strict=False))},
        {"type": "BlockRemoved", "block_hashes": [b"12345678"]}, {"type": "AllBlocksCleared"}, {"type": "New"},
        _pack(_SOUND), ["BlockStored", _HASHES, None, [1, 2, 3, -4], 2, None],
    ]
) | _anything  # fmt: skip


@given(st.lists(_events, max_size=20), st.sampled_from([1.5, 3]))
def test_a_batch_is_the_sum_of_its_events(events: list[object], clock: float) -> None:
    """However they are mixed, events are decoded as each would be alone."""
    batch = decode(_pack([clock, events, 0]))
    alone = [_said(decode(_pack([clock, [event], 0]))) for event in events]
    assert (batch.ts, batch.rank) == (clock, 0)
    assert _said(batch)[0] == [event for said in alone for event in said[0]]
    assert len(batch.bad) == sum(len(said[1]) for said in alone)
    assert _said(batch)[2] == [name for said in alone for name in said[2]]


@pytest.mark.parametrize("version", [*VERSIONS, "vllm-0.32.0-hybrid"])
def test_a_new_type_of_event_changes_nothing_of_the_others(version: str) -> None:
    """Recorded batches with a type that we do not know put in are read as they were."""
    for frame in frames(version):
        clock, events, rank = msgspec.msgpack.decode(frame.payload)
        mixed = decode(_pack([clock, [["BlockMoved", 1], *events], rank]))
        assert mixed.unknown == ("BlockMoved",)
        assert _said(mixed)[:2] == _said(decode(frame.payload))[:2]


@pytest.mark.parametrize("version", VERSIONS)
def test_fuzz_recorded_frames(version: str) -> None:
    """Real frames with bytes changed, cut out, doubled, or put in."""
    rng = random.Random(version)
    payloads = [frame.payload for frame in frames(version)]
    for _ in range(1500):
        mutant = bytearray(rng.choice(payloads))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(mutant))
            match rng.randrange(4):
                case 0:
                    mutant[at] = rng.randrange(256)
                case 1:
                    del mutant[at : at + rng.randint(1, 9)]
                case 2:
                    mutant[at:at] = mutant[at : at + rng.randint(1, 9)]
                case 3:
                    mutant[at:at] = rng.randbytes(rng.randint(1, 9))
            if not mutant:
                break
        _survives(bytes(mutant))


def test_lookahead_tokens() -> None:
    """What a hash covers behind its block: equally many tokens for each hash, or the event is not sound."""
    plain = {
        "type": "BlockStored", "block_hashes": [17, 18], "parent_block_hash": None, "token_ids": [5, 6, 7, 8],
        "block_size": 2, "lora_id": None, "medium": "GPU", "lora_name": None,
    }  # fmt: skip
    told = _one({**plain, "lookahead_token_ids": [[7, 8], [9, 10]]})
    assert told.ahead is not None and told.ahead.tolist() == [7, 8, 9, 10]
    prompt = np.array([5, 6, 7, 8, 9, 10, 11], np.uint32)
    assert told.covered() == cut(prompt, told.grain) and (size_of(told.grain), ahead_of(told.grain)) == (2, 2)
    for nothing in (None, [], [[], []]):
        assert _one({**plain, "lookahead_token_ids": nothing}).ahead is None
    for wrong in ([[7]], [[7], [8, 9]], [[7]] * 3, [[7] * 256, [8] * 256]):
        assert decode(_pack([0.0, [{**plain, "lookahead_token_ids": wrong}]])).bad
