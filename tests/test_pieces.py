"""Long prompts in pieces, before simulated pods: short turns come between, answers stay, and figures stay true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, gateway, pods

PIECE = 512
LONG = 4 * PIECE + 40
_TALKS = 60  # turns, after which it is known that most prompts continue others
_POD = ("--max-num-batched-tokens", "8192", "--num-blocks", "4096", "--time-scale", "1.0")


def ids(seed: int, count: int) -> list[int]:
    """A prompt of its own."""
    return [10 + (seed * 7919 + place * 31) % 900 for place in range(count)]


@pytest.fixture(scope="module", name="pod")
def a_pod() -> Iterator[PodProcess]:
    """One pod, as fast as a real one: a step may hold all of a long prompt."""
    with pods(PodProcess("pod-0", options=_POD)) as (pod,):
        yield pod


@pytest.fixture(scope="module", name="served")
def a_gateway(pod: PodProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway, which knows by now that most prompts continue others."""
    pieces = {"pieces": {"enabled": True, "tokens": PIECE}}
    with gateway(tmp_path_factory.mktemp("gateway"), [pod.configured], scoring=pieces) as served:
        for turn in range(_TALKS):
            body = {"model": MODEL, "prompt": ids(1, 300 + 40 * turn), "max_tokens": 1}
            httpx.post(f"{served.url}/v1/completions", json=body, **PLAIN).raise_for_status()
        yield served


@pytest.fixture
async def http(served: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client."""
    async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
        yield http


async def complete(http: httpx.AsyncClient, prompt: list[int], **more: Any) -> dict[str, Any]:
    """The answer to one prompt, and what the pod was to have cached of it when it came there."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0, **more}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return {**answer.json(), "matched": int(answer.headers["x-warmroute-matched-tokens"])}


def predictions(served: GatewayProcess) -> dict[str, int]:
    """How what was foretold compared with what the pod said."""
    told = served.ranks()["pod-0"][0]["events"]
    return {name: count for name, count in told.get("counts", told).items() if str(name).startswith("predictions")}


async def test_answers_stay_and_figures_are_true(
    served: GatewayProcess, pod: PodProcess, http: httpx.AsyncClient
) -> None:
    """The pod gets the pieces and then the request; it is answered as without, and counted as not cached."""
    direct = {"model": MODEL, "prompt": ids(2, LONG), "max_tokens": 4, "temperature": 0}
    before, actual = pod.served(), served.metric("warmroute_actual_cached_tokens_total")
    wrong = {name: count for name, count in predictions(served).items() if "equal" not in name}
    answer = await complete(http, ids(2, LONG))
    (told, *_) = served.get("/decisions?limit=1").json()["decisions"]
    assert (told["pieces"], pod.served() - before) == (3, 4)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == answer["matched"] == 3 * PIECE
    assert answer["choices"] == (await http.post(f"{pod.address}/v1/completions", json=direct)).json()["choices"]
    assert served.metric("warmroute_actual_cached_tokens_total") == actual
    assert {name: count for name, count in predictions(served).items() if "equal" not in name} == wrong
    assert {each["cause"] for each in told["missed"]} <= {"first_seen", "block_edge"}
    again = await complete(http, ids(2, LONG))
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == (LONG - 1) // 16 * 16
    assert pod.served() - before == 6, "one was asked directly, and what is held goes whole"


@pytest.mark.parametrize("salt", ["one", "other"])
async def test_salts_go_along(served: GatewayProcess, http: httpx.AsyncClient, salt: str) -> None:
    """Pieces of a salted prompt are found by it, and by no other."""
    answer = await complete(http, ids(3, LONG), cache_salt=salt)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3 * PIECE


async def test_short_turns_come_between(served: GatewayProcess, pod: PodProcess, http: httpx.AsyncClient) -> None:
    """A known prompt that comes while a long one is computed is answered before that one is."""
    pod.fault(slow=3.0)
    try:
        long = asyncio.ensure_future(complete(http, ids(4, 12 * PIECE), max_tokens=1))
        while not served.metric("warmroute_pieces_tokens_total") or not pod.state()["ranks"][0]["running"]:
            await asyncio.sleep(0.01)
        await complete(http, ids(1, 320), max_tokens=1)
        assert not long.done()
        await long
    finally:
        pod.fault(clear=True)


async def test_a_client_that_leaves(served: GatewayProcess, pod: PodProcess, http: httpx.AsyncClient) -> None:
    """Nothing more is sent for it, and nothing is left of it."""
    pod.fault(slow=5.0)
    before = served.metric('warmroute_pieces_total{result="computed"}')
    try:
        long = asyncio.ensure_future(complete(http, ids(5, 12 * PIECE)))
        while served.metric('warmroute_pieces_total{result="computed"}') == before:
            await asyncio.sleep(0.01)
        long.cancel()
        while served.ranks()["pod-0"][0]["load"]["requests"]:
            await asyncio.sleep(0.01)
    finally:
        pod.fault(clear=True)
    sent = served.metric('warmroute_pieces_total{result="computed"}')
    await complete(http, ids(1, 320), max_tokens=1)
    assert served.metric('warmroute_pieces_total{result="computed"}') == sent < before + 11


async def test_a_piece_that_fails_costs_nothing_else(
    served: GatewayProcess, pod: PodProcess, http: httpx.AsyncClient
) -> None:
    """The request itself goes to the pod, whose answer its client gets; the next one goes in pieces again."""
    before = served.metric('warmroute_pieces_total{result="failed"}')
    pod.fault(refuse="503")
    body = {"model": MODEL, "prompt": ids(6, LONG), "max_tokens": 1}
    assert (await http.post("/v1/completions", json=body)).status_code == 503
    pod.fault(clear=True)
    assert served.metric('warmroute_pieces_total{result="failed"}') == before + 1
    assert (await complete(http, ids(7, LONG)))["usage"]["prompt_tokens"] == LONG
