"""Finding out about pods: what their metrics say, whether they answer, what they serve; over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from indexer.blocks import Keys, KeySpace
from indexer.match import MISS
from router.config.fleet import StaticPod
from router.config.settings import Config
from router.core.decision import Core
from router.core.fleet import RankId
from router.discovery.pods import Pods
from router.discovery.vllm_metrics import parse_metrics
from router.events.sockets import port_plus
from router.service import core_settings
from router.upstream.pod_client import PodClient
from router.upstream.upstreams import Upstreams
from tests.fakes.peers import Call, peer, until
from tests.fakes.probes import PROBE, Told, probed

VECTORS = Path(__file__).parent / "vectors"


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
        assert (pod.version, pod.block_size, core.fleet.grains("m")) == ("0.32.0", 32, [32])
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
        pod.suspect(1e12)
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
        pods = Pods(Core(core_settings(config), KeySpace(1)), config, Upstreams(config), lambda: now)
        await pods.start()
        await pods.met()
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


async def test_new_times_are_no_change() -> None:
    """vLLM makes `created` and the ids of permissions anew for each answer: nothing is forgotten for that."""
    told, seen = Told(), iter(range(1_000_000))

    def models(*cards: dict[str, Any]) -> tuple[int, bytes]:
        made = [{**card, "created": next(seen), "permission": [{"id": f"modelperm-{next(seen)}"}]} for card in cards]
        return 200, orjson.dumps({"data": made})

    told.answers["/v1/models"] = models({"id": "m", "root": "r"})
    async with probed(told) as (core, pods, _):
        epoch = core.fleet.epoch
        for _ in range(3):
            told.answers["/v1/models"] = models({"id": "m", "root": "r"})
            assert await pods.look("a")
        assert core.fleet.epoch == epoch
        told.answers["/v1/models"] = models({"id": "m", "root": "r", "max_model_len": 2048})
        assert await pods.look("a")
        assert core.fleet.epoch == epoch + 1
        assert core.fleet.pods["a"].context_tokens == core.fleet.shortest == 2048


def _hold(core: Core, prompt: Keys) -> None:
    core.index.predict(RankId("a", 0), prompt, 0, 1e12)


def _held(core: Core, prompt: Keys) -> int:
    return core.index.match(prompt).hits.get(RankId("a", 0), MISS).blocks


async def test_other_weights_under_a_name() -> None:
    """An adapter whose root changes is another one: what the pod held is forgotten, also if it was away between."""
    told = Told()

    def serves(**roots: str) -> None:
        adapters = [{"id": name, "root": root, "parent": "m"} for name, root in roots.items()]
        told.answers["/v1/models"] = (200, orjson.dumps({"data": [{"id": "m", "root": "r"}, *adapters]}))

    serves(ad="one")
    async with probed(told) as (core, pods, _):
        keys = core.space.chain(np.arange(64, dtype=np.uint32), 32)
        _hold(core, keys)
        serves(ad="one", other="x")
        assert await pods.look("a") and _held(core, keys) == 2
        serves(other="x")
        assert await pods.look("a") and _held(core, keys) == 2
        serves(other="x", ad="two")
        assert await pods.look("a") and _held(core, keys) == 0


@pytest.mark.parametrize("by_metrics", [False, True])
async def test_a_pod_that_sleeps(by_metrics: bool) -> None:
    """It answers /health, and is not fit; what it held is gone; awake again, it is cold and empty."""
    told = Told()
    metrics = told.answers["/metrics"][1]

    def sleeps(asleep: bool) -> None:
        if by_metrics:
            line = b'vllm:engine_sleep_state{engine="0",sleep_state="awake"} %d.0\n' % (not asleep)
            told.answers["/metrics"] = (200, metrics + line)
        else:
            told.answers["/is_sleeping"] = (200, orjson.dumps({"is_sleeping": asleep}))

    sleeps(False)
    async with probed(told) as (core, _, _):
        pod = core.fleet.pods["a"]
        keys = core.space.chain(np.arange(64, dtype=np.uint32), 32)
        _hold(core, keys)
        core.fleet.cold.clear()
        sleeps(True)
        await until(lambda: pod.rest == "asleep")
        assert pod.healthy and not pod.fit(0.0) and not pod.usable and pod.unfit(0.0) == ["it is asleep"]
        assert _held(core, keys) == 0
        _hold(core, keys)
        sleeps(False)
        await until(lambda: pod.rest is None)
        assert pod.fit(0.0) and pod in core.fleet.cold and _held(core, keys) == 0


async def test_whether_a_pod_still_sleeps_is_asked_with_every_probe() -> None:
    """Also where its metrics alone tell: who waits for it is not kept until the next look at everything."""
    told = Told()
    asleep = b'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0\n'
    told.answers["/metrics"] = (200, told.answers["/metrics"][1] + asleep)
    async with probed(told) as (core, _, seen):
        await until(lambda: core.fleet.pods["a"].rest == "asleep")

        def asked(path: str) -> int:
            return sum(call.head.split(b" ")[1].decode() == path for call in seen.calls)

        looks, models = asked("/metrics"), asked("/v1/models")
        await until(lambda: asked("/metrics") >= looks + 10)
        assert asked("/v1/models") <= models + 4


async def test_only_the_given_model() -> None:
    """A pod that is given a model is asked for that and its adapters alone; without it, it is not fit."""
    told = Told()
    names = [{"id": "m"}, {"id": "n"}, {"id": "ad", "parent": "m"}, {"id": "nad", "parent": "n"}]
    told.answers["/v1/models"] = (200, orjson.dumps({"data": names}))
    async with probed(told, model="m") as (core, _, _):
        assert [name for name in ("m", "n", "ad", "nad") if core.fleet.is_known(name)] == ["m", "ad"]
        told.answers["/v1/models"] = (200, b'{"data": [{"id": "n"}]}')
        await until(lambda: not core.fleet.pods["a"].answers)
        assert core.fleet.pods["a"].unanswered == "it does not serve m, which the configuration says"
        assert not core.fleet.is_known("n")


async def late(call: Call) -> None:
    """A pod that is too busy to answer."""
    await call.gone()


@contextlib.asynccontextmanager
async def fleet_of(*pods: Told) -> AsyncIterator[Core]:
    """Several pods under probes with little patience."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(told)) for told in pods]
        static = [{"name": f"pod-{n}", "address": seen.address} for n, seen in enumerate(peers)]
        probe = {"interval": 0.05, "timeout": 0.1, "failures_max": 2}
        config = Config.model_validate({"discovery": {"static": static}, "probe": probe})
        core = Core(core_settings(config), KeySpace(1))
        outside = Pods(core, config, Upstreams(config))
        await outside.start()
        await outside.met()
        try:
            yield core
        finally:
            await outside.stop()


