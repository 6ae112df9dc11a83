"""What tokens and keys cost: cold, grown by a turn, and the same again, against tokenizing all of it each time.

    python -m benchmarks.decision [--tokenizer FOLDER]

Times are CPU time of the process, the median of several runs; ratios are against `encode_batch_fast` of `tokenizers` on
the same text in the same run. FOLDER holds a `tokenizer.json` with a large vocabulary; without it the tests' small one
is used. Ends with exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
import sys
import sysconfig
import tracemalloc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

from benchmarks.steady import Steady, Work
from indexer.blocks import KeySpace
from indexer.events import BlockStored
from indexer.index import PrefixIndex
from indexer.prefixes import PrefixLimits, PrefixStore
from router.config.tokens import PrefixStoreConfig, TokensConfig
from router.tokens.local import Encoded, LocalTokens, LocalTokensLimits
from router.tokens.tokenizer import Tokenizer

SMALL = Path(__file__).parent.parent / "tests" / "vectors" / "vllm-0.32.0" / "tokenizer"
SIZES = (500, 2_000, 8_000, 32_000, 128_000)
BLOCK_SIZE = 16
TURN_TOKENS = 400
NEXT_TURN_TARGETS = {8_000: 20, 32_000: 60, 128_000: 120}
COLD_TARGET, SAME_TARGET, STALL_TARGET_S = 0.35, 100, 0.005
PODS = 64
AGAIN = 100  # times the same prompt: once is too little to be measured
ROUNDS = 7
STORE = PrefixLimits(2**30, 30.0, 5, 16, PrefixStoreConfig().evictions)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as the encoder takes it."""

    text: str
    add_special_tokens: bool = False
    truncate_prompt_tokens: int | None = None


