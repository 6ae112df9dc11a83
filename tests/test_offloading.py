"""Pods with vLLM's offloading tier behind one gateway: processes and real sockets."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import pytest

from indexer.feed import KEPT
from tests.fakes.processes import BLOCK, PLAIN, GatewayProcess, PodProcess, eventually, gateway, pods

OWN, BELOW = 60, 240  # blocks
OPTIONS = ("--num-blocks", str(OWN + 1), "--offload-blocks", str(BELOW), "--vllm-version", "0.33.0")


class _Talk:
    """One client that asks again for what was asked before, long enough ago to be in the lower tier only."""

    def __init__(self, gate: GatewayProcess, pod: PodProcess, client: httpx.AsyncClient) -> None:
        self._gate, self._pod, self._client = gate, pod, client
        self._rng = random.Random(pod.name)
        self.prompts = [[self._rng.randrange(5000) for _ in range(8 * BLOCK)] for _ in range(16)]

    async def ask(self, number: int, less: int = 0) -> tuple[int, int, bool]:
        """The tokens promised of a prompt and those that were cached, and whether the state was exact."""
        await self._settled()
        exact = self._state()["state"] == "exact"
        prompt = self.prompts[number % len(self.prompts)]
        body = {"model": "tiny-qwen", "prompt": prompt[: len(prompt) - less], "max_tokens": 3}
        answer = await self._client.post(f"{self._gate.url}/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        told = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return int(answer.headers["x-warmroute-matched-tokens"]), told, exact

    async def _settled(self) -> None:
        """All that the pod has published is believed."""
        published = await asyncio.to_thread(lambda: self._pod.state()["ranks"][0]["seq"])
        await eventually(lambda: self._state()["events"]["sequence"] == published - 1)

    def _state(self) -> dict[str, object]:
        rank: dict[str, object] = self._gate.ranks()[self._pod.name][0]
        return rank

    async def reset(self, query: str) -> None:
        """The cache is cleared, and one request later the gateway has heard of it."""
        assert (await self._client.post(f"{self._pod.address}/reset_prefix_cache{query}")).json()["success"]
        self.prompts.append([self._rng.randrange(5000) for _ in range(3 * BLOCK)])
        assert (await self.ask(len(self.prompts) - 1))[1] == 0
        await self._settled()
        assert KEPT in str(self._state()["reasons"])


@pytest.mark.parametrize("described", [True, False])
async def test_promises_become_true(tmp_path: Path, described: bool) -> None:
    """cached = max(own, own continued by the tier below), through evictions on both and both kinds of reset; where it
    can't be known it is not called exact."""
    pod = PodProcess("pod", (*OPTIONS, *(["--self-describing-kv-events"] if described else [])))
    with pods(pod), gateway(tmp_path, [pod.configured]) as gate:
        async with httpx.AsyncClient(**PLAIN) as client:
            talk = _Talk(gate, pod, client)
            first = [await talk.ask(number) for number in range(16)]
            assert {cached for _, cached, _ in first} == {0}
            again = [await talk.ask(number, less=number) for number in range(32)]
            assert [(promised, exact) for promised, _, exact in again] == [(cached, True) for _, cached, _ in again]
            assert sum(cached for _, cached, _ in again) > 32 * 6 * BLOCK, "own blocks are not enough for this"
            await talk.reset("")
            kept = [await talk.ask(number) for number in range(8)]
            assert [promised for promised, _, _ in kept] == [cached for _, cached, _ in kept]
            assert kept[-1] == (8 * BLOCK, 8 * BLOCK, True)
            await talk.reset("?reset_external=true")
            emptied = [await talk.ask(number) for number in (*range(8), *range(8))]
            assert not [one for one in emptied if one[2] and one[0] > one[1]]
            assert [promised for promised, _, _ in emptied[8:]] == [cached for _, cached, _ in emptied[8:]]
            assert emptied[-1] == (8 * BLOCK, 8 * BLOCK, True)
