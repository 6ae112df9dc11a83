"""Finding out about pods: what their metrics say, whether they answer, what they serve; over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from indexer.blocks import KeySpace
from router.config import Config
from router.config_fleet import StaticPod
from router.core import Core
from router.pod_client import PodClient
from router.pods import Pods, parse_metrics, port_plus
from router.trust import Trusts
from tests.router_peers import Call, Peer, peer, until

VECTORS = Path(__file__).parent / "vectors"
PROBE = {"interval": 0.02, "timeout": 2.0, "failures_max": 3}


class Told:
    """A pod that answers probes as it is told."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {
            "/health": (200, b""),
            "/v1/models": (200, orjson.dumps({"data": [{"id": "m"}]})),
            "/version": (200, b'{"version": "0.32.0"}'),
            "/metrics": (200, b'vllm:cache_config_info{block_size="32",num_gpu_blocks="96"} 1.0\n'),
        }

    async def __call__(self, call: Call) -> None:
        """One probe."""
        status, body = self.answers.get(call.head.split(b" ")[1].decode(), (404, b""))
        await call.send(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))


@contextlib.asynccontextmanager
async def probed(told: Told, **more: Any) -> AsyncIterator[tuple[Core, Pods, Peer]]:
    """One pod `a` under probes."""
    async with peer(told) as seen:
        static = [{"name": "a", "address": seen.address, **more}]
        config = Config.model_validate({"discovery": {"static": static}, "probe": PROBE})
        core = Core(config, KeySpace(1))
        pods = Pods(core, config, Trusts(config.upstream))
        await pods.start()
        try:
            yield core, pods, seen
        finally:
            await pods.stop()


@pytest.mark.parametrize("version", sorted(path.parent.name for path in VECTORS.glob("*/metrics_end.txt")))
def test_recorded_metrics(version: str) -> None:
    """Every recorded version tells the size and number of its blocks, its load, and how full its cache is."""
    figures = parse_metrics((VECTORS / version / "metrics_end.txt").read_text())
    assert set(figures) >= {"running", "waiting", "kv_usage", "block_size", "blocks"}
    assert figures["block_size"] >= 16 and figures["blocks"] > 16 and 0 <= figures["kv_usage"] <= 1


def test_odd_metrics() -> None:
    """What can't be read is left out; engines are summed."""
    text = """
# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_running{engine="1"} 3.0
vllm:num_requests_running_more 100
vllm:num_requests_waiting{engine="0"} many
vllm:kv_cache_usage_perc NaN
vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0
vllm:
other_num_requests_running 5
"""
    assert parse_metrics(text) == {"running": 5.0, "block_size": 16.0}
    assert parse_metrics("") == parse_metrics("\x00vllm:{{{") == {}


async def test_a_pod_that_is_well() -> None:
    """After `start` it is known: fit, its models, its version, its block size; a pod without a feed is blind."""
    async with probed(Told()) as (core, pods, _):
        pod = core.fleet.pods["a"]
        assert pod.fit(0.0) and pod.healthy
        assert [model["id"] for model in core.fleet.union_of_models()] == ["m"]
        assert (pod.version, pod.block_size, core.fleet.block_sizes("m")) == ("0.32.0", 32, [32])
        assert [rank.state for rank in pod.ranks] == ["blind"]
        assert pods.unloaded == set()


async def test_failures_in_a_row() -> None:
    """It takes several failures to be unfit, and one success to be fit again."""
    told = Told()
    async with probed(told) as (core, _, _):
        pod = core.fleet.pods["a"]
        told.answers["/health"] = (500, b"")
        await until(lambda: pod.failures == 1)
        assert pod.healthy
        await until(lambda: not pod.healthy)
        assert pod.failures >= 3
        told.answers["/health"] = (200, b"")
        await until(lambda: pod.healthy)
        assert pod.failures == 0


