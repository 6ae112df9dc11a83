"""What events cost: bytes of vLLM's feed to an index that is right, beside a bare typed decode of the same bytes.

    python -m benchmarks.events [--operations N] [--seconds S] [--rate N] [--skip-lag]

An operation is one block stored or removed. `stores`: a cache that fills up; `full`: each stored block pushes another
one out, which vLLM says in an event of its own. The bare decode knows the shape and makes plain objects, nothing else.
Times are CPU time of the process, the best of several runs. Bytes are those of tables that are far from full. Lag is
measured on a uvloop that reads feeds of a publisher process over real sockets. Ends with exit code 1 if a target is
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from time import perf_counter, process_time

import msgspec
import numpy as np
import uvloop
import zmq

from indexer.blocks import KeySpace
from indexer.events import BlockStored
from indexer.feed import Feed
from indexer.index import PrefixIndex
from router.config.events import EventsConfig
from router.events.reader import FeedReader
from router.events.sockets import FeedLimits

SIZE = 16  # tokens a block
TOKEN_MAX = 150_000
EVENT_BLOCKS = (1, 4, 16, 64, 128)
TARGET_BLOCKS = 16  # from so many blocks per event on, the targets hold
RATE_TARGET = 400_000  # operations a second
BARE_TARGET = 5.5
LAG_P99_TARGET_S, LAG_MAX_TARGET_S = 0.006, 0.020
SWEEP_BLOCKS, SWEEP_TARGET_S = 60_000, 0.001
FEEDS = 8
EVENTS_A_STEP = 4  # events of 16 blocks in one scheduler step of a busy pod
LAG_TICK_S = 0.001
ROUNDS = 5


class _Stored(msgspec.Struct, tag="BlockStored", tag_field="type"):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[object] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved", tag_field="type"):
    block_hashes: list[int]
    medium: str | None = None
    group_idx: int | None = None


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[_Stored | _Removed]
    data_parallel_rank: int | None = None


class Pod:
    """Makes the batches of one pod: `blocks` a stored event; with `held`, it keeps the blocks of so many events."""

    def __init__(self, blocks: int, held: int | None, seed: int) -> None:
        self._blocks = blocks
        self._held = held
        self._rng = np.random.default_rng(seed)
        self._events: deque[list[int]] = deque()
        self._parent: int | None = None

    def batch(self, events: int = 1) -> tuple[bytes, int]:
        """The payload of one step, in the newest encoding, and the operations in it."""
        said: list[dict[str, object]] = []
        operations = 0
        for _ in range(events):
            if self._held is not None and len(self._events) >= self._held:
                gone = self._events.popleft()
                said += [{"type": "BlockRemoved", "block_hashes": [h], "medium": "GPU", "group_idx": 0} for h in gone]
                operations += len(gone)
            said.append(self._stored())
            operations += self._blocks
        return msgspec.msgpack.encode([time.time(), said, 0]), operations

    def _stored(self) -> dict[str, object]:
        parent = self._parent if self._rng.random() < 0.75 else None
        hashes = self._rng.integers(1, 1 << 63, self._blocks, dtype=np.uint64).tolist()
        self._events.append(hashes)
        self._parent = hashes[-1]
        return {
            "type": "BlockStored",
            "block_hashes": hashes,
            "parent_block_hash": parent,
            "token_ids": self._rng.integers(0, TOKEN_MAX, self._blocks * SIZE, dtype=np.uint32).tolist(),
            "block_size": SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": [None] * self._blocks,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }


def best_s(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """CPU seconds of the fastest of several runs of each, in turn: what disturbs one disturbs all."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = process_time()
            run()
            best[name] = min(best[name], process_time() - began)
    return best


def throughput(operations: int) -> bool:
    """Prints a line for each mix and number of blocks an event; False if a target was missed."""
    fine = True
    print("mix     blocks/event  operations/s  ns/operation  bare decode, ns  times bare  bytes/entry")
    for mix, held in (("stores", None), ("full", 64)):
        for blocks in EVENT_BLOCKS:
            pod, made, done = Pod(blocks, held, blocks), [], 0
            while done < operations:
                payload, count = pod.batch()
                made.append(payload)
                done += count
            line, missed = measured(made, done)
            missed = missed and blocks >= TARGET_BLOCKS
            fine = fine and not missed
            print(f"{mix:6} {blocks:13} {line}{'   MISSED' if missed else ''}")
    return fine


def measured(made: list[bytes], operations: int) -> tuple[str, bool]:
    """Believes these payloads: the figures, and whether they missed a target."""
    decode = msgspec.msgpack.Decoder(_Batch).decode
    index = PrefixIndex(KeySpace(3), 1, 1)

    def bare() -> None:
        for payload in made:
            decode(payload)

    def believed() -> None:
        nonlocal index
        index = PrefixIndex(KeySpace(3), 4 * operations, 8)
        feed = Feed(index, "pod", 1000)
        for number, payload in enumerate(made):
            feed.frame(number, payload, 0.0)
        assert feed.state == "exact" and not feed.counts.unknown_removals and not feed.counts.refused

    best = best_s({"bare": bare, "believed": believed})
    rate, times = operations / best["believed"], best["believed"] / best["bare"]
    entries = index.holding("pod").gpu
    size = f"{index.nbytes / entries:12.1f}" if 2 * entries > operations else ""  # few entries weigh nothing
    figures = f"{rate:13,.0f} {1e9 / rate:13.0f} {best['bare'] / operations * 1e9:16.0f} {times:11.2f} {size}"
    return figures, rate < RATE_TARGET or times > BARE_TARGET


