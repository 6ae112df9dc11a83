"""Gateways that share: real processes, real pods, and a server that goes away in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, eventually, gateway, pods
from tests_redis.conftest import Server

UP = "warmroute_shared_index_up"
DEADLINE_S = 0.25  # for an answer: this machine may be busy, and a test must not hang on that


def prompt(number: int) -> str:
    """Some hundred tokens of its own."""
    return f"Report number {number} begins. " + " ".join(f"item {number * 1000 + word}" for word in range(120))


def serve(at: GatewayProcess, number: int) -> str:
    """Have a prompt computed; the pod that did."""
    body = {"model": MODEL, "prompt": prompt(number), "max_tokens": 2}
    answer = httpx.post(f"{at.url}/v1/completions", json=body, **PLAIN)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-warmroute-pod"]


def matched(at: GatewayProcess, number: int) -> dict[str, int]:
    """What the gateway says that each pod has of a prompt, in tokens."""
    answer = httpx.post(f"{at.url}/score", json={"model": MODEL, "prompt": prompt(number)}, **PLAIN)
    assert answer.status_code == 200, answer.text
    return {pod["pod"]: pod["matched_tokens"] for pod in answer.json()["pods"]}


def shared(at: GatewayProcess) -> dict[str, Any]:
    """The shared index as /cache/status has it."""
    status: dict[str, Any] = at.get("/cache/status").json()["shared_index"]
    return status


def is_settled(at: GatewayProcess, pods_owned: int = 2) -> Callable[[], bool]:
    """It is up, and all pods are copied."""
    return lambda: shared(at)["up"] and shared(at)["complete_pods"] == pods_owned


def deaf(pod: PodProcess) -> dict[str, Any]:
    """The pod, as configured where no events reach."""
    return {"name": pod.name, "address": pod.address}


@contextmanager
def sharing(server: Server, folder: Path, static: list[dict[str, Any]], ready: bool = True) -> Iterator[GatewayProcess]:
    """A gateway that shares."""
    redis = {"url": server.url, "deadline": DEADLINE_S, "lease": 1.0, "timeout": 0.5}
    with gateway(folder, static, ready, index={"redis": redis, "predicted_grace": 0.2, "blind_ttl": 0.2}) as served:
        yield served


async def knows_all(at: GatewayProcess, other: GatewayProcess, numbers: range) -> None:
    """`at` comes to say of all prompts what `other` says, and that is something."""
    for number in numbers:
        truth = await asyncio.to_thread(matched, other, number)
        assert max(truth.values()) > 300

        def same(number: int = number, truth: dict[str, int] = truth) -> bool:
            return matched(at, number) == truth

        await eventually(same)


async def test_a_gateway_that_hears_nothing_knows_what_others_know(server: Server, tmp_path: Path) -> None:
    """No events reach it, and it routes by exact blocks all the same: keys are equal in all gateways."""
    with (
        pods(PodProcess("pod-0"), PodProcess("pod-1")) as fleet,
        sharing(server, tmp_path, [pod.configured for pod in fleet]) as one,
        sharing(server, tmp_path, [deaf(pod) for pod in fleet]) as two,
    ):
        served = {number: serve(one, number) for number in range(8)}
        assert set(served.values()) == {"pod-0", "pod-1"}
        await eventually(is_settled(one))
        await knows_all(two, one, range(8))
        assert [serve(two, number) for number in range(8)] == list(served.values())
        assert shared(two)["written_pods"] == 0 and shared(two)["questions"]["answered"] > 8
        assert shared(one)["asked_pods"] == [] and one.metric(UP) == two.metric(UP) == 1
        fleet[0].fault(restart=True)
        assert "pod-0" in {serve(one, number) for number in range(20, 28)}, "its events show that it was started anew"
        await eventually(lambda: all(not matched(two, number)["pod-0"] for number in range(8)))


async def test_a_late_joiner_whose_history_is_truncated(server: Server, tmp_path: Path) -> None:
    """It asks for what it missed; and it takes over as an owner only what it knows exactly: nothing."""
    with pods(PodProcess("pod-0", ("--buffer-steps", "3")), PodProcess("pod-1", ("--buffer-steps", "3"))) as fleet:
        static = [pod.configured for pod in fleet]
        with sharing(server, tmp_path, static) as one:
            for number in range(8):
                serve(one, number)
            await eventually(is_settled(one))
            with sharing(server, tmp_path, static) as two:
                states = {rank["state"] for ranks in two.ranks().values() for rank in ranks}
                assert states == {"degraded"}
                await knows_all(two, one, range(8))
                assert shared(two)["written_pods"] == 0


async def test_another_gateway_takes_over(server: Server, tmp_path: Path) -> None:
    """When the writer is killed, the next one that knows the pods exactly writes them."""
    with pods(PodProcess("pod-0"), PodProcess("pod-1")) as fleet:
        static = [pod.configured for pod in fleet]
        with (
            sharing(server, tmp_path, static) as two,
            sharing(server, tmp_path, [deaf(pod) for pod in fleet]) as three,
        ):
            with sharing(server, tmp_path, static) as one:
                for number in range(4):
                    serve(one, number)
                await eventually(lambda: shared(one)["complete_pods"] + shared(two)["complete_pods"] == 2)
                one.process.kill()
            await eventually(is_settled(two))
            await knows_all(three, two, range(4))


@pytest.mark.parametrize("trouble", ["killed", "frozen"])
async def test_requests_go_on_while_the_server_is_away(server: Server, tmp_path: Path, trouble: str) -> None:
    """Every request is answered, without waiting for longer than the deadline; it is seen; and it mends itself."""
    with (
        pods(PodProcess("pod-0"), PodProcess("pod-1")) as fleet,
        sharing(server, tmp_path, [pod.configured for pod in fleet]) as one,
        sharing(server, tmp_path, [deaf(pod) for pod in fleet]) as two,
    ):
        for number in range(4):
            serve(one, number)
        await eventually(is_settled(one))
        await knows_all(two, one, range(4))
        traffic = [asyncio.to_thread(serve, at, number) for number in range(4, 16) for at in (one, two)]
        going = [asyncio.ensure_future(each) for each in traffic]
        await asyncio.sleep(0.1)
        server.kill() if trouble == "killed" else server.freeze()
        assert len(await asyncio.gather(*going)) == 24
        for at in (one, two):
            await eventually(lambda at=at: at.metric(UP) == 0 and shared(at)["reason"])
        before = shared(two)["questions"]
        for number in range(4):
            serve(two, number)
        assert shared(two)["questions"] == before, "it is asked although it is away"
        server.start() if trouble == "killed" else server.thaw()
        await eventually(is_settled(one))
        await eventually(lambda: two.metric(UP) == 1)
        await knows_all(two, one, range(16))


async def test_gateways_that_started_before_the_server(server: Server, tmp_path: Path) -> None:
    """Each has drawn keys of its own; when the server is there, they agree, read their pods anew, and share."""
    server.kill()
    with (
        pods(PodProcess("pod-0"), PodProcess("pod-1")) as fleet,
        sharing(server, tmp_path, [deaf(pod) for pod in fleet]) as two,
        sharing(server, tmp_path, [pod.configured for pod in fleet]) as one,
    ):
        for number in range(4):
            serve(one, number)
            serve(two, number)
        assert not shared(one)["up"] and not shared(two)["up"]
        server.start()
        await eventually(is_settled(one))
        await eventually(lambda: shared(two)["up"])
        for number in range(4, 8):
            serve(one, number)
        await knows_all(two, one, range(8))
        server.client().flushall()  # the seed is lost, too: whoever sets it again sets the same
        await eventually(lambda: shared(one)["written"]["copies"] >= 4)
        await eventually(is_settled(one))
        await knows_all(two, one, range(8))
        assert two.metric(UP) == 1
