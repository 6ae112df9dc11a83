"""The index beside a plain dict of int masks (and NVIDIA Dynamo's indexer, where its wheel is installed), in one run.

    python benchmarks/index.py [--pods 64] [--blocks 60000] [--pages-max N]

Conversations share system prompts and each other's beginnings; every pod holds a random choice of them. Each figure is
the median over rotating chains (one chain alone would sit in the CPU's cache and flatter everybody).
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np

from indexer.blocks import Keys, KeySpace
from indexer.events import BlockRemoved, BlockStored
from indexer.index import PrefixIndex

BLOCK = 16
Chain = tuple[np.ndarray, Keys]


class DictIndex:
    """The plain design: key -> int mask of pods; engine hash -> key for each pod."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}

    def store(self, pod: int, keys: list[int]) -> None:
        masks, bit = self.masks, 1 << pod
        for key in keys:
            masks[key] = masks.get(key, 0) | bit

    def match(self, keys: list[int]) -> dict[int, int]:
        left, hits, at = -1, {}, 0
        get = self.masks.get
        for at, key in enumerate(keys):  # noqa: B007
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


def chains(rng: np.random.Generator, space: KeySpace, count: int, lengths: list[int]) -> list[Chain]:
    """Conversations: one of eight system prompts of 64 blocks, then their own text."""
    systems = [rng.integers(0, 150_000, 64 * BLOCK, dtype=np.uint32) for _ in range(8)]
    made = []
    for i in range(count):
        own = rng.integers(0, 150_000, (lengths[i % len(lengths)] - 64) * BLOCK, dtype=np.uint32)
        tokens = np.concatenate([systems[i % 8], own])
        made.append((tokens, space.chain(tokens, BLOCK)))
    return made


def fill(index: PrefixIndex, plain: DictIndex, made: list[Chain], pods: int, blocks: int, fresh: bool) -> int:
    """Give every pod `blocks` blocks of randomly chosen chains, in events of at most 128 blocks; returns entries."""
    rng = random.Random(1)
    entries = 0
    spent = [0.0, 0.0]
    for pod in range(pods):
        held = 0
        for chain in rng.sample(range(len(made)), len(made)):
            tokens, keys = made[chain]
            if held + len(keys) > blocks:
                continue
            hashes = (keys ^ np.uint64(pod * 0x9E3779B97F4A7C15 & (1 << 64) - 1)).tolist()
            events = []
            for start in range(0, len(keys), 128):
                part = tokens[start * BLOCK : (start + 128) * BLOCK]
                events.append(BlockStored(hashes[start : start + 128], hashes[start - 1] if start else None, part, BLOCK))
            began = time.process_time()
            for event in events:
                index.apply(pod, event)
            spent[0] += time.process_time() - began
            as_list = keys.tolist()
            began = time.process_time()
            plain.store(pod, as_list)
            spent[1] += time.process_time() - began
            held += len(keys)
            if held > blocks - 300:
                break
        entries += held
    print(f"fill, ns/entry: index with keys and engine hashes {spent[0] / entries * 1e9:.0f}, bare dict {spent[1] / entries * 1e9:.0f}")
    return entries


def median_us(call: Callable[[int], object], rounds: int) -> float:
    times = []
    for i in range(rounds):
        began = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=60_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(7)
    space = KeySpace(3)
    held = [300, 600, 1100, 2300, 64 + 64] * 6 + [9000]
    distinct = int(arguments.pods * arguments.blocks * 0.72)
    count = distinct // (sum(held) // len(held) - 64)
    made = chains(rng, space, count, held)
    print(f"{count} chains, {sum(len(k) for _, k in made) / 1e6:.2f}M blocks")
    gc.freeze()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index, plain = PrefixIndex(space, 6_000_000, arguments.pods), DictIndex()
    entries = fill(index, plain, made, arguments.pods, arguments.blocks, True)
    print(f"{entries / 1e6:.2f}M entries, {len(plain.masks) / 1e6:.2f}M distinct, rows {index.blocks / 1e6:.2f}M; "
          f"index {index.nbytes / entries:.1f} bytes/entry, sets {len(index._sets)}; rss of all {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024:.0f} MiB")
    held_chains = [keys for _, keys in made if index.match(keys[:1]).hits and max(h.blocks for h in index.match(keys).hits.values()) == len(keys)]
    for blocks in (32, 64, 128, 512, 1024, 2048, 8192):
        rotating = [keys[:blocks] for keys in held_chains if len(keys) >= blocks][:128]
        lists = [k.tolist() for k in rotating]
        for keys, as_list in zip(rotating, lists, strict=True):
            assert {p: h.blocks for p, h in index.match(keys).hits.items()} == plain.match(as_list)
        ours = median_us(lambda i: index.match(rotating[i % len(rotating)]), 512)
        theirs = median_us(lambda i: plain.match(lists[i % len(lists)]), 512)
        matches = [index.match(k) for k in rotating]
        check = median_us(lambda i: (index._known(("x", i)) if False else index.unchanged(matches[i % len(rotating)])), 512)
        index._version += 1
        check = median_us(lambda i: index.unchanged(matches[i % len(rotating)]), 512)
        print(f"{blocks:5d} held blocks x {len(rotating):3d} chains: {ours:7.1f} us, dict {theirs:7.1f} us = {theirs / ours:4.1f}x; unchanged {check:.1f} us")


if __name__ == "__main__":
    main()
