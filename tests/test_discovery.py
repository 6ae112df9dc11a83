"""A gateway whose pods come and go: routed to when they are there, left alone when they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from router.config.settings import Config
from router.endpoints.app import create_app
from router.service import Service
from tests.fakes.kube import KubePeer, kube_peer, pod
from tests.fakes.peers import Call, Peer, peer, until

BODY = {"model": "m", "prompt": "x", "max_tokens": 1}


async def server(call: Call) -> None:
    """A vLLM server, as far as it matters here."""
    await call.read_body()
    target = call.head.split(b" ", 2)[1]
    body = (
        json.dumps({"data": [{"id": "m", "root": "m", "parent": None}]}).encode() if target == b"/v1/models" else b"{}"
    )
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def port_of(seen: Peer) -> str:
    return seen.address.rpartition(":")[2]


def at(seen: Peer, name: str, **more: Any) -> dict[str, Any]:
    """A Pod with this server in it."""
    notes = {"warmroute.io/port": port_of(seen), "warmroute.io/events-port": "none"}
    return pod(name, "127.0.0.1", annotations=notes, **more)


@contextlib.asynccontextmanager
async def running(discovery: dict[str, Any]) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A gateway with these sources of pods, and a client."""
    service = Service(Config.model_validate({"discovery": discovery, "probe": {"interval": 0.05}}))
    async with service.running():
        app: Any = create_app(service)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            yield service, http


def of(api: KubePeer) -> dict[str, Any]:
    return {"kubernetes": {"api": api.address, "namespace": "inference", "selector": "app=vllm"}}


async def pods_that_serve(http: httpx.AsyncClient, count: int = 8) -> set[str]:
    answers = [await http.post("/v1/completions", json=BODY) for _ in range(count)]
    return {answer.headers.get("x-warmroute-pod", str(answer.status_code)) for answer in answers}


async def test_pods_of_kubernetes_come_and_go() -> None:
    """From nothing to two pods and back; terminating ones get nothing new, and of those gone nothing is left."""
    async with kube_peer() as api, peer(server) as one, peer(server) as two, running(of(api)) as (service, http):
        assert (await http.get("/readyz")).status_code == 503
        fleet = service.core.fleet
        api.put(at(one, "vllm-0"))
        await until(lambda: "vllm-0" in fleet.pods and fleet.pods["vllm-0"].fit(0.0))
        assert (await http.get("/readyz")).status_code == 200
        assert await pods_that_serve(http) == {"vllm-0"}
        api.put(at(two, "vllm-1", ready=False))
        await until(lambda: "vllm-1" in fleet.pods and fleet.pods["vllm-1"].healthy)
        assert await pods_that_serve(http) == {"vllm-0"}
        reasons = (await http.get("/readyz")).json()["pods"]["vllm-1"]["reasons"]
        assert "it is not ready, its platform says" in reasons
        api.put(at(two, "vllm-1"))
        await until(lambda: fleet.pods["vllm-1"].fit(0.0))
        api.put(at(one, "vllm-0", deleted=True))
        await until(lambda: fleet.pods["vllm-0"].leaving)
        assert await pods_that_serve(http) == {"vllm-1"}
        api.delete("uid-vllm-0")
        await until(lambda: "vllm-0" not in fleet.pods)
        assert "vllm-0" not in service.upstreams and service.pods.known == {"static": 0, "kubernetes": 1}
        api.put(at(one, "vllm-0", uid="another"))
        await until(lambda: "vllm-0" in fleet.pods and fleet.pods["vllm-0"].fit(0.0))
        assert await pods_that_serve(http) <= {"vllm-0", "vllm-1"}


async def test_a_stream_ends_though_its_pod_has_left() -> None:
    """A pod that is gone from the list may finish what it has begun; its connection goes with it."""
    gate = asyncio.Event()

    async def slow(call: Call) -> None:
        if b"POST /v1/completions" not in call.head:
            await server(call)
            return
        await call.read_body()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        await call.send(head + b"3\r\none\r\n")
        await gate.wait()
        await call.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with kube_peer() as api, peer(slow) as one, running(of(api)) as (service, http):
        api.put(at(one, "vllm-0"))
        await until(lambda: "vllm-0" in service.core.fleet.pods and service.core.fleet.pods["vllm-0"].fit(0.0))
        upstream = service.upstreams["vllm-0"]
        asked = asyncio.create_task(http.post("/v1/completions", json={**BODY, "stream": True}))
        await until(lambda: service.core.in_flight == 1)
        await until(lambda: upstream.connections == 1)
        api.delete("uid-vllm-0")
        await until(lambda: not service.core.fleet.pods)
        assert (await http.post("/v1/completions", json=BODY)).status_code in (404, 503)
        gate.set()
        assert (await asked).text == "onetwo"
        await until(lambda: upstream.connections == 0)
        assert service.core.in_flight == 0


async def test_several_sources(tmp_path: Path) -> None:
    """A list by hand, a file and an API server together: the same address is one pod."""
    file = tmp_path / "pods.yaml"
    async with kube_peer() as api, peer(server) as one, peer(server) as two:
        file.write_text(json.dumps([{"name": "of-the-file", "address": two.address}]))
        api.put(at(one, "of-kubernetes"))
        static = [{"name": "by-hand", "address": one.address}]
        sources = {**of(api), "static": static, "file": {"path": str(file), "interval": 0.01}}
        async with running(sources) as (service, http):
            await until(lambda: service.pods.known == {"static": 1, "file": 1, "kubernetes": 1})
            assert set(service.core.fleet.pods) == {"by-hand", "of-the-file"}
            told = (await http.get("/metrics")).text
            for source, count in (("static", 1), ("file", 1), ("kubernetes", 1)):
                assert f'warmroute_discovery_pods{{source="{source}"}} {count}' in told
                assert f'warmroute_discovery_sync{{source="{source}"}} 1' in told
            file.write_text("[]")
            await until(lambda: set(service.core.fleet.pods) == {"by-hand"})
            assert await pods_that_serve(http) == {"by-hand"}


async def test_churn_leaves_nothing() -> None:
    """Two hundred pods come and go: what is kept is as at the beginning."""
    async with kube_peer() as api, peer(server) as one, running(of(api)) as (service, _):
        api.page = 500
        core = service.core

        def sizes() -> tuple[int, ...]:
            return (len(core.fleet.pods), len(service.upstreams), len(asyncio.all_tasks()), len(list(core.index.pods)))

        await until(lambda: api.watches == 1)
        before = sizes()
        for number in range(200):
            name = f"vllm-{number}"
            api.put(at(one, name))
            await until(lambda name=name: name in core.fleet.pods)
            api.delete(f"uid-{name}")
            await until(lambda name=name: name not in core.fleet.pods)
        await until(lambda: sizes() == before)
