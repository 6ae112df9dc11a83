"""What it costs to follow pods of Kubernetes, and how soon the gateway acts on what it is told.

    python -m benchmarks.discovery [--pods 1000] [--rest 20] [--churn 1000]

The API server is a stand-in in this process; what is measured of memory and CPU is a process of its own. `watched`:
that many Pods, of the size of real ones, are listed and watched, and nothing happens. `request`: of a whole gateway
under requests, from the moment the API server says it. `churn`: so many Pods come and go, as many as in ten minutes at
100 a minute, as fast as it goes: what a gateway keeps must be as at the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from router.config.fleet import KubernetesConfig
from router.config.settings import Config
from router.discovery.found import Roster
from router.discovery.kubernetes import KubernetesSource
from router.discovery.kubernetes_api import api_of
from router.endpoints.app import create_app
from router.service import Service
from tests.fakes.kube import KubePeer, kube_peer, pod
from tests.fakes.peers import Call, Peer, peer

ROUNDS = 10
_BESIDE = 6_000  # bytes of a real Pod that are nothing to us: its spec, managedFields
_BODY = {"model": "m", "prompt": "x", "max_tokens": 1}


async def server(call: Call) -> None:
    """A vLLM server, as far as it matters here."""
    await call.read_body()
    models = json.dumps({"data": [{"id": "m", "root": "m", "parent": None}]}).encode()
    body = models if b"/v1/models" in call.head else b"{}"
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def at(seen: Peer, name: str, **more: Any) -> dict[str, Any]:
    """A Pod with this server in it."""
    notes = {"warmroute.io/port": seen.address.rpartition(":")[2], "warmroute.io/events-port": "none"}
    return pod(name, "127.0.0.1", annotations=notes, **more)


def of(url: str) -> dict[str, Any]:
    return {"api": url, "namespace": "inference", "selector": "app=vllm"}


@contextlib.asynccontextmanager
async def running(api: KubePeer) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A gateway, and a client of it."""
    service = Service(Config.model_validate({"discovery": {"kubernetes": of(api.address)}}))
    async with service.running():
        app: Any = create_app(service)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            yield service, http


async def until(condition: Any) -> float:
    """The time when it is so."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
    return time.monotonic()


async def reaction() -> None:
    """How soon a pod is used, and not used any more."""
    new, ready, last = [], [], []
    async with kube_peer() as api, peer(server) as home, peer(server) as other, running(api) as (service, http):
        fleet = service.core.fleet
        api.put(at(home, "home"))
        await until(lambda: "home" in fleet.pods and fleet.pods["home"].fit(time.monotonic()))

        async def served_by() -> str:
            return (await http.post("/v1/completions", json=_BODY)).headers.get("x-warmroute-pod", "")

        async def first_by(name: str) -> float:
            async with asyncio.timeout(30):
                while await served_by() != name:
                    pass
            return time.monotonic()

        for number in range(ROUNDS):
            name = f"pod-{number}"
            began = time.monotonic()
            api.put(at(other, name))
            new.append(await first_by(name) - began)
            api.put(at(other, name, ready=False))
            await until(lambda name=name: not fleet.pods[name].ready)
            began = time.monotonic()
            api.put(at(other, name))
            ready.append(await first_by(name) - began)
            ended = time.monotonic()
            api.put(at(other, name, deleted=True))
            after = [0.0]
            while time.monotonic() < ended + 0.3:
                sent = time.monotonic()
                if await served_by() == name:
                    after.append(sent - ended)
            last.append(max(after))
            api.delete(f"uid-{name}")
            await until(lambda name=name: name not in fleet.pods)
    for what, times in (("new and ready -> first request", new), ("ready again -> first request", ready)):
        print(f"{what}: median {statistics.median(times) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")
    print(f"deletion event -> last request: worst {max(last) * 1e3:.1f} ms")


async def churn(count: int) -> None:
    """Pods come and go, twenty at a time."""
    async with kube_peer() as api, peer(server) as one, running(api) as (service, _):
        api.page, core = 500, service.core

        def sizes() -> dict[str, int]:
            gc.collect()
            return {
                "pods": len(core.fleet.pods), "upstreams": len(service.upstreams), "tasks": len(asyncio.all_tasks()),
                "index": len(list(core.index.pods)), "objects": sum(map(_is_ours, gc.get_objects())),
            }  # fmt: skip

        rss, half = [], {}
        for number in range(count):
            name = f"pod-{number}"
            api.put(at(one, name))
            await until(lambda name=name: name in core.fleet.pods)
            api.delete(f"uid-{name}")
            await until(lambda name=name: name not in core.fleet.pods)
            api.history.clear()
            if number in (count // 2, count - 1):
                await asyncio.sleep(0.5)
                half[number], rss = sizes(), [*rss, resident_kib()]
        print(f"churn of {count} pods: after half {half[count // 2]}, {rss[0] >> 10} MiB")
        print(f"churn of {count} pods: at the end {half[count - 1]}, {rss[-1] >> 10} MiB")


def _is_ours(thing: object) -> bool:
    return str(type(thing).__module__).partition(".")[0] in ("router", "indexer", "scorer")


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


async def watch(url: str, count: int, rest_s: float) -> None:
    """In a process of its own: follow that many Pods, then rest."""
    section = KubernetesConfig.model_validate(of(url))
    source, roster = KubernetesSource(section, api_of(section)), Roster()
    gc.collect()
    before = resident_kib()

    async def follow() -> None:
        async for changes in source.changes():
            roster.apply(source.name, changes)

    task = asyncio.create_task(follow())
    began = time.monotonic()
    await until(lambda: roster.counts().get(source.name) == count)
    listed_s, listed_cpu_s = time.monotonic() - began, time.process_time()
    await asyncio.sleep(1.0)
    gc.collect()
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.sleep(rest_s)
    used = (time.process_time() - cpu) / (time.monotonic() - began)
    print(
        f"watched {count} pods: +{(resident_kib() - before) / 1024:.1f} MiB (of {resident_kib() / 1024:.0f} MiB), "
        f"known after {listed_s:.2f} s ({listed_cpu_s:.2f} s of CPU with start-up), at rest {used:.2%} of a core"
    )
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def watched(count: int, rest_s: float) -> None:
    """The API server of `watch`; a bookmark comes every second, sixty times as often as real ones."""
    async with kube_peer() as api:
        api.page = 500
        for number in range(count):
            thing = pod(f"pod-{number}", f"10.0.{number // 250}.{number % 250}")
            thing["metadata"]["managedFields"] = [{"fieldsV1": "x" * _BESIDE}]
            api.put(thing)
        arguments = ["-m", "benchmarks.discovery", "--watch", api.address, "--pods", str(count), "--rest", str(rest_s)]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
        waiting = asyncio.create_task(process.wait())
        while not waiting.done():
            await asyncio.wait([waiting], timeout=1.0)
            api.history.clear()
            api.bookmark()


def main() -> None:
    """All of it, or what a child does."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pods", type=int, default=1000)
    options.add_argument("--rest", type=float, default=20.0)
    options.add_argument("--churn", type=int, default=1000)
    options.add_argument("--watch", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.watch is not None:
        asyncio.run(watch(given.watch, given.pods, given.rest))
        return
    asyncio.run(watched(given.pods, given.rest))
    asyncio.run(reaction())
    asyncio.run(churn(given.churn))


if __name__ == "__main__":
    main()