class Busy(Told):
    """A pod whose /health comes late, once it is told so."""

    busy = False

    async def __call__(self, call: Call) -> None:
        await (late(call) if self.busy else super().__call__(call))


async def test_late_probes_of_too_many_are_not_believed() -> None:
    """One of three that is late is unfit; all three, and it is the probes that are doubted; and back again."""
    pods = [Busy(), Busy(), Busy()]
    async with fleet_of(*pods) as core:
        fleet = core.fleet
        pods[0].busy = True
        await until(lambda: not fleet.pods["pod-0"].healthy)
        assert [pod.fit(0.0) for pod in fleet.pods.values()] == [False, True, True] and not fleet.panics
        assert fleet.pods["pod-0"].unfit(0.0) == ["no answer in time to /health"]
        pods[1].busy = pods[2].busy = True
        await until(lambda: fleet.panics and not any(pod.answers for pod in fleet.pods.values()))
        assert all(pod.fit(0.0) for pod in fleet.pods.values())
        for pod in pods:
            pod.busy = False
        await until(lambda: all(pod.answers for pod in fleet.pods.values()))
        assert not fleet.panics


async def test_a_refusal_is_believed_of_however_many() -> None:
    """Pods that say of themselves that they are not well are not used, and be it all of them."""
    pods = [Told(), Told()]
    async with fleet_of(*pods) as core:
        for pod in pods:
            pod.answers["/health"] = (503, b"")
        await until(lambda: not any(pod.healthy for pod in core.fleet.pods.values()))
        assert core.fleet.panics


async def test_served_answers_are_health() -> None:
    """A pod that is late with all probes and serves requests stays fit; when it serves none, it is not."""
    pods = [Busy(), Busy(), Busy()]
    async with fleet_of(*pods) as core:
        pod = core.fleet.pods["pod-0"]
        pods[0].busy = True
        pod.served_at = 1e12
        await until(lambda: pod.unanswered is not None)
        seen = pod.unanswered
        for _ in range(5):
            pod.unanswered = None
            await until(lambda: pod.unanswered == seen)
        assert pod.healthy and pod.failures == 0
        pod.served_at = 0.0
        await until(lambda: not pod.healthy)
