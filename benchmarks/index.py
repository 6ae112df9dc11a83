"""The index beside a plain dict of int masks and beside NVIDIA Dynamo's indexer, on the same fleet in the same run.

    python -m benchmarks.index [--pods 64] [--blocks 60000] [--dynamo PYTHON]

Conversations share system prompts and each other's beginnings; every pod holds a random choice of them. Each time is
the median over rotating chains (one chain alone would sit in the CPU's cache and flatter everybody). The dict knows
nothing of engine hashes and copies; the index does, and makes its keys from tokens. PYTHON: an interpreter that has
`ai-dynamo-runtime` and numpy; its `RadixTree.find_matches` is the equivalent call. Ends with exit code 1 if a target
is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np

from indexer.blocks import Keys, KeySpace, Tokens
from indexer.events import BlockStored
from indexer.index import PrefixIndex

SIZE = 16  # tokens a block
EVENT_BLOCKS = 128
TOKEN_MAX = 150_000
SYSTEM_BLOCKS, SYSTEMS = 64, 8
LENGTHS = [300, 600, 1100, 2300, 128] * 6 + [9000]  # of chains, in blocks
DISTINCT_SHARE = 0.72  # distinct blocks for each entry
HELD = (32, 64, 128, 512, 2_048, 8_192)
CHAINS_MAX = 128
ROUNDS = 512
DICT_TARGETS = {512: 2.0, 2_048: 3.0, 8_192: 3.0}  # times faster than the dict
SHORT_BLOCKS, SHORT_TARGET_US = 64, 50.0
BYTES_TARGET, DICT_BYTES_TARGET = 65.0, 0.45


class Chain(NamedTuple):
    tokens: Tokens
    keys: Keys


class DictIndex:
    """The plain design: key -> int mask of pods."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}

    def store(self, pod: int, keys: list[int]) -> None:
        masks, bit = self.masks, 1 << pod
        for key in keys:
            masks[key] = masks.get(key, 0) | bit

    def match(self, keys: list[int]) -> dict[int, int]:
        left, hits, at = -1, {}, 0
        get = self.masks.get
        for at, key in enumerate(keys):
            now = left & get(key, 0)
            if now != left:
                gone = left & ~now if left != -1 else 0
                while gone:
                    hits[(gone & -gone).bit_length() - 1] = at
                    gone &= gone - 1
                left = now
                if not now:
                    return hits
        while left > 0:
            hits[(left & -left).bit_length() - 1] = at + 1
            left &= left - 1
        return hits

    def nbytes(self, pods: int, entries: int) -> int:
        """With what an event needs besides: a dict from engine hash to key for each pod, at sizes that dicts have."""
        masks = sys.getsizeof(self.masks) + sum(28 + 32 for _ in self.masks)  # an int mask and an int key
        one = sys.getsizeof(dict.fromkeys(range(entries // pods)))
        return masks + pods * one + entries * 32  # and an int hash


def chains(rng: np.random.Generator, space: KeySpace, blocks: int) -> list[Chain]:
    """Conversations of so many distinct blocks: one of eight system prompts, then their own text."""
    systems = [rng.integers(0, TOKEN_MAX, SYSTEM_BLOCKS * SIZE, dtype=np.uint32) for _ in range(SYSTEMS)]
    made: list[Chain] = []
    while blocks > 0:
        own = LENGTHS[len(made) % len(LENGTHS)] - SYSTEM_BLOCKS
        text = rng.integers(0, TOKEN_MAX, own * SIZE, dtype=np.uint32)
        tokens = np.concatenate([systems[len(made) % SYSTEMS], text])
        made.append(Chain(tokens, space.chain(tokens, SIZE)))
        blocks -= own
    return made


def place(rng: random.Random, made: list[Chain], pods: int, blocks: int) -> list[tuple[int, int]]:
    """(pod, chain) for every chain that a pod holds: a random choice, up to `blocks` a pod."""
    placed = []
    for pod in range(pods):
        left = blocks
        for number in rng.sample(range(len(made)), len(made)):
            if len(made[number].keys) <= left:
                placed.append((pod, number))
                left -= len(made[number].keys)
            if left < min(LENGTHS):
                break
    return placed


def hashes_of(keys: Keys, pod: int) -> Keys:
    """What the pod calls these blocks."""
    return keys ^ np.uint64(pod * 0x9E37_79B9_7F4A_7C15 & (1 << 64) - 1)


def events_of(chain: Chain, pod: int) -> list[BlockStored]:
    hashes, events = hashes_of(chain.keys, pod).tolist(), []
    for start in range(0, len(hashes), EVENT_BLOCKS):
        tokens = chain.tokens[start * SIZE : (start + EVENT_BLOCKS) * SIZE]
        parent = hashes[start - 1] if start else None
        events.append(BlockStored(hashes[start : start + EVENT_BLOCKS], parent, tokens, SIZE))
    return events


def fill(index: PrefixIndex, plain: DictIndex, made: list[Chain], placed: list[tuple[int, int]]) -> int:
    """Both hold what is placed; returns how many (pod, block) entries that is."""
    entries, ours_s, plain_s = 0, 0.0, 0.0
    for pod, number in placed:
        events, keys = events_of(made[number], pod), made[number].keys.tolist()
        began = process_time()
        for event in events:
            index.apply(pod, event)
        ours_s += process_time() - began
        began = process_time()
        plain.store(pod, keys)
        plain_s += process_time() - began
        entries += len(keys)
    print(
        f"fill, ns/entry: {ours_s / entries * 1e9:.0f} with keys and engine hashes; "
        f"bare dict {plain_s / entries * 1e9:.0f}"
    )
    return entries


def median_us(call: Callable[[int], object]) -> float:
    times = []
    for number in range(ROUNDS):
        began = perf_counter()
        call(number)
        times.append(perf_counter() - began)
    return statistics.median(times) * 1e6


def rotating(made: list[Chain], placed: list[tuple[int, int]], blocks: int) -> list[int]:
    """Chains of which some pod holds so many leading blocks."""
    held = dict.fromkeys(number for _, number in placed if len(made[number].keys) >= blocks)
    return list(held)[:CHAINS_MAX]


def dynamo_us(python: str, made: list[Chain], placed: list[tuple[int, int]]) -> dict[int, float]:
    """Medians by held blocks, measured by the other interpreter on the same fleet and the same chains."""
    child = Path(__file__).with_name("index_dynamo.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fleet.npz"
        asked = [(blocks, number) for blocks in HELD for number in rotating(made, placed, blocks)]
        ends = np.cumsum([len(chain.keys) for chain in made])
        np.savez(file, keys=np.concatenate([chain.keys for chain in made]), ends=ends, placed=placed, asked=asked)
        told = subprocess.run([python, str(child), str(file), str(ROUNDS)], check=True, capture_output=True, text=True)
    return {int(blocks): us for blocks, us in json.loads(told.stdout).items()}


def measure(
    index: PrefixIndex, plain: DictIndex, made: list[Chain], placed: list[tuple[int, int]], python: str | None
) -> bool:
    """Prints a line for each number of held blocks; False if a target was missed."""
    theirs = dynamo_us(python, made, placed) if python else {}
    fine = True
    for blocks in HELD:
        keys = [made[number].keys[:blocks] for number in rotating(made, placed, blocks)]
        lists = [each.tolist() for each in keys]
        matches = [index.match(each) for each in keys]
        for match, as_list in zip(matches, lists, strict=True):
            assert {pod: hit.blocks for pod, hit in match.hits.items()} == plain.match(as_list)
        ours = median_us(lambda n, keys=keys: index.match(keys[n % len(keys)]))  # type: ignore[misc]
        plainly = median_us(lambda n, lists=lists: plain.match(lists[n % len(lists)]))  # type: ignore[misc]
        index.apply("elsewhere", BlockStored([1], None, np.zeros(SIZE, np.uint32), SIZE))
        checked = median_us(lambda n, matches=matches: index.unchanged(matches[n % len(matches)]))  # type: ignore[misc]
        missed = plainly / ours < DICT_TARGETS.get(blocks, 0.0) or (blocks == SHORT_BLOCKS and ours > SHORT_TARGET_US)
        missed = missed or (blocks in DICT_TARGETS and theirs.get(blocks, ours) < ours)
        dynamo = f"; Dynamo {theirs[blocks]:7.1f} us = {theirs[blocks] / ours:4.2f}x" if blocks in theirs else ""
        fine = fine and not missed
        print(
            f"{blocks:5d} held blocks, {len(keys):3d} chains: {ours:6.1f} us; dict {plainly:7.1f} us = "
            f"{plainly / ours:4.1f}x{dynamo}; unchanged {checked:4.1f} us{'   MISSED' if missed else ''}"
        )
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=60_000, help="that each pod holds")
    parser.add_argument("--dynamo", metavar="PYTHON", help="interpreter with ai-dynamo-runtime")
    arguments = parser.parse_args()
    space = KeySpace(3)
    distinct = int(arguments.pods * arguments.blocks * DISTINCT_SHARE)
    made = chains(np.random.default_rng(7), space, distinct)
    placed = place(random.Random(1), made, arguments.pods, arguments.blocks)
    gc.freeze()
    index, plain = PrefixIndex(space, 2 * distinct + (1 << 16), arguments.pods + 1), DictIndex()
    entries = fill(index, plain, made, placed)
    ours, theirs = index.nbytes / entries, plain.nbytes(arguments.pods, entries) / entries
    missed = ours > BYTES_TARGET or ours > DICT_BYTES_TARGET * theirs
    print(f"{entries / 1e6:.2f}M entries, {len(plain.masks) / 1e6:.2f}M distinct blocks, {len(made)} chains")
    print(f"bytes/entry: {ours:.1f}; of dicts {theirs:.0f} = {ours / theirs:.2f}x{'   MISSED' if missed else ''}")
    fine = measure(index, plain, made, placed, arguments.dynamo) and not missed
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
