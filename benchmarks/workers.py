"""What several workers cost and bring: CPU for a request, memory and events of each worker, the shared load.

    python -m benchmarks.workers [--seconds 4] [--rounds 3] [--part serve|index|board] [--pods 64] [--blocks 60000]

`serve`: the gateway with 1 and 2 workers in front of the same mock pods. They, the load generator and the workers share
the cores of this machine: on two cores CPU per request can be compared, and how evenly connections spread, but how far
throughput grows can't. `index`: what each worker has a copy of, and spends on its own feeds: the price of whole
gateways beside one index with readers. `board`: a decision while other workers decide as often, beside one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.events import Pod as Publisher
from benchmarks.index import DISTINCT_SHARE, DictIndex, chains, fill, place
from benchmarks.proxy import ask, cpu_s, free_port, rss_mib, stop, wait_ready, wait_until_listening
from benchmarks.proxy_load import payload, run_asyncio, run_wrk
from benchmarks.proxy_pods import MODEL, start_nginx
from indexer.blocks import KeySpace
from indexer.feed import Feed
from indexer.index import PrefixIndex
from router.config.settings import Config
from router.core.decision import Core
from router.core.demand import Demand, End, Placement
from router.core.fleet import Pod, Rank, RankId
from router.service import core_settings
from scorer.board import Board, row_of
from scorer.cost import PrefillRate

TINY = Path(__file__).parent.parent / "simulator" / "tiny"
PODS = 4
PROMPT_BYTES = 1_900
BLOCK = 16
BUSY_TOKENS_S = 8_000  # that a busy pod computes: each block of them is stored, and pushes another one out
DECISIONS = 1_500
NEW_BLOCKS = 125
FLYING = 50  # requests of each worker
DECISION_GAP_S = 0.0004  # of each worker
BOARD_WORKERS = 4
ROW = row_of(1024, 16_384)
NOBODY: frozenset[str] = frozenset()


class Round(NamedTuple):
    """One gateway, one time. `shares`: of the CPU time, by worker."""

    cpu_us: float
    per_s: float
    p50_ms: float
    errors: int
    shares: list[float]


def children(pid: int) -> list[int]:
    """The workers; the process itself, where it has none."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found] or [pid]


@contextlib.contextmanager
def gateway(workers: int, pods: list[str], folder: Path) -> Iterator[tuple[int, int]]:
    """(process id, port) of one in front of these pods."""
    port = free_port()
    flags = [f"--pod=name=pod-{number},address={pod}" for number, pod in enumerate(pods)]
    command = [sys.executable, "-m", "router", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", f"name={MODEL},tokenizer={TINY}", "--workers", str(workers), *flags]
    with (folder / f"{workers}.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        body = payload(PROMPT_BYTES, False)
        wait_ready(f"{workers} workers", port, body, ask(int(pods[0].rpartition(":")[2]), body)[1])
        while len(children(process.pid)) < workers or not all(asked(port) for _ in range(8 * workers)):
            time.sleep(0.1)
        yield process.pid, port
    finally:
        stop(process)


def asked(port: int) -> bool:
    """Does whoever gets this connection serve?"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200


def one_round(pid: int, port: int, connections: int, seconds: float, folder: Path) -> Round:
    """Load for a while; CPU is that of the workers."""
    body, pids = payload(PROMPT_BYTES, False), children(pid)
    before, began = [cpu_s(each) for each in pids], time.monotonic()
    load = run_wrk(port, body, connections, seconds, 1, folder) or run_asyncio(port, body, connections, seconds, 1)
    spent = [cpu_s(each) - was for each, was in zip(pids, before, strict=True)]
    took_s, count = time.monotonic() - began, max(1, load.requests)
    shares = [each / sum(spent) for each in spent]
    return Round(sum(spent) / count * 1e6, count / took_s, load.p50_ms, load.errors, shares)


def serve(seconds: float, rounds: int) -> None:
    """Prints a line for each number of workers and connections."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warmroute-bench-")))
        ports = [free_port() for _ in range(PODS)]
        nginx = start_nginx(ports, folder)
        if nginx is None:
            raise SystemExit("nginx is needed: its mock pods cost next to nothing.")
        stack.callback(stop, nginx)
        for port in ports:
            wait_until_listening(port)
        pods = [f"http://127.0.0.1:{port}" for port in ports]
        running = {workers: stack.enter_context(gateway(workers, pods, folder)) for workers in (1, 2)}
        print(f"\n2 KB chats, warm, {PODS} nginx pods, {os.cpu_count()} cores for all")
        print("workers connections  CPU us/req  x one   req/s  p50 ms  errors  RSS MiB each   CPU by worker")
        for connections in (16, 128):
            done: dict[int, list[Round]] = {workers: [] for workers in running}
            for _ in range(rounds):
                for workers, (pid, port) in running.items():
                    done[workers].append(one_round(pid, port, connections, seconds, folder))
            for workers, (pid, _) in running.items():
                print_rounds(workers, connections, done[workers], done[1], [rss_mib(each) for each in children(pid)])
        keeper, _ = running[2]
        print(f"the process that keeps the two: {rss_mib(keeper):.0f} MiB, {cpu_s(keeper):.2f} s of CPU in all")