class Bench:
    """One run: its tokenizers, its text, and which targets were missed."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor, seed: int) -> None:
        self.hf = HFTokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer = Tokenizer(folder)
        self.pool = pool
        self.rnd = random.Random(seed)
        self.missed: list[str] = []
        self._source = _source_text()

    def encoder(self, limits: LocalTokensLimits | None = None) -> LocalTokens:
        """A fresh encoder with an empty store."""
        space = KeySpace(self.rnd.getrandbits(64))
        index = PrefixIndex(space, blocks_max=1 << 10)
        store = PrefixStore(
            space,
            self.rnd.getrandbits(64),
            index.unchanged,
            STORE,
        )
        usual = replace(LocalTokensLimits.of(TokensConfig()), deadline_s=60.0)
        return LocalTokens("bench", self.tokenizer, space, store, self.pool, limits or usual)

    def count(self, text: str) -> int:
        return len(self.hf.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def chat(self, tokens: int) -> str:
        """A chat of about so many tokens: turns of TURN_TOKENS, from source code and its prose."""
        text = "<|im_start|>system\nYou are a careful assistant.<|im_end|>\n"
        per_turn = self.turn()
        turns = max(1, round(tokens / self.count(per_turn)))
        return text + "".join(self.turn() for _ in range(turns))

    def turn(self) -> str:
        start = self.rnd.randrange(len(self._source) - 4000)
        words = self._source[start : start + 4000]
        ids = self.hf.encode_batch_fast([words], add_special_tokens=False)[0].ids[: TURN_TOKENS - 10]
        return f"<|im_start|>user\n{self.hf.decode(ids)}<|im_end|>\n<|im_start|>assistant\n"

    def target(self, name: str, value: float, bound: float, at_least: bool) -> str:
        """Note whether a target is met; returns how to print it."""
        met = value >= bound if at_least else value <= bound
        if not met:
            self.missed.append(f"{name}: {value:.2f}, wanted {'>=' if at_least else '<='} {bound}")
        return "ok" if met else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=SMALL, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1)) as pool:
        bench = Bench(options.tokenizer, pool, options.seed)
        print(f"tokenizer: {bench.tokenizer!r}, vocabulary {bench.hf.get_vocab_size():,}")
        asyncio.run(times(bench))
        asyncio.run(stall(bench))
        memory(bench)
    for line in bench.missed:
        print("missed:", line)
    return 1 if bench.missed else 0


# --- times


async def times(bench: Bench) -> None:
    steady = Steady()
    heads = ("all (HF) us", "cold us", "x", "next turn us", "x", "same us", "x")
    print("\n  tokens " + " ".join(f"{head:>12}" for head in heads))
    for size in SIZES:
        text = bench.chat(size)
        runs = 9 if size > 50_000 else 25
        prompt, encoder = Rendered(text), bench.encoder()
        await encoder.encode(prompt, BLOCK_SIZE)
        kinds = {
            "whole": ready(partial(bench.count, text)),
            "cold": partial(cold, bench, text),
            "next": partial(next_turn, bench, text),
            "same": ready(partial(again, encoder, prompt)),
        }
        rows: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(runs):
            for kind, prepare in kinds.items():
                rows[kind].append(await steady.cpu_us(prepare))
        whole, first, following, same = (statistics.median(row) for row in rows.values())
        same /= AGAIN
        marks = []
        if bench.tokenizer.fast:
            if size in NEXT_TURN_TARGETS:
                marks.append(bench.target(f"next turn at {size}", whole / following, NEXT_TURN_TARGETS[size], True))
            if size >= 8_000:
                marks.append(bench.target(f"cold at {size}", first / whole, COLD_TARGET, False))
                marks.append(bench.target(f"same at {size}", whole / same, SAME_TARGET, True))
        row = (whole, first, first / whole, following, whole / following, same, whole / same)
        print(f"{bench.count(text):>8,} " + " ".join(f"{value:>12,.2f}" for value in row), *marks)
        assert encoder._store.failures == 0


def ready(work: Work) -> Callable[[], Awaitable[Work]]:
    """Work that can be done again and again."""

    async def prepare() -> Work:
        return work

    return prepare


def again(encoder: LocalTokens, prompt: Rendered) -> None:
    """A prompt of which everything is known."""
    for _ in range(AGAIN):
        encoder.encode_now(prompt, BLOCK_SIZE)


async def cold(bench: Bench, text: str) -> Work:
    """A prompt of which nothing is known."""
    encoder = bench.encoder()
    return lambda: encoder.encode(Rendered(text), BLOCK_SIZE)


async def next_turn(bench: Bench, text: str) -> Work:
    """A prompt that has one more turn than a known one."""
    encoder = bench.encoder()
    await encoder.encode(Rendered(text), BLOCK_SIZE)
    grown = Rendered(text + bench.turn())
    return lambda: encoder.encode(grown, BLOCK_SIZE)


# --- stalls


async def stall(bench: Bench) -> None:
    """How late a 1 ms timer is while the longest prompts arrive, new and grown, beside how late it is without them.

    Other work on the machine delays the timer as well: the quietest of several rounds counts, and none if the timer is
    as late without prompts. The loop's own CPU time between two wake-ups does not depend on that.
    """
    texts = [bench.chat(SIZES[-1]) for _ in range(2)]
    prompts = [*texts, *(text + bench.turn() for text in texts)]
    print(f"\nloop while {len(prompts)} prompts of {SIZES[-1]:,} tokens arrive, ms, {ROUNDS} rounds:")
    rounds = []
    for _ in range(ROUNDS):
        idle = await lateness(asyncio.sleep(0.3))
        busy = await lateness(in_turn(bench.encoder(), prompts))
        late = sorted(late for late, _ in busy)
        row = (late[-1], late[len(late) // 2], max(own for _, own in busy), max(late for late, _ in idle))
        rounds.append([value * 1e3 for value in row])
        print("  late worst {:.2f}, p50 {:.2f}; own CPU at once, worst {:.2f}; idle worst {:.2f}".format(*rounds[-1]))
    worst, own, noise = (min(row[column] for row in rounds) for column in (0, 2, 3))
    print("  own CPU:", bench.target("worst own CPU at once, ms", own, STALL_TARGET_S * 1e3, False))
    if noise > STALL_TARGET_S * 1e3 / 2:
        print("  lateness: the machine is too busy to tell")
    else:
        print("  lateness:", bench.target("worst lateness, ms", worst, STALL_TARGET_S * 1e3, False))


async def in_turn(encoder: LocalTokens, texts: list[str]) -> None:
    for text in texts:
        await encoder.encode(Rendered(text), BLOCK_SIZE)


async def lateness(work: Awaitable[object]) -> list[tuple[float, float]]:
    """Seconds by which a 1 ms timer was late while `work` was done, and CPU seconds of this thread, each time."""
    task = asyncio.ensure_future(work)
    seen = []
    gc.collect()
    while not task.done():
        start, own = perf_counter(), thread_time()
        await asyncio.sleep(0.001)
        seen.append((perf_counter() - start - 0.001, thread_time() - own))
    await task
    return seen


# --- memory


def memory(bench: Bench) -> None:
    """Bytes of text blocks and mappings: counted by the store, and seen by tracemalloc."""
    space = KeySpace(1)
    index = PrefixIndex(space, blocks_max=1 << 18, pods_max=PODS)
    store = PrefixStore(space, 2, index.unchanged, STORE)
    encoder = LocalTokens(
        "bench",
        bench.tokenizer,
        space,
        store,
        bench.pool,
        replace(LocalTokensLimits.of(TokensConfig()), inline_bytes_max=2**30),
    )
    short = [bench.chat(500) for _ in range(300)]
    long = [bench.chat(32_000) for _ in range(8)]
    print(f"\n{'memory':<34} {'counted':>10} {'traced':>10} {'each':>8}")
    prompts: list[Encoded] = []
    for name, texts in (("300 prompts of 500 tokens", short), ("8 prompts of 32,000 tokens", long)):
        before = store.stats()
        traced, found = tracing(lambda texts=texts: [encoder.encode_now(Rendered(t), BLOCK_SIZE) for t in texts])  # type: ignore[misc]
        after = store.stats()
        blocks, counted = after.blocks - before.blocks, after.nbytes - before.nbytes
        print(f"{name:<34} {counted:>10,} {traced:>10,} {traced / blocks:>8,.0f} per text block ({blocks})")
        prompts += [encoded for encoded in found if encoded is not None]
    for pod in range(PODS):
        for prompt in prompts:
            count = len(prompt.keys)
            hashes = (prompt.keys ^ np.uint64(pod)).tolist()
            index.apply(pod, BlockStored(hashes, None, prompt.tokens[: count * BLOCK_SIZE], BLOCK_SIZE))
    before = store.stats()
    traced, _ = tracing(lambda: [keep(store, index, prompt) for prompt in prompts])
    counted = store.stats().nbytes - before.nbytes
    name = f"{len(prompts)} mappings, {PODS} pods hit"
    print(f"{name:<34} {counted:>10,} {traced:>10,} {traced / len(prompts):>8,.0f} per mapping")


def keep(store: PrefixStore, index: PrefixIndex, prompt: Encoded) -> Encoded:
    """Cache the match of a prompt among all pods, as a decision does."""
    match = index.match(prompt.keys)
    assert len(match.hits) == PODS
    store.cache_pod_mapping(prompt.ending, None, match, 0.0)
    return prompt


def tracing(call: Callable[[], list[T]]) -> tuple[int, list[T]]:
    """What `call` left in memory, in bytes; arrays of numpy are traced, too."""
    gc.collect()
    tracemalloc.start()
    result = call()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size, result


def _source_text() -> str:
    """Real text that every machine has: sources of Python's own library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse.py", "asyncio/base_events.py", "inspect.py", "logging/__init__.py", "tarfile.py", "typing.py")
    return "".join((folder / name).read_text("utf-8") for name in names)


if __name__ == "__main__":
    sys.exit(main())
