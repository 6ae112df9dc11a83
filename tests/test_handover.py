"""Pods that leave, by an operator or by their platform, before real sockets: heirs hold what only they held."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.kube import kube_peer, pod
from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, eventually, gateway, pods

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune must want a wife. "
PODS = 3


def chat(number: int, **more: Any) -> dict[str, Any]:
    """A conversation of its own, of some 300 tokens."""
    system = {"role": "system", "content": f"Conversation {number}. " + TEXT * 12}
    return {"model": MODEL, "messages": [system, {"role": "user", "content": "Who?"}], "max_tokens": 2, **more}


def at(each: PodProcess, **more: Any) -> dict[str, Any]:
    """A Pod with this server in it."""
    http, events, replay = each.ports[:3]
    notes = {"port": http, "events-port": events, "replay-port": replay}
    given = {f"warmroute.io/{name}": str(port) for name, port in notes.items()}
    return pod(each.name, "127.0.0.1", annotations=given, **more)


async def ask(served: GatewayProcess, body: dict[str, Any]) -> tuple[str, int]:
    """The pod, and how many tokens it had cached."""
    async with httpx.AsyncClient(**PLAIN) as client:
        answer = await client.post(f"{served.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    return answer.headers["x-warmroute-pod"], (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def drained(served: GatewayProcess, what: str) -> dict[str, Any]:
    """What the gateway says to it."""
    told: dict[str, Any] = httpx.post(f"{served.ops_url}/pods/{what}", **PLAIN).raise_for_status().json()
    return told


@contextlib.asynccontextmanager
async def asked(
    tmp_path: Path, count: int = 6, fleet: Sequence[PodProcess] = (), **sections: Any
) -> AsyncIterator[tuple[GatewayProcess, list[str]]]:
    """A gateway before pods, and by which of them each conversation was answered."""
    fleet = fleet or [PodProcess(f"pod-{number}") for number in range(PODS)]
    with pods(*fleet), contextlib.ExitStack() as stack:
        static = [each.configured for each in fleet]
        served = await asyncio.to_thread(stack.enter_context, gateway(tmp_path, static, **sections))
        homes = [(await ask(served, chat(number)))[0] for number in range(count)]
        await eventually(lambda: served.get("/scale-in").json()["prompts_known"] == count)
        yield served, homes


async def test_a_drained_pod_hands_over(tmp_path: Path) -> None:
    """When the drain is answered, others hold each conversation of the pod, and it gets none of them any more."""
    async with asked(tmp_path) as (served, homes):
        leaver = max(set(homes), key=homes.count)
        losses = {loss["pod"]: loss for loss in served.get("/scale-in?count=3").json()["all"]}
        assert losses[leaver]["alone_tokens"] > 0 and losses[leaver]["prompts"] == homes.count(leaver)
        told = drained(served, f"{leaver}/drain?wait=20")
        assert told["draining"] and told["handover"]["prompts"] == told["handover"]["done"] == homes.count(leaver)
        for number, home in enumerate(homes):
            pod_now, cached = await ask(served, chat(number))
            assert pod_now != leaver and (cached > 200 or home != leaver), (number, home, pod_now, cached)
        assert served.metric('warmroute_handover_prompts_total{result="done"}') == homes.count(leaver)
        assert served.get("/scale-in?count=3").json()["pods"][0]["pod"] != leaver


@pytest.mark.parametrize("dies", [True, False])
async def test_an_heir_that_fails(tmp_path: Path, dies: bool) -> None:
    """Nobody knows yet that it is gone, or it answers with errors: another one inherits what it was to have."""
    fleet = [PodProcess(f"pod-{number}") for number in range(PODS)]
    async with asked(tmp_path, 9, fleet, probe={"interval": 3600.0}) as (served, homes):
        leaver = max(set(homes), key=homes.count)
        broken, _ = (each for each in fleet if each.name != leaver)
        broken.kill() if dies else broken.fault(refuse="503")
        told = drained(served, f"{leaver}/drain?wait=20")["handover"]
        assert told["prompts"] == homes.count(leaver) and told["failed"] > 0, "nobody asked the broken one"
        assert told["done"] + told["needless"] == told["prompts"]


async def test_nothing_is_kept_and_nothing_handed_over(tmp_path: Path) -> None:
    """`kept_max: 0`: a drain is a drain."""
    fleet = [PodProcess(f"pod-{number}") for number in range(2)]
    with pods(*fleet), contextlib.ExitStack() as stack:
        static = [each.configured for each in fleet]
        served = await asyncio.to_thread(
            stack.enter_context, gateway(tmp_path, static, handover={"kept_max": 0})
        )  # fmt: skip
        home, _ = await ask(served, chat(1))
        assert drained(served, f"{home}/drain") == {"pod": home, "draining": True, "requests": 0}
        other, cached = await ask(served, chat(1))
        assert other != home and cached == 0


async def test_a_pod_that_kubernetes_ends_hands_over(tmp_path: Path) -> None:
    """From its deletion timestamp on it gets nothing new, and others compute what it alone held."""
    fleet = [PodProcess(f"pod-{number}") for number in range(2)]
    with pods(*fleet), contextlib.ExitStack() as stack:
        async with kube_peer() as api:
            for each in fleet:
                api.put(at(each))
            found = {"kubernetes": {"api": api.address, "namespace": "inference", "selector": "app=vllm"}}
            served = await asyncio.to_thread(stack.enter_context, gateway(tmp_path, [], discovery=found))
            home, _ = await ask(served, chat(1))
            await eventually(lambda: served.get("/scale-in").json()["prompts_known"] == 1)
            api.put(at(next(each for each in fleet if each.name == home), deleted=True))
            await eventually(lambda: served.metric('warmroute_handover_prompts_total{result="done"}') == 1)
            other, cached = await ask(served, chat(1))
            assert other != home and cached > 200


async def test_kubernetes_is_told_what_pods_cost(tmp_path: Path) -> None:
    """Where it is asked for, each Pod is annotated; while the Role forbids it, that is said, and all else goes on."""
    fleet = [PodProcess(f"pod-{number}") for number in range(2)]
    with pods(*fleet), contextlib.ExitStack() as stack:
        async with kube_peer() as api:
            for each in fleet:
                api.put(at(each))
            api.read_only = True
            found = {"api": api.address, "namespace": "inference", "selector": "app=vllm", "deletion_cost": 1}
            served = await asyncio.to_thread(
                stack.enter_context, gateway(tmp_path, [], discovery={"kubernetes": found})
            )  # fmt: skip
            home, _ = await ask(served, chat(1))
            await eventually(lambda: "has to allow patch of pods" in served.logged())
            api.read_only = False
            await eventually(lambda: {"pod-0", "pod-1"} <= set(api.patched))
            name = "controller.kubernetes.io/pod-deletion-cost"
            costs = {each["metadata"]["name"]: int(each["metadata"]["annotations"][name]) for each in api.pods.values()}
            other = next(pod_name for pod_name in costs if pod_name != home)
            assert costs[home] > 200 and costs[other] == 0
            assert served.logged().count("has to allow patch of pods") == 1