def publish(told: Connection, rate: int, seconds: float) -> None:
    """The publisher process: FEEDS pods, so many operations a second over all."""
    context = zmq.Context()
    sockets, endpoints = [], []
    for _ in range(FEEDS):
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.bind("tcp://127.0.0.1:*")
        sockets.append(socket)
        endpoints.append(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    pods = [Pod(16, 64, seed) for seed in range(FEEDS)]
    steps = []
    made = 0
    while made < rate * seconds:
        for number, pod in enumerate(pods):
            steps.append((number, *pod.batch(EVENTS_A_STEP)))
            made += steps[-1][2]
    told.send(endpoints)
    told.recv()  # the other side has subscribed
    began, sent, numbers = perf_counter(), 0, [0] * FEEDS
    for number, payload, count in steps:
        wait = began + sent / rate - perf_counter()
        if wait > 0:
            time.sleep(wait)
        sockets[number].send_multipart([b"kv@pod@m", numbers[number].to_bytes(8, "big"), payload])
        numbers[number] += 1
        sent += count
    told.send((sent, perf_counter() - began))
    told.recv()
    context.destroy(linger=0)


async def lags_while(done: Callable[[], bool]) -> list[float]:
    """How much later than wanted a timer of the loop fires, until `done`, seconds."""
    lags = []
    while not done():
        before = perf_counter()
        await asyncio.sleep(LAG_TICK_S)
        lags.append(max(0.0, perf_counter() - before - LAG_TICK_S))
    return sorted(lags)


async def serve(told: Connection, seconds: float) -> bool:
    """Reads the feeds on this loop, and prints its lag; False if a target was missed."""
    index = PrefixIndex(KeySpace(5), 1_000_000, FEEDS)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    loop = asyncio.get_running_loop()
    endpoints = await loop.run_in_executor(None, told.recv)
    feeds = [Feed(index, number, 10_000) for number in range(FEEDS)]
    limits = FeedLimits.of(EventsConfig())
    readers = [FeedReader(context, f, e, None, limits) for f, e in zip(feeds, endpoints, strict=True)]
    for reader in readers:
        reader.start()
    for reader in readers:
        await reader.joined.wait()
    until = perf_counter() + min(2.0, seconds)
    idle = await lags_while(lambda: perf_counter() > until)
    gc.freeze()
    told.send(None)
    began = process_time()
    lags = await lags_while(told.poll)
    cpu_s = process_time() - began
    sent, took_s = told.recv()
    await asyncio.sleep(0.5)
    applied = sum(feed.counts.stored + feed.counts.removed for feed in feeds)
    told.send(None)
    p99, worst = lags[int(0.99 * len(lags))], lags[-1]
    idle_p99, idle_worst = idle[int(0.99 * len(idle))], idle[-1]
    missed = p99 > LAG_P99_TARGET_S or worst > LAG_MAX_TARGET_S or applied < sent
    print(f"\nloop lag while {sent / took_s:,.0f} operations/s of {FEEDS} pods are applied ({applied:,} of {sent:,}):")
    print(f"  p99 {p99 * 1e3:.2f} ms, worst {worst * 1e3:.2f} ms{'   MISSED' if missed else ''}")
    print(f"  idle: p99 {idle_p99 * 1e3:.2f} ms, worst {idle_worst * 1e3:.2f} ms; {cpu_s / took_s:.0%} of one core")
    for reader in readers:
        await reader.stop()
    context.destroy(linger=0)
    return not missed


def lag(rate: int, seconds: float) -> bool:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    publisher = spawn.Process(target=publish, args=(theirs, rate, seconds))
    publisher.start()
    try:
        return uvloop.run(serve(ours, seconds))
    finally:
        publisher.join(10)
        publisher.kill()


def sweep() -> bool:
    """Clears a pod, and times the call and each slice that follows; False if a slice is too long."""
    space, rng = KeySpace(9), np.random.default_rng(9)
    index = PrefixIndex(space, 4 * SWEEP_BLOCKS, 64)
    blocks = SWEEP_BLOCKS // 100
    for chain in range(100):
        tokens = rng.integers(0, TOKEN_MAX, blocks * SIZE, dtype=np.uint32)
        for pod in range(1 + chain % 4):  # every fourth chain is held by this pod alone
            hashes = rng.integers(1, 1 << 63, blocks, dtype=np.uint64).tolist()
            index.apply(pod, BlockStored(hashes, None, tokens, SIZE))
    gc.collect()
    began = perf_counter()
    index.clear(0)
    times = [perf_counter() - began]
    more = True
    while more:
        began = perf_counter()
        more = index.sweep()
        times.append(perf_counter() - began)
    median, worst = sorted(times[1:])[len(times) // 2], max(times)
    missed = median > SWEEP_TARGET_S
    print(f"\nclear of a pod with {SWEEP_BLOCKS:,} blocks: {times[0] * 1e3:.2f} ms, then {len(times) - 1} slices, "
          f"median {median * 1e3:.2f} ms, worst {worst * 1e3:.2f} ms{'   MISSED' if missed else ''}")  # fmt: skip
    return not missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=60_000, help="in each measurement of throughput")
    parser.add_argument("--rate", type=int, default=100_000, help="operations a second while lag is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="for which lag is measured")
    parser.add_argument("--skip-lag", action="store_true")
    arguments = parser.parse_args()
    gc.freeze()
    fine = throughput(arguments.operations)
    fine = sweep() and fine
    if not arguments.skip_lag:
        fine = lag(arguments.rate, arguments.seconds) and fine
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
