"""What it takes to tell all that is known and to believe it elsewhere, beside learning it from events.

    python -m benchmarks.snapshot [--blocks 1000000] [--pods 8]

CPU seconds and bytes; `longest`: the longest slice of either, in which nothing else has its turn. The first slice of
filling an index touches its memory for the first time, as the first events would.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator

import msgspec
import numpy as np

from indexer import snapshot
from indexer.blocks import KeySpace
from indexer.capture import Capture
from indexer.feed import Feed
from indexer.filling import Filling, resumed, wait
from indexer.frames import END, FrameReader, FrameWriter
from indexer.index import PrefixIndex
from indexer.snapshot import Identity, Snapshot

SIZE = 16  # tokens a block
INDEX_BLOCKS = 8_000_000
SEED = 7


def learned(index: PrefixIndex, pod: int, blocks: int, rng: np.random.Generator) -> tuple[Feed, float]:
    """A feed that has told of so many blocks, and the seconds that it took to believe it."""
    feed, frames, told = Feed(index, pod, 1000), [], 0
    feed.connected(0.0)
    feed.replay_ended(True, 0.0)
    while told < blocks:
        count = int(rng.integers(64, 512))
        tokens = rng.integers(0, 100_000, count * SIZE, dtype=np.uint32).tolist()
        hashes = rng.integers(1, 1 << 63, count, dtype=np.uint64).tolist()
        frames.append(msgspec.msgpack.encode([float(len(frames)), [["BlockStored", hashes, None, tokens, SIZE, None]]]))
        told += count
    began = time.process_time()
    for number, payload in enumerate(frames):
        feed.frame(number, payload, 0.0)
    return feed, time.process_time() - began


def longest(steps: Generator[None, None, bool]) -> list[float]:
    """The seconds of each slice."""
    slices = []
    while True:
        began = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            assert end.value, "it can be told, and believed"
            return [*slices, time.thread_time() - began]
        slices.append(time.thread_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--pods", type=int, default=8)
    options = parser.parse_args()
    rng, index = np.random.default_rng(1), PrefixIndex(KeySpace(SEED), INDEX_BLOCKS)
    both = [learned(index, pod, options.blocks // options.pods, rng) for pod in range(options.pods)]
    events_s = sum(each for _, each in both)
    print(f"events {events_s:7.2f} s   {options.blocks} blocks of {options.pods} pods, one after the other")

    began, capture, writer, slices = time.process_time(), Capture(index), FrameWriter(b"key"), []
    data = writer.begin() + writer.frame(snapshot.HEAD, snapshot.encoded(snapshot.Head(SEED, 0.0)))
    for pod, (feed, _) in enumerate(both):
        slices += longest(capture.steps(feed, Identity("", str(pod), 0)))
    data += b"".join(writer.frame(*frame) for frame in capture.frames)
    data += writer.frame(END, snapshot.encoded(snapshot.SnapshotEnd(capture.feeds, capture.blocks)))
    save_s = time.process_time() - began
    print(f"save   {save_s:7.2f} s   {save_s / events_s:5.2f}x   {len(data) / 2**20:.1f} MiB, "
          f"longest {max(slices) * 1e3:.1f} ms")  # fmt: skip

    began, reader, found = time.process_time(), FrameReader(b"key"), Snapshot()
    for at in range(0, len(data), 1 << 20):
        for frame in reader.take(data[at : at + (1 << 20)]):
            found.take(*frame)
    reader.close()
    found.check()
    other, slices = PrefixIndex(KeySpace(SEED), INDEX_BLOCKS), []
    filling = Filling(other, found)
    for pod in range(options.pods):
        feed, remembered = Feed(other, pod, 1000), found.feeds[Identity("", str(pod), 0)]
        wait(feed)
        slices += longest(filling.steps(feed, remembered))
        resumed(feed, remembered, True, 0.0)
    load_s = time.process_time() - began
    first, *rest = sorted(slices, reverse=True)
    told = f"longest {rest[0] * 1e3:.1f} ms, first {first * 1e3:.1f} ms"
    print(f"load   {load_s:7.2f} s   {load_s / events_s:5.2f}x   {told}")


if __name__ == "__main__":
    main()