def print_rounds(workers: int, connections: int, done: list[Round], one: list[Round], rss: list[float]) -> None:
    """Medians."""
    cpu_us = statistics.median(each.cpu_us for each in done)
    per_s, p50_ms = statistics.median(each.per_s for each in done), statistics.median(each.p50_ms for each in done)
    ratio = cpu_us / statistics.median(each.cpu_us for each in one)
    errors, memory = sum(each.errors for each in done), " ".join(f"{each:.0f}" for each in rss)
    shares = " ".join(f"{statistics.fmean(each.shares[at] for each in done):.0%}" for at in range(workers))
    figures = f"{workers:7} {connections:11} {cpu_us:11.0f} {ratio:6.2f} {per_s:7.0f} {p50_ms:7.2f} {errors:7}"
    print(f"{figures} {memory:>13}   {shares}")


def copies(pods: int, blocks: int) -> None:
    """Prints memory and events of one worker; both times N with N workers."""
    space, before = KeySpace(3), rss_mib(os.getpid())
    distinct = int(pods * blocks * DISTINCT_SHARE)
    made = chains(np.random.default_rng(7), space, distinct)
    placed = place(random.Random(1), made, pods, blocks)
    with_chains = rss_mib(os.getpid())
    index = PrefixIndex(space, 2 * distinct + (1 << 16), pods + 1)
    entries = fill(index, DictIndex(), made, placed)
    print(f"{pods} pods x {blocks} blocks, {entries / 1e6:.2f}M entries: the index has {index.nbytes / 2**20:.0f} MiB "
          f"of tables; with what it was made from, the process grew from {before:.0f} and {with_chains:.0f} "
          f"to {rss_mib(os.getpid()):.0f} MiB")  # fmt: skip
    publisher = Publisher(BLOCK, 64, 1)
    batches = [publisher.batch(4) for _ in range(1_500)]
    feed = Feed(index, 0, 10_000)
    feed.replay_ended(True, 0.0)
    began = time.process_time()
    for number, (payload_of, _) in enumerate(batches):
        feed.frame(number, payload_of, 0.0)
    operation_s = (time.process_time() - began) / sum(operations for _, operations in batches)
    rate = 2 * pods * BUSY_TOKENS_S / BLOCK
    print(f"events: {operation_s * 1e6:.2f} us an operation; {pods} pods that compute {BUSY_TOKENS_S} tokens/s each "
          f"make {rate:.0f} operations/s: {rate * operation_s:.1%} of a core in each worker")  # fmt: skip


def cores(count: int, pods: int, shared: bool) -> list[Core]:
    """Workers with healthy pods that nobody will ask."""
    memory, made = memoryview(bytearray(count * ROW.itemsize)), []
    for number in range(count):
        board = Board(memory, count, number, ROW) if shared else None
        core = Core(core_settings(Config.model_validate({"scoring": {"slow_start": 0}})), KeySpace(1), board=board)
        for place_of in range(pods):
            pod, name = Pod(f"pod-{place_of}", "", healthy=True, block_size=BLOCK), RankId(f"pod-{place_of}", 0)
            pod.ranks.append(Rank(name, pod, core.load_of(name, PrefillRate(8000.0)), None))
            core.fleet.join(pod)
            core.fleet.learned_models(pod, [{"id": MODEL}])
        made.append(core)
    return made


def decision_us(workers: list[Core]) -> float:
    """One decision of the first of `workers` and all that it tells, while the others decide as often.

    A mean without the slowest twentieth: one decision in some pays for the look at the others, but a machine that is
    busy with something else should not count.
    """
    rng, now = np.random.default_rng(1), 0.0
    times: list[float] = []
    flying: deque[tuple[Core, Placement]] = deque()
    for _ in range(DECISIONS):
        now += DECISION_GAP_S
        for worker in workers:
            keys = worker.space.chain(rng.integers(0, 100_000, NEW_BLOCKS * BLOCK, dtype=np.uint32), BLOCK)
            asking = Demand(MODEL, len(keys) * BLOCK, keys={BLOCK: keys})
            began = time.perf_counter()
            placed = worker.route(asking, worker.look_up(asking, None, now), NOBODY, now)
            worker.first_byte(placed, True, now)
            times += [time.perf_counter() - began] if worker is workers[0] else []
            flying.append((worker, placed))
        while len(flying) > FLYING * len(workers):
            worker, placed = flying.popleft()
            worker.finish(placed, End("void"), now)
            worker.index.expire(now)
    return statistics.fmean(sorted(times)[: len(times) * 19 // 20]) * 1e6


def board() -> None:
    """Prints a line for each size of the fleet."""
    print(f"a decision on {NEW_BLOCKS} new blocks, {1 / DECISION_GAP_S:.0f}/s in each worker")
    for pods in (4, 16, 64):
        alone, plain, shared = (
            min(decision_us(cores(count, pods, sharing)) for _ in range(3))
            for count, sharing in ((1, False), (BOARD_WORKERS, False), (BOARD_WORKERS, True))
        )
        print(f"  {pods:2} pods: alone {alone:.0f} us; one of {BOARD_WORKERS} {plain:.0f} us with nothing shared, "
              f"{shared:.0f} us on the board: {shared - plain:+.0f} us, {shared / plain:.2f}x", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("serve", "index", "board"), action="append", help="only this one")
    parser.add_argument("--pods", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=60_000, help="that each pod holds")
    options = parser.parse_args()
    parts = options.part or ["board", "index", "serve"]
    if "board" in parts:
        board()
    if "index" in parts:
        copies(options.pods, options.blocks)
    if "serve" in parts:
        serve(options.seconds, options.rounds)


if __name__ == "__main__":
    main()