async def test_who_starts_slowly() -> None:
    """A pod that was away is cold also if nobody asked for it meanwhile; so is one that was restarted unnoticed."""
    told = Told()
    metrics = told.answers["/metrics"][1]
    told.answers["/metrics"] = (200, metrics + b"process_start_time_seconds 1.0\n")
    async with probed(told) as (core, _, _):
        pod, cold = core.fleet.pods["a"], core.fleet.cold
        cold.clear()
        told.answers["/health"] = (500, b"")
        await until(lambda: not pod.healthy)
        told.answers["/health"] = (200, b"")
        await until(lambda: pod.healthy)
        assert pod in cold
        cold.clear()
        told.answers["/metrics"] = (200, metrics + b"process_start_time_seconds 2.0\n")
        await until(lambda: pod in cold)
        assert pod.healthy


async def test_what_can_not_be_read() -> None:
    """A pod whose /v1/models is nonsense is not fit; one without version and metrics is."""
    told = Told()
    for nonsense in (b"nonsense", b"[]", b'{"data": 3}', b'{"data": [3]}', b'{"data": null}'):
        told.answers["/v1/models"] = (200, nonsense)
        async with probed(told) as (core, _, _):
            assert not core.fleet.pods["a"].healthy, nonsense
    told.answers = {path: told.answers[path] for path in ("/health",)}
    told.answers["/v1/models"] = (200, b'{"data": [{"id": "m"}, {"id": 5}, {}]}')
    async with probed(told) as (core, _, _):
        pod = core.fleet.pods["a"]
        assert (pod.healthy, pod.version, pod.block_size) == (True, None, None)
        assert [model["id"] for model in core.fleet.union_of_models()] == ["m"]


async def test_models_change() -> None:
    """A model that a pod begins to serve is known after a while, without a restart."""
    told = Told()
    async with probed(told) as (core, _, _):
        told.answers["/v1/models"] = (200, b'{"data": [{"id": "m"}, {"id": "lora", "parent": "m"}]}')
        await until(lambda: core.fleet.is_known("lora"))
        told.answers["/v1/models"] = (200, b'{"data": [{"id": "n"}]}')
        await until(lambda: core.fleet.is_known("n"))
        assert not core.fleet.is_known("m")


async def test_a_probe_ends_suspicion() -> None:
    """A pod that a request could not reach is trusted again as soon as it answers."""
    async with probed(Told()) as (core, _, _):
        pod = core.fleet.pods["a"]
        pod.suspect_until = 1e12
        await until(lambda: pod.suspect_until == 0.0)


async def test_join_and_leave() -> None:
    """A pod may come and go while we run; gone, it is in no list, and it is not probed any more."""
    async with probed(Told()) as (core, pods, _), peer(Told()) as other:
        pods.join(StaticPod(name="b", address=other.address, data_parallel_size=2))
        await until(lambda: core.fleet.pods["b"].healthy)
        assert [rank.id for rank in core.fleet.serving("m")] == [("a", 0), ("b", 0), ("b", 1)]
        await pods.leave("b")
        asked = len(other.calls)
        await asyncio.sleep(5 * PROBE["interval"])
        assert [rank.id for rank in core.fleet.serving("m")] == [("a", 0)]
        assert len(other.calls) == asked


async def test_feed_that_never_comes() -> None:
    """Its first state is waited for, and not for ever."""
    now = 1000.0
    async with peer(Told()) as seen:
        static = [{"name": "a", "address": seen.address, "events": "tcp://127.0.0.1:1"}]
        config = Config.model_validate({"discovery": {"static": static}, "probe": {**PROBE, "timeout": 0.2}})
        pods = Pods(Core(config, KeySpace(1)), config, Trusts(config.upstream), lambda: now)
        await pods.start()
        try:
            assert pods.unloaded == {"a"}
            now += 11
            assert pods.unloaded == set()
        finally:
            await pods.stop()


def test_ports_of_ranks() -> None:
    """Rank r listens r ports after the first; an ipc path has no ranks."""
    assert port_plus("tcp://10.0.0.7:5557", 3) == "tcp://10.0.0.7:5560"
    assert port_plus("tcp://[::1]:5557", 1) == "tcp://[::1]:5558"
    assert port_plus("ipc:///run/x", 0) == "ipc:///run/x"


async def test_unix_socket(tmp_path: Path) -> None:
    """A pod on a Unix socket is probed as any other."""
    async with peer(Told(), path=str(tmp_path / "pod")) as seen, PodClient(seen.address, 2.0) as client:
        assert (await client.get(b"/version")).body == b'{"version": "0.32.0"}'
