"""Pods that connect to the gateway's own endpoint, all of them processes: what operators see, and full reports."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from router.cli import main
from tests.fakes.processes import (
    MODEL,
    PLAIN,
    TOKENIZER,
    GatewayProcess,
    PodProcess,
    eventually,
    free_ports,
    gateway,
    pods,
)

BLOCKS = 96  # of a pod: a few prompts


@pytest.fixture(scope="module")
def port() -> int:
    """Where publishers connect to; those of rank 1 to the next one."""
    return free_ports(2)[0]


@pytest.fixture(scope="module")
def fleet(port: int) -> Iterator[list[PodProcess]]:
    """One pod that is told by its name, and one with two ranks that is told by its address, as by default."""
    connects = ("--events-endpoint", f"tcp://127.0.0.1:{port}")
    named = PodProcess("pod-0", (*connects, "--topic", f"kv@pod-0@{MODEL}", "--num-blocks", str(BLOCKS)))
    with pods(named, PodProcess("pod-1", connects, ranks=2)) as fleet:
        yield fleet


def configured(pod: PodProcess, **more: Any) -> dict[str, Any]:
    """A pod without events of its own."""
    return {name: value for name, value in pod.configured.items() if name != "events"} | more


@pytest.fixture(scope="module")
def served(port: int, fleet: list[PodProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway, which binds the endpoint."""
    static = [configured(pod) for pod in fleet]
    bind = {"bind": f"tcp://127.0.0.1:{port}"}
    with gateway(tmp_path_factory.mktemp("gateway"), static, events=bind) as served:
        yield served


def check(folder: Path, static: list[dict[str, Any]], port: int) -> Result:
    """`warmroute check` of pods that connect to `port`."""
    file = folder / "check.json"
    models = [{"name": MODEL, "tokenizer": str(TOKENIZER)}]
    events = {"bind": f"tcp://127.0.0.1:{port}"}
    file.write_text(json.dumps({"discovery": {"static": static}, "models": models, "events": events}))
    return CliRunner().invoke(main, ["check", "--config", str(file), "--wait", "0.5"])


def test_check(fleet: list[PodProcess], port: int, tmp_path: Path) -> None:
    """Before the gateway runs, so first here: the publishers connect, under topics that name them; replays answer."""
    result = check(tmp_path, [configured(pod) for pod in fleet], port)
    assert result.exit_code == 0, result.output
    assert f"✓ pod-0: its publisher connects to tcp://127.0.0.1:{port}, under 'kv@pod-0@{MODEL}'." in result.output
    assert result.output.count("✓ pod-1: its publisher connects to") == 2
    assert "✓ pod-1: rank 1: the replay at" in result.output


async def test_events_arrive(fleet: list[PodProcess], served: GatewayProcess) -> None:
    """Of each pod and rank, as its own: `/pods` tells, and what is predicted is what the pod reports."""
    async with httpx.AsyncClient(**PLAIN) as http:
        for number, (pod, rank) in enumerate(((fleet[0], 0), (fleet[1], 0), (fleet[1], 1))):
            body = {"model": MODEL, "prompt": [300 + number] * 100, "max_tokens": 1}
            answer = await http.post(
                f"{pod.address}/v1/completions", json=body, headers={"x-data-parallel-rank": str(rank)}
            )
            answer.raise_for_status()

            def arrived(name: str = pod.name, rank: int = rank) -> bool:
                told = served.ranks()[name][rank]
                return bool(told["blocks"]["gpu"] == 6 and told["state"] == "exact" and told["events"]["sequence"] == 0)

            await eventually(arrived)
            again = await http.post(f"{served.url}/v1/completions", json={**body, "prompt": [*body["prompt"], 7]})  # type: ignore[misc]
            assert again.headers["x-warmroute-pod"] == pod.name
            assert again.headers["x-warmroute-matched-tokens"] == "96"
            assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
    told = served.get("/pods").json()["events_bound"]
    assert told["endpoint"].startswith("tcp://127.0.0.1:") and told["unclaimed"] == 0 == len(told["named"])
    assert served.metric("warmroute_event_frames_unclaimed_total") == 0


async def test_full_reports(fleet: list[PodProcess], served: GatewayProcess) -> None:
    """Requests for a full report go by, blocks are evicted: what is still believed is what the pod holds."""
    draw = random.Random(1)
    prompts = [[draw.randrange(200, 5000) for _ in range(draw.randrange(40, 300))] for _ in range(80)]
    xargs = {"vllm_xargs": {"kv_cache_report_mode": "full"}}
    async with httpx.AsyncClient(**PLAIN) as http:
        (await http.post(f"{served.url}/pods/pod-1/drain")).raise_for_status()  # all goes to the one that evicts
        for _ in range(240):
            body = {"model": MODEL, "prompt": draw.choice(prompts), "max_tokens": 1}
            answer = await http.post(f"{served.url}/v1/completions", json=body | (xargs if draw.random() < 0.5 else {}))
            answer.raise_for_status()

        async def stale() -> list[tuple[int, int]]:
            found = []
            for prompt in prompts:
                asked = {"model": MODEL, "token_ids": prompt, "pods": ["pod-0"]}
                (score,) = (await http.post(f"{served.url}/score", json=asked)).json()["pods"]
                truth = (await http.post(f"{fleet[0].address}/simulator/state", json=asked)).json()["ranks"][0]
                found.append((score["matched_tokens"], truth["cached_tokens"]))
            return [(predicted, cached) for predicted, cached in found if predicted != cached]

        for _ in range(100):
            if not await stale():
                break
        assert not await stale()
        (await http.post(f"{served.url}/pods/pod-1/undrain")).raise_for_status()
    counts = served.ranks()["pod-0"][0]["events"]["counts"]
    assert counts["removed"] > 30 and not counts.get("unknown removals")


def test_check_beside_the_gateway(fleet: list[PodProcess], served: GatewayProcess, port: int, tmp_path: Path) -> None:
    """The endpoint is taken: that is said, and not that events do come."""
    result = check(tmp_path, [configured(pod) for pod in fleet], port)
    assert result.exit_code == 1
    assert f"✗ pod-0: events.bind: tcp://127.0.0.1:{port} can't be bound: Address already in use" in result.output
    assert "events arrive" not in result.output


def test_check_finds_what_is_wrong(fleet: list[PodProcess], tmp_path: Path) -> None:
    """A publisher that listens, and one whose topic names somebody else."""
    wrong = configured(fleet[0], name="other", topic="kv@other@m")
    with pods(PodProcess("pod-2", ("--events-endpoint", f"tcp://*:{free_ports(1)[0]}"))) as (listens,):
        result = check(tmp_path, [wrong, configured(listens)], free_ports(1)[0])
    assert result.exit_code == 1
    assert f"✗ other: its publisher's topic 'kv@pod-0@{MODEL}' does not name it." in result.output
    assert "✗ pod-2: its publisher does not connect, it listens at tcp://" in result.output
