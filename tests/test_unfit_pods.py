"""Pods that should not be asked, and pods that are to be asked in their own way: the gateway before simulated pods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, eventually, gateway, pods


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[PodProcess]]:
    """A node of a larger fleet with the global ranks 4 and 5, and a pod with a short context."""
    ranked = PodProcess("ranked", ("--data-parallel-start-rank", "4", "--dev-mode"), ranks=2)
    with pods(ranked, PodProcess("short", ("--max-model-len", "512"))) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def served(fleet: list[PodProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway."""
    with gateway(tmp_path_factory.mktemp("gateway"), [pod.configured for pod in fleet]) as served:
        yield served


def ask(served: GatewayProcess, seed: int, count: int, max_tokens: int = 4) -> httpx.Response:
    """A completion of token ids that nobody else has."""
    ids = [(seed * 7919 + place * 31) % 5000 + 200 for place in range(count)]
    body = {"model": MODEL, "prompt": ids, "max_tokens": max_tokens}
    return httpx.post(f"{served.url}/v1/completions", json=body, **PLAIN)


def tell(pod: PodProcess, path: str) -> None:
    """What an operator tells a pod."""
    httpx.post(f"{pod.address}{path}", **PLAIN).raise_for_status()


async def test_ranks_of_a_node(served: GatewayProcess, fleet: list[PodProcess]) -> None:
    """The pod is asked for its ranks by the numbers that it gives them, as soon as one of its batches came."""
    assert ask(served, 1, 600).status_code == 200
    await eventually(lambda: any(rank["global_rank"] is not None for rank in served.ranks()["ranked"]))
    answers = [ask(served, seed, 600) for seed in range(2, 12)]
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(rank["finished"] > 0 for rank in fleet[0].state()["ranks"]) == [True, True]
    assert [rank["global_rank"] for rank in served.ranks()["ranked"]] == [4, 5]


async def test_too_long_for_one(served: GatewayProcess) -> None:
    """Prompts that are too long for a pod go to the other; one that is for both gets a pod's own 400."""
    fits, long = [ask(served, seed, 500, 12) for seed in range(20, 28)], ask(served, 30, 501, 12)
    assert {answer.status_code for answer in [*fits, long]} == {200}
    assert long.headers["x-warmroute-pod"] == "ranked"
    refused = ask(served, 31, 40_000)
    assert refused.status_code == 400 and "maximum context length" in refused.json()["error"]["message"]
    assert refused.headers["x-warmroute-pod"] == "ranked"


async def test_asleep(served: GatewayProcess, fleet: list[PodProcess]) -> None:
    """A sleeping pod answers /health, and is asked for nothing; what it held is not believed any more."""
    assert ask(served, 40, 600).headers["x-warmroute-pod"] == "ranked"
    tell(fleet[0], "/sleep")
    await eventually(lambda: not served.get("/readyz").json()["pods"]["ranked"]["fit"])
    told = served.get("/readyz").json()
    assert told["ready"] and told["pods"] == {
        "ranked": {"fit": False, "reasons": ["it is asleep"]},
        "short": {"fit": True, "reasons": []},
    }
    assert ask(served, 41, 100).headers["x-warmroute-pod"] == "short"
    assert ask(served, 42, 600).status_code == 503
    tell(fleet[0], "/wake_up")
    await eventually(lambda: served.get("/readyz").json()["pods"]["ranked"]["fit"])
    answer = ask(served, 40, 600)
    assert (answer.headers["x-warmroute-pod"], answer.headers["x-warmroute-matched-tokens"]) == ("ranked", "0")


async def test_a_killed_pod_looks_dead(tmp_path: Path) -> None:
    """In metrics, in /pods and among the alerts, though its feed was exact a moment ago; until it is back."""
    often = {"patience": "0s", "interval": "100ms"}
    with (
        pods(PodProcess("pod-0"), PodProcess("pod-1")) as two,
        gateway(tmp_path, [pod.configured for pod in two], alerts=often) as served,
    ):
        await eventually(lambda: served.metric('warmroute_pod_state{pod="pod-0",state="exact"}') == 1)
        assert served.metric('warmroute_pod_up{pod="pod-0"}') == 1
        assert served.metric('warmroute_pod_fit{pod="pod-0",reason="fit"}') == 1
        two[0].kill()
        await eventually(lambda: served.metric('warmroute_pod_up{pod="pod-1"}') > served.metric(_UP))
        text = served.get("/metrics").text
        assert 'warmroute_pod_fit{pod="pod-0",reason="unanswered"} 0' in text
        assert 'warmroute_pod_state{pod="pod-0",state="exact"} 0' in text
        assert "warmroute_node_cache_consistency 0.5" in text
        assert served.ranks()["pod-0"][0]["state"] == "degraded"
        await eventually(lambda: _alerts(served).get("pod_not_exact", "").startswith("pod-0: degraded: no connection"))
        two[0].start()
        two[0].wait()
        await eventually(lambda: served.metric(_UP) == 1 and not _alerts(served))


_UP = 'warmroute_pod_up{pod="pod-0"}'


def _alerts(served: GatewayProcess) -> dict[str, str]:
    return {each["name"]: f"{each['subject']}: {each['why']}" for each in served.get("/alerts").json()["alerts"]}
