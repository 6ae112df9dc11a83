"""Pods that serve other tokens than we think, for causes of many kinds: never `exact` after 32 requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.service import Service
from simulator.own_tokens import EQUAL, FIELD, KINDS, Kind
from tests.fakes.peers import until
from tests.fakes.processes import BLOCK, MODEL, PLAIN, TOKENIZER, PodProcess, pods
from tests.fakes.services import in_process

REQUESTS = 32
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a place", "parameters": {}}}
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Bern"}'}}
SYSTEM = {"role": "system", "content": "You answer in the words of a careful engineer. " * 4}


def user(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"{number}: " + " ".join(f"what of {number * n} trams?" for n in range(1, 25))}


def bodies(start: int, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests of all shapes in turn, no two alike: path and body."""
    for number in range(start, start + count):
        asked = user(number)
        called = [asked, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
        shapes: list[dict[str, Any]] = [
            {"messages": [asked]},
            {"messages": [SYSTEM, asked]},
            {"messages": [asked], "tools": [TOOL]},
            {"messages": [*called, {"role": "tool", "tool_call_id": "c", "content": "sunny"}], "tools": [TOOL]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": asked["content"]}]}]},
            {"messages": [asked], "chat_template_kwargs": {"enable_thinking": bool(number % 16 < 8)}},
            {"messages": [asked], FIELD: "brief"},
            {"prompt": asked["content"]},
        ]
        body = {"model": MODEL, "max_tokens": 2, **shapes[number % len(shapes)]}
        yield ("/v1/completions" if "prompt" in body else "/v1/chat/completions"), body


@pytest.fixture(scope="module")
def fleet() -> Iterator[PodProcess]:
    with pods(PodProcess("pod-0"), PodProcess("pod-1", ("--enable-scale-out",))) as (plain, rendering):
        plain.rendering = rendering  # type: ignore[attr-defined]
        yield plain


@contextlib.asynccontextmanager
async def served(pod: PodProcess, tokens: Kind | None, local: bool) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A gateway before a pod whose cache is empty and which serves these `tokens`."""
    pod.fault(clear=True, tokens=tokens, restart=True)
    models = [{"name": MODEL, "tokenizer": str(TOKENIZER) if local else "pod"}]
    async with in_process({
        "discovery": {"static": [pod.configured]},
        "models": models,
        "index": {"predicted_grace": 0.3},
        "probe": {"interval": 0.2},
    }) as (service, client):  # fmt: skip
        await until(lambda: all(rank.state == "exact" and rank.block_size for rank in service.core.fleet.ranks))
        yield service, client


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[int, int]:
    """Cached tokens: as promised, and as reported."""
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-warmroute-matched-tokens"]), answer.json()["usage"]["prompt_tokens_details"][
        "cached_tokens"
    ]


async def warm(service: Service, client: httpx.AsyncClient) -> None:
    """Requests of all shapes, some at a time, until all that their events say is known: sooner, none is judged."""
    for number, (path, body) in enumerate(bodies(0, REQUESTS), 1):
        await ask(client, path, body)
        if number % 8 == 0:
            await until(lambda: service.core.proof.waiting == 0)
    await until(lambda: service.core.proof.waiting == 0)


@pytest.mark.parametrize("local", [True, False], ids=["local", "asked"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_kind(kind: Kind, local: bool, fleet: PodProcess, caplog: pytest.LogCaptureFixture) -> None:
    """Of what comes then, whatever is said to be exact is near the truth, and the cause is in the log, without text."""
    with caplog.at_level(logging.WARNING, "warmroute.tokens"):
        async with served(fleet, kind, local) as (service, client):
            await warm(service, client)
            ladder = service.core.fleet.ladders[MODEL]
            wrong = [state for state in ladder.states if state.contradicted]
            assert wrong and any(state.state == "degraded" for state in wrong)
            for path, body in [*bodies(REQUESTS, 16), *bodies(0, 8)]:
                asked = {key: value for key, value in body.items() if key != "max_tokens"}
                (scored,) = (await client.post("/score", json=asked)).json()["pods"]
                promised, cached = await ask(client, path, body)
                if scored["state"] == "exact":
                    assert abs(scored["matched_tokens"] - cached) <= 2 * BLOCK
                assert promised <= cached + 2 * BLOCK
            status = (await client.get("/cache/status")).json()["tokens"][MODEL]
            assert status["sources"][wrong[0].source]["state"] == "degraded"
            series = f'warmroute_token_source{{model="{MODEL}",source="{status["source"]}"}} 1'
            assert series in (await client.get("/metrics")).text
    said = " ".join(caplog.messages)
    assert "wrong" in said and "tram" not in said
    assert kind not in EQUAL or "at place" in said or kind == "completions"


@pytest.mark.parametrize("local", [True, False], ids=["local", "asked"])
async def test_no_kind(local: bool, fleet: PodProcess) -> None:
    """Right tokens are proven in every shape, and never doubted."""
    async with served(fleet, None, local) as (service, client):
        await warm(service, client)
        ladder = service.core.fleet.ladders[MODEL]
        state = ladder.local if local else ladder.tokenize
        assert state is not None and (state.state, state.contradicted) == ("exact", 0)
        assert {"plain", "system", "tools", "tool history", "parts", "kwargs", "completion"} <= state.proven
        for _, body in bodies(REQUESTS, 8):
            (scored,) = (await client.post("/score", json=body)).json()["pods"]
            assert scored["state"] == "exact"


async def test_honest_trouble() -> None:
    """Evictions, preemptions, pieces, siblings, salts, adapters, clients that leave, and some that pods have of their
    own: nothing of it says anything against the tokens."""
    options = ("--num-blocks", "60", "--max-num-batched-tokens", "48", "--max-num-seqs", "4", "--lora", "adapter")
    rng = random.Random(5)
    with pods(PodProcess("pod-0", options), PodProcess("pod-1", options)) as fleet:
        config = {
            "discovery": {"static": [pod.configured for pod in fleet]},
            "models": [{"name": MODEL, "tokenizer": str(TOKENIZER)}],
            "index": {"predicted_grace": 0.3},
        }
        async with in_process(config) as (service, client), httpx.AsyncClient(**PLAIN) as direct:

            async def one(number: int) -> None:
                path, body = next(bodies(rng.randrange(40), 1))
                kind = number % 8
                body = {**body, "max_tokens": rng.randrange(1, 60)}
                if kind == 0:
                    body["n"] = 2
                elif kind == 1:
                    body["cache_salt"] = "tenant"
                elif kind == 2:
                    body["model"] = "adapter"
                if kind in (3, 4):
                    await direct.post(fleet[number % 2].address + path, json=body)
                elif kind == 5:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(client.post(path, json=body), 0.02)
                else:
                    assert (await client.post(path, json=body)).status_code == 200

            await until(lambda: all(rank.block_size for rank in service.core.fleet.ranks))
            for start in range(0, 240, 6):
                await asyncio.gather(*map(one, range(start, start + 6)))
            await until(lambda: service.core.proof.waiting == 0)
            state = service.core.fleet.tokenizers[MODEL]
            assert (state.state, state.contradicted) == ("exact", 0)
            assert state.confirmed > 40


async def test_pods_that_render(fleet: PodProcess) -> None:
    """A pod that renders is asked, whatever its /tokenize says, and what it says is exact."""
    rendering: PodProcess = fleet.rendering  # type: ignore[attr-defined]
    async with served(rendering, "preamble", False) as (service, client):
        await until(lambda: service.encoder.remote.renders(MODEL))
        for path, body in [*bodies(0, 16), *bodies(0, 16)]:
            (scored,) = (await client.post("/score", json=body)).json()["pods"]
            promised, cached = await ask(client, path, body)
            assert (scored["state"], scored["matched_tokens"], promised) == ("exact", cached, cached)
        assert service.core.fleet.ladders[MODEL].current == "render"


async def test_a_folder_without_a_template(fleet: PodProcess, tmp_path: Path) -> None:
    """Pods may have been given one: chats are asked of them, and completions tokenized here."""
    rendering: PodProcess = fleet.rendering  # type: ignore[attr-defined]
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(TOKENIZER / name, tmp_path / name)
    rendering.fault(clear=True, restart=True)
    models = [{"name": MODEL, "tokenizer": str(tmp_path)}]
    async with in_process({"discovery": {"static": [rendering.configured]}, "models": models}) as (service, client):
        await until(lambda: all(rank.state == "exact" and rank.block_size for rank in service.core.fleet.ranks))
        await until(lambda: service.encoder.remote.renders(MODEL))
        for path, body in bodies(0, 8):
            await ask(client, path, body)
            ladder = service.core.fleet.ladders[MODEL]
            assert ladder.current == ("local" if "prompt" in body else "render")
        for path, body in bodies(0, 8):
            promised, cached = await ask(client, path, body)
            assert promised == cached > 0


async def test_recovery(fleet: PodProcess) -> None:
    """What events proved wrong is used again when they prove it right."""
    async with served(fleet, "swapped", True) as (service, client):
        service.encoder.parity.limits = replace(service.encoder.parity.limits, recheck_interval_s=0.1)
        await warm(service, client)
        state = service.core.fleet.tokenizers[MODEL]
        assert state.state == "degraded"
        fleet.fault(tokens=None)
        number = 100

        async def restored() -> bool:
            nonlocal number
            for path, body in bodies(number, 8):
                await ask(client, path, body)
            number += 8
            await until(lambda: service.core.proof.waiting == 0)
            return state.state == "exact"

        for _ in range(50):
            if await restored():
                break
        assert state.state == "exact" and service.core.fleet.ladders[MODEL].current in ("local", "text", "tokenize")
        await ask(client, *next(iter(bodies(number, 1))))
        assert service.core.fleet.ladders[MODEL].current == "local"
