"""What machine code makes of keys and payloads is what the plain way makes of them, and nothing is compiled late."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer import compiled, compiled_loops, wire
from indexer.blocks import KeySpace
from indexer.errors import WireError
from indexer.events import Batch, BlockRemoved, BlockStored
from indexer.feed import Feed
from indexer.index import PrefixIndex
from router.errors import ConfigError
from router.ways import way_of
from tests.recordings import VERSIONS, frames
from tests.test_indexer_wire import _events, _said
from tests.ways import way_under_test

_pack = msgspec.msgpack.encode
_SETS = [*VERSIONS, "vllm-0.32.0-dp2", "vllm-0.32.0-hybrid"]


def _read(payload: bytes) -> Batch | str:
    """What the compiled way reads, which must be what the plain one does; or why it is no batch."""
    batches: list[Batch | str] = []
    for decode in (wire.decode, way_under_test().decode):
        try:
            batches.append(decode(payload))
        except WireError as error:
            batches.append(str(error))
    plain, ours = batches
    if isinstance(plain, str) or isinstance(ours, str):
        assert plain == ours
    else:
        assert (plain.ts, plain.rank, _said(plain)) == (ours.ts, ours.rank, _said(ours))
    return ours


def _is_plain(batch: Batch | str) -> bool:
    """Was it read by machine code? Its hashes are in an array then."""
    assert isinstance(batch, Batch)
    return not any(isinstance(e, BlockStored | BlockRemoved) and isinstance(e.hashes, list) for e in batch.events)


def _mutant(rng: random.Random, payload: bytes) -> bytes:
    """A payload with bytes changed, cut out, or doubled."""
    mutant = bytearray(payload)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(mutant))
        match rng.randrange(3):
            case 0:
                mutant[at] = rng.choice((rng.randrange(256), 0xC0, 0xCF, 0xDD, 0xDF, 0xFF))
            case 1 if len(mutant) > 20:
                del mutant[at : at + rng.randint(1, 9)]
            case _:
                mutant[at:at] = mutant[at : at + rng.randint(1, 9)]
    return bytes(mutant)


@pytest.mark.parametrize("size", compiled_loops.SIZES)
def test_keys_are_those_of_the_key_space(size: int) -> None:
    """Bit for bit, from the start and behind a parent."""
    space, rng = KeySpace(7), np.random.default_rng(size)
    tokens = rng.integers(0, 1 << 32, 40 * size, dtype=np.uint32)
    for parent in (None, 0, 2**64 - 3):
        keys = np.zeros(40, np.uint64)
        before = space.root(size) if parent is None else parent
        compiled_loops.chain(tokens, size, np.uint64(before), keys)
        assert keys.tolist() == space.follow(tokens, size, parent)


@pytest.mark.parametrize("version", _SETS)
def test_recorded_frames_are_read_alike(version: str) -> None:
    """Of what real servers published, nearly all is plain; a buffer does as well as bytes."""
    batches = [_read(frame.payload) for frame in frames(version)]
    assert sum(map(_is_plain, batches)) > 0.9 * len(batches)
    first = frames(version)[0].payload
    assert _said(way_under_test().decode(memoryview(first))) == _said(wire.decode(first))


@pytest.mark.parametrize("version", _SETS)
def test_damaged_frames_are_read_alike(version: str) -> None:
    """Real frames with bytes changed, cut out, doubled, and cut short anywhere."""
    rng = random.Random(version)
    payloads = [frame.payload for frame in frames(version)]
    for _ in range(3000):
        _read(_mutant(rng, rng.choice(payloads)))
    shortest = min(payloads, key=len)
    for end in range(len(shortest)):
        _read(shortest[:end])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_events, max_size=8), st.sampled_from([1.5, 3, float("nan")]), st.sampled_from([None, 0, -1, "0"]))
def test_any_events_are_read_alike(events: list[object], clock: float, rank: object) -> None:
    """Sound, bad and unknown ones, mixed."""
    _read(_pack([clock, events, rank]))
    _read(_pack([clock, events]))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_alike(payload: bytes) -> None:
    """Alone, and as an event."""
    _read(payload)
    _read(b"\x92\xcb\x3f\xf0" + bytes(6) + b"\x91" + payload)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**64 - 1), st.sampled_from(["GPU", "CPU", None, "GPV"]),
                          st.sampled_from([0, 1, None])), max_size=30))  # fmt: skip
def test_removals_that_look_alike(removals: list[tuple[int, str | None, int | None]]) -> None:
    """Each keeps its own hash, medium and group, however like its neighbours it is."""
    maps = [{"type": "BlockRemoved", "block_hashes": [h], "medium": m, "group_idx": g} for h, m, g in removals]
    arrays = [["BlockRemoved", [h], m, g] for h, m, g in removals]
    mixed = [pair[n % 3 // 2] for n, pair in enumerate(zip(maps, arrays, strict=True))]
    for events in (maps, arrays, mixed):
        assert _is_plain(_read(_pack([1.0, events, 0])))


def test_nothing_is_compiled_late() -> None:
    """Whatever a feed brings, machine code was made before: the serving loop never waits for the compiler."""
    way = way_under_test()
    before = {loop.__name__: len(loop.signatures) for loop in compiled.LOOPS}
    index = PrefixIndex(KeySpace(3), 100_000, way=way)
    for number, version in enumerate(_SETS):
        feed = Feed(index, number, 1000)
        for frame in frames(version):
            feed.frame(frame.number, memoryview(frame.payload), 0.0)
    assert {loop.__name__: len(loop.signatures) for loop in compiled.LOOPS} == before


def test_it_can_be_left_off() -> None:
    """The extra is used where it is installed, unless the configuration says no."""
    assert way_of(False).decode is wire.decode
    assert way_of(None).ledger is compiled.CompiledLedger


def test_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wanted and not there is an error; not there is none."""
    monkeypatch.setitem(__import__("sys").modules, "indexer.compiled", None)
    monkeypatch.delattr("indexer.compiled")
    with pytest.raises(ConfigError, match=r"warmroute\[compiled\]"):
        way_of(True)
    assert way_of(None).decode is wire.decode
