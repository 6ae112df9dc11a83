"""Is what `warmroute plan` says what comes? Record one fleet, ask for others, and run these.

    python -m benchmarks.what_if [--pods 4] [--others 6 3] [--seconds 120] [--rate 4]

Simulated pods as processes, a gateway that records, conversations that come by the clock. For each other number of pods
the plan is made from the recording, and then the same work is played before so many: hit ratios and p90 of the time to
the first token, beside each other. Ends with exit code 1 if hit ratios are more than 3 points apart, or p90 15%.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from router.commands.demo.processes import MODEL, fleet, gateway
from router.commands.demo.run import free_port
from router.commands.plan import Planner, WhatIf, answer, read_recording_at

HIT_POINTS, P90_SHARE = 0.03, 0.15
_WARM = 0.2  # of the time, which is not counted, as in the plan
_POD = ["--num-blocks", "2048", "--prefill-tokens-per-s", "2000", "--hash-seed", "what-if"]
_WORDS = 400  # token ids that prompts are made of
_SYSTEMS, _SYSTEM_TOKENS, _TURNS_MAX, _TURN_TOKENS, _ANSWER_TOKENS = 4, 320, 8, (100, 700), (5, 40)
_THINK_S = 8.0


class Ask(NamedTuple):
    """One request of the work."""

    at_s: float
    prompt: list[int]
    answer: int


class Seen(NamedTuple):
    """What its client saw."""

    at_s: float
    ttft_s: float
    tokens: int
    cached: int


def work(seconds: float, rate: float, seed: int) -> list[Ask]:
    """Conversations, each turn of which has all before it."""
    rng = random.Random(seed)

    def words(count: int) -> list[int]:
        return [rng.randrange(100, 100 + _WORDS) for _ in range(count)]

    systems = [words(_SYSTEM_TOKENS) for _ in range(_SYSTEMS)]
    asks: list[Ask] = []
    begins_s = -_THINK_S * _TURNS_MAX / 2
    while begins_s < seconds:
        begins_s += rng.expovariate(rate / (1 + _TURNS_MAX) * 2)
        at_s, prompt = begins_s, list(rng.choice(systems))
        for _ in range(rng.randint(1, _TURNS_MAX)):
            prompt = prompt + words(rng.randint(*_TURN_TOKENS))
            if 0 <= at_s < seconds:
                asks.append(Ask(at_s, prompt, rng.randint(*_ANSWER_TOKENS)))
            at_s += rng.expovariate(1 / _THINK_S)
    return sorted(asks)


async def play(address: str, asks: list[Ask]) -> list[Seen]:
    """By the clock, whether answers are there or not."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=300.0, trust_env=False, limits=limits) as client:
        began = time.monotonic()
        tasks = []
        for ask in asks:
            await asyncio.sleep(max(0.0, began + ask.at_s - time.monotonic()))
            tasks.append(asyncio.create_task(_ask(client, ask)))
        return list(await asyncio.gather(*tasks))


async def _ask(client: httpx.AsyncClient, ask: Ask) -> Seen:
    body = {
        "model": MODEL, "prompt": ask.prompt, "max_tokens": ask.answer, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    sent, ttft_s, usage = time.monotonic(), None, {}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                ttft_s = ttft_s or time.monotonic() - sent
                usage = json.loads(line[6:]).get("usage") or usage
    assert ttft_s is not None
    return Seen(ask.at_s, ttft_s, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])


async def run(pods: int, asks: list[Ask], record: Path | None) -> dict[str, float]:
    """The work before so many pods, for real."""
    environ = {"WARMROUTE_RECORD__PATH": str(record)} if record is not None else {}
    async with fleet(pods, _POD) as there, gateway(there, "predicted-ttft", free_port(), environ) as address:
        seen = await play(address, asks)
    length_s = asks[-1].at_s
    counted = [each for each in seen if each.at_s >= _WARM * length_s]
    times = sorted(each.ttft_s for each in counted)
    return {
        "hit": sum(each.cached for each in counted) / sum(each.tokens for each in counted),
        "p50": times[int(0.5 * len(times))],
        "p90": times[int(0.9 * len(times))],
    }


def say(title: str, real: dict[str, float], planned: dict[str, Any]) -> bool:
    """One line; True: near enough."""
    apart, ratio = planned["hit"] - real["hit"], planned["p90"] / real["p90"]
    print(
        f"{title}: hit {planned['hit']:.3f} planned, {real['hit']:.3f} real ({100 * apart:+.1f} points); "
        f"p50 {planned['p50']:.3f}, {real['p50']:.3f}; "
        f"p90 {planned['p90']:.3f} s planned, {real['p90']:.3f} s real (x {ratio:.2f})",
        flush=True,
    )
    return abs(apart) <= HIT_POINTS and abs(ratio - 1) <= P90_SHARE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=4)
    parser.add_argument("--others", type=int, nargs="+", default=[6, 3])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="Where the recording stays.")
    options = parser.parse_args()
    asks = work(options.seconds, options.rate, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        record = options.keep or Path(folder, "requests.jsonl")
        real = asyncio.run(run(options.pods, asks, record))
        recording = read_recording_at(str(record))
        question = WhatIf(pods=options.pods)
        planner = Planner(recording, question, lambda what, share: None)
        fine = [say(f"{options.pods} pods, recorded, {len(asks)} requests", real, answer(planner, question))]
        for pods in options.others:
            question = WhatIf(pods=pods)
            planned = answer(Planner(recording, question, lambda what, share: None), question)
            fine.append(say(f"{pods} pods", asyncio.run(run(pods, asks, None)), planned))
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
