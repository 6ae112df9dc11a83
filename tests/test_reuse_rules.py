"""Pods with drafters, with states, and without prefix caching behind one gateway: processes and real sockets."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx

from router.metrics.families import word
from tests.fakes.processes import BLOCK, PLAIN, GatewayProcess, PodProcess, eventually, gateway, pods

POD_OPTIONS = {
    "eagle-old": ("--vllm-version", "0.32.0", "--drafter", "eagle"),
    "eagle-new": ("--vllm-version", "0.33.0", "--drafter", "eagle", "--lookahead-tokens", "3"),
    "states": ("--group", "mamba"),
    "windows": ("--sliding-window", "40", "--num-blocks", "64"),
    "uncached": ("--no-prefix-caching",),
}
RULES = {
    "eagle-old": "the last 1 computed again",
    "eagle-new": "all whole blocks",
    "states": "all whole blocks",
    "windows": "all whole blocks",
    "uncached": "all whole blocks",
}
LEARNED_BY = 32


async def _ask(gate: GatewayProcess, client: httpx.AsyncClient, model: str, prompt: list[int]) -> tuple[int, int]:
    """The tokens promised and those that were cached; all that the pod had to tell of it has come."""
    body = {"model": model, "prompt": prompt, "max_tokens": 3}
    answer = await client.post(f"{gate.url}/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return int(answer.headers["x-warmroute-matched-tokens"]), told


async def test_promises_become_true(tmp_path: Path) -> None:
    """Each pod serves a model of its own; what is promised of it is what it reports, and /pods says by which rule."""
    fleet = [PodProcess(name, ("--served-model-name", name, *options)) for name, options in POD_OPTIONS.items()]
    rng = random.Random(5)
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet]) as gate:
        async with httpx.AsyncClient(**PLAIN) as client:
            for pod in fleet:
                base, wrong = [rng.randrange(5000) for _ in range(12 * BLOCK + 1)], []
                for number in range(LEARNED_BY + 12):
                    length = rng.randrange(1, len(base))
                    prompt = base[:length] + [rng.randrange(5000) for _ in range(rng.randrange(1, BLOCK))]
                    if await _ask(gate, client, pod.name, base if number < 2 else prompt) != (0, 0):
                        wrong.append(number)
                    promised, cached = await _ask(gate, client, pod.name, prompt)
                    assert promised == cached or number < LEARNED_BY // 2, (pod.name, number, promised, cached)
                assert bool(wrong) != (pod.name == "uncached"), "there were hits where there is a cache"
        for name, rule in RULES.items():
            (rank,) = gate.ranks()[name]
            assert rank["hit_rule"] == {"rule": rule, "believed": name != "uncached", "proven": True}
            sure = gate.metric(f'warmroute_hit_rule{{pod="{name}",rule="{word(rule)}"}}')
            assert sure == float(name != "uncached")
            states = await asyncio.to_thread(lambda name=name: gate.ranks()[name][0]["state"])
            assert states == ("degraded" if name == "uncached" else "exact")


async def test_a_restart_with_a_drafter_is_noticed(tmp_path: Path) -> None:
    """The same pod comes back with other settings: not exact before its rule is proven anew."""
    pod = PodProcess("a", ("--vllm-version", "0.32.0"))
    prompt = list(range(100, 100 + 10 * BLOCK + 1))
    with pods(pod), gateway(tmp_path, [pod.configured]) as gate:
        async with httpx.AsyncClient(**PLAIN) as client:
            for _ in range(3):
                promised, cached = await _ask(gate, client, "tiny-qwen", prompt)
            assert promised == cached == 10 * BLOCK and gate.ranks()["a"][0]["state"] == "exact"
            pod.kill()
            pod.options = (*pod.options, "--drafter", "eagle")
            pod.start()
            pod.wait()
            await eventually(lambda: not gate.ranks()["a"][0]["hit_rule"]["proven"])
            await eventually(lambda: not gate.ranks()["a"][0]["blocks"]["gpu"])
            for _ in range(6):
                promised, cached = await _ask(gate, client, "tiny-qwen", prompt)
                assert promised <= cached
            assert promised == cached == 9 * BLOCK
            await eventually(lambda: gate.ranks()["a"][0]["state"] == "exact")
