"""A rolling restart under agents: how far the hit ratio falls, with what pods leave handed over and without.

    python -m benchmarks.handover [--pods 4] [--agents 16] [--rounds 1] [--wait 20]

Simulated pods and the gateway are processes of their own. Each agent asks turn after turn of its own growing
conversation. Pod after pod is drained, waited for, emptied as by a restart, and taken back. The dip is the share of
prompt tokens that were cached before, less that of requests sent from the first drain until the last pod is back. Both
ways run in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, gateway, pods

WARM_S = 15.0
SETTLE_S = 5.0  # between two pods
WAIT_S = 20  # for the handing over, as a preStop hook would; 0: as long as a drain does by itself
_WORDS = (
    "river stone morning window paper garden engine letter winter number copper harbour forest signal matter".split()
)
_OPTIONS = ("--time-scale", "1", "--num-blocks", "8192", "--prefill-tokens-per-s", "8000")


class Answer(NamedTuple):
    """One request: when it was sent, its prompt's tokens and the cached ones of them; none: it was lost."""

    sent: float
    prompt: int
    cached: int
    lost: bool = False


class Figures(NamedTuple):
    """One rolling restart."""

    before: float
    during: float
    lost: int
    requests: int
    prompts: int

    @property
    def dip(self) -> float:
        return self.before - self.during


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(_WORDS, k=count))


async def agent(url: str, seed: int, answers: list[Answer]) -> None:
    """Turns without end: a long instruction of its own first; a new task when the conversation is long."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(**PLAIN | {"timeout": 120.0}) as http:
        while True:
            messages: list[dict[str, Any]] = [{"role": "system", "content": words(rng, 1500)}]
            for _ in range(40):
                messages.append({"role": "user", "content": words(rng, 60)})
                sent = time.monotonic()
                body = {"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0}
                answer = await http.post(f"{url}/v1/chat/completions", json=body)
                if answer.status_code != 200:
                    answers.append(Answer(sent, 0, 0, True))
                    continue
                told = answer.json()
                usage = told["usage"]
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                answers.append(Answer(sent, usage["prompt_tokens"], cached))
                messages.append({"role": "assistant", "content": told["choices"][0]["message"]["content"]})
                await asyncio.sleep(rng.uniform(0.5, 1.5))


async def roll(served: GatewayProcess, fleet: list[PodProcess], wait_s: float) -> int:
    """Restart all, one after the other; returns how many prompts were handed over."""
    prompts = 0
    async with httpx.AsyncClient(base_url=served.ops_url, **PLAIN | {"timeout": wait_s + 30}) as http:
        asked = {"wait": wait_s} if wait_s else None
        for each in fleet:
            told = (await http.post(f"/pods/{each.name}/drain", params=asked)).json()
            prompts += told.get("handover", {}).get("done", 0)
            while (await http.post(f"/pods/{each.name}/drain", params={"wait": 0})).json()["requests"]:
                await asyncio.sleep(0.1)
            await asyncio.to_thread(each.fault, restart=True)
            await asyncio.sleep(1.0)
            await http.post(f"/pods/{each.name}/undrain")
            await asyncio.sleep(SETTLE_S)
    return prompts


async def run(count: int, agents: int, kept_max: str, seed: int, wait_s: float) -> Figures:
    """A fleet of its own, warmed, then rolled."""
    fleet = [PodProcess(f"pod-{number}", _OPTIONS) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder, pods(*fleet), contextlib.ExitStack() as stack:
        static = [each.configured for each in fleet]
        start = gateway(Path(folder), static, handover={"kept_max": kept_max}, scoring={"slow_start": 0})
        served = await asyncio.to_thread(stack.enter_context, start)
        answers: list[Answer] = []
        tasks = [asyncio.create_task(agent(served.url, seed + number, answers)) for number in range(agents)]
        await asyncio.sleep(WARM_S)
        began = time.monotonic()
        prompts = await roll(served, fleet, wait_s)
        over = time.monotonic()
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [one for one in ended if not isinstance(one, asyncio.CancelledError)]
        if broken:
            print("agents that ended:", broken[:3])
        before = [one for one in answers if began - WARM_S / 2 <= one.sent < began]
        during = [one for one in answers if began <= one.sent < over]
        lost = sum(one.lost for one in answers) + len(broken)
        return Figures(ratio(before), ratio(during), lost, len(answers), prompts)


def ratio(answers: list[Answer]) -> float:
    return sum(one.cached for one in answers) / max(1, sum(one.prompt for one in answers))


def main() -> None:
    """Runs both ways and prints what they gave."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--pods", 4), ("--agents", 16), ("--rounds", 1), ("--wait", WAIT_S)):
        options.add_argument(name, type=int, default=default)
    given = options.parse_args()
    dips: dict[str, list[float]] = {"plain": [], "handed over": []}
    for number in range(given.rounds):
        for name, kept_max in (("plain", "0"), ("handed over", "64MiB")):
            one = asyncio.run(run(given.pods, given.agents, kept_max, 1000 * number, given.wait))
            dips[name].append(one.dip)
            print(
                f"{name:12} hit ratio before {one.before:.3f}, during {one.during:.3f}, dip {one.dip:.3f}; "
                f"{one.prompts} prompts handed over, {one.requests} requests, {one.lost} lost",
                flush=True,
            )
    plain, handed = (sum(dips[name]) / given.rounds for name in ("plain", "handed over"))
    print(f"dip handed over / plain: {handed / plain:.2f}")


if __name__ == "__main__":
    main()
