"""The gateway when pods and feeds misbehave: it goes on, and what it says of pods' blocks becomes true again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, eventually, free_ports, gateway, pods

ONE_REPLAY: dict[str, Any] = {"replay_timeout": 0.5, "replay_retries": 0}


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[PodProcess]]:
    """Two pods."""
    with pods(PodProcess("pod-0"), PodProcess("pod-1")) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def served(fleet: list[PodProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway."""
    with gateway(tmp_path_factory.mktemp("gateway"), [pod.configured for pod in fleet]) as served:
        yield served


@pytest.fixture
async def http(served: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A plain client of the gateway."""
    async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
        yield http


def prompt_ids(seed: int, count: int = 200) -> list[int]:
    """Token ids that nobody else has."""
    return [(seed * 7919 + place * 31) % 5000 + 200 for place in range(count)]


async def complete(url: str, ids: list[int], max_tokens: int = 20) -> httpx.Response:
    """A completion of token ids, on a connection of its own."""
    async with httpx.AsyncClient(base_url=url, **PLAIN) as http:
        return await http.post("/v1/completions", json={"model": MODEL, "prompt": ids, "max_tokens": max_tokens})


def wrong_matches(
    served: GatewayProcess, fleet: list[PodProcess], prompts: list[list[int]]
) -> list[tuple[str, int, int]]:
    """Where /score says other than the pods themselves."""
    wrong = []
    with httpx.Client(**PLAIN) as http:
        for ids in prompts:
            answer = http.post(f"{served.url}/score", json={"model": MODEL, "token_ids": ids}).json()
            for pod, entry in zip(fleet, answer["pods"], strict=True):
                state = http.post(f"{pod.address}/simulator/state", json={"token_ids": ids}).json()
                truth, said = state["ranks"][0]["cached_tokens"], entry["matched_tokens"]
                if truth != said:
                    wrong.append((pod.name, truth, said))
    return wrong


def rank(served: GatewayProcess, pod: str) -> dict[str, Any]:
    """The only rank of a pod."""
    return served.ranks()[pod][0]


def change(served: GatewayProcess, what: str) -> None:
    """As operators do."""
    httpx.post(f"{served.ops_url}/pods/{what}", **PLAIN).raise_for_status()


@pytest.mark.parametrize(
    ("seed", "fault", "counted"),
    [
        (100, {"drop": 0.4}, "gap"),
        (200, {"duplicate": 1.0}, "duplicate"),
        (300, {"reorder": 0.5}, "gap"),
        (400, {"silent": True}, "gap"),
        (500, {"drop": 0.2, "duplicate": 0.3, "reorder": 0.3}, "gap"),
    ],
    ids=["drop", "duplicate", "reorder", "silent", "all"],
)
async def test_lost_frames(
    served: GatewayProcess, fleet: list[PodProcess], seed: int, fault: dict[str, Any], counted: str
) -> None:
    """Frames that are lost, doubled or swapped: once frames come again, all that is said of the pod is true."""
    pod = fleet[0]
    before = rank(served, pod.name)["events"]["counts"].get(counted, 0)
    prompts = [prompt_ids(seed + number) for number in range(12)]
    pod.fault(**fault)
    for ids in prompts:
        assert (await complete(pod.address, ids)).status_code == 200  # not through the gateway: it can't know
    pod.fault(clear=True)
    await complete(pod.address, prompt_ids(seed + 50))
    await eventually(lambda: not wrong_matches(served, fleet, prompts))
    known = await eventually(lambda: (r := rank(served, pod.name))["state"] == "exact" and r)
    assert known["events"]["counts"].get(counted, 0) > before
    change(served, f"{fleet[1].name}/drain?wait=0")  # else it may be taken for the emptier one
    after = await complete(served.url, [*prompts[-1], *prompt_ids(5, 30)])
    change(served, f"{fleet[1].name}/undrain")
    cached = after.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == int(after.headers["x-warmroute-matched-tokens"]) > 0


async def test_no_replay(tmp_path: Path) -> None:
    """A gap that can't be closed: the pod's blocks are forgotten, it is degraded and says why, until it restarts."""
    pod = PodProcess("pod-0")
    with pods(pod), gateway(tmp_path, [pod.configured], events=ONE_REPLAY) as served:
        held = prompt_ids(2000)
        await complete(pod.address, held)
        await eventually(lambda: not wrong_matches(served, [pod], [held]))
        pod.fault(silent=True, no_replay=True)
        await complete(pod.address, prompt_ids(2001))
        pod.fault(silent=False)
        await complete(pod.address, prompt_ids(2002))
        known = await eventually(lambda: (r := rank(served, pod.name))["events"]["counts"].get("replay failed") and r)
        assert known["state"] == "degraded" and known["reasons"]
        assert served.metric('warmroute_pod_state{pod="pod-0",state="degraded"}') == 1
        assert served.metric('warmroute_event_replays_total{pod="pod-0",result="failed"}') >= 1
        assert [said for _, _, said in wrong_matches(served, [pod], [held])] == [0]  # held, and not believed any more
        pod.fault(clear=True, restart=True)
        await complete(pod.address, prompt_ids(2003))
        await eventually(lambda: rank(served, pod.name)["state"] == "exact")
        assert not wrong_matches(served, [pod], [held, prompt_ids(2001), prompt_ids(2003)])


async def test_restart_under_the_same_address(served: GatewayProcess, fleet: list[PodProcess]) -> None:
    """Sequence numbers from 0 again: what the old process held is forgotten, what the new one holds is learned."""
    pod = fleet[0]
    old, new = prompt_ids(3000), prompt_ids(3001)
    await complete(pod.address, old)
    await eventually(lambda: not wrong_matches(served, fleet, [old]))
    pod.fault(restart=True)
    await complete(pod.address, new)
    await eventually(lambda: not wrong_matches(served, fleet, [old, new]))
    assert rank(served, pod.name)["events"]["counts"]["restart"] >= 1


def retries(served: GatewayProcess) -> float:
    """Attempts given up for a pod that could not be reached or broke off."""
    reasons = ("broken_response", "connect_failed")
    return sum(served.metric(f'warmroute_retries_total{{reason="{reason}"}}') for reason in reasons)


async def test_retry_reaches_the_other_pod(
    http: httpx.AsyncClient, served: GatewayProcess, fleet: list[PodProcess]
) -> None:
    """A pod that cuts connections before its first byte: its requests are served by the other, and counted."""
    ids = prompt_ids(4000)
    await complete(fleet[0].address, ids)
    await eventually(lambda: not wrong_matches(served, fleet, [ids]))
    before = retries(served)
    fleet[0].fault(refuse="close")
    try:
        answer = await complete(served.url, ids)
    finally:
        fleet[0].fault(clear=True)
    assert (answer.status_code, answer.headers["x-warmroute-pod"]) == (200, "pod-1")
    assert retries(served) == before + 1
    await eventually(lambda: all(pod["fit"] for pod in served.get("/pods").json()["pods"]))


async def test_errors_in_streams_are_the_pods_failures(tmp_path: Path) -> None:
    """Below a head that says 200, one pod tells errors at once: it is ejected as if its status had said so, is believed
    to be no faster for it, and what it says is counted as what it is."""
    fleet = [PodProcess("pod-0", ("--fault", "fail_after_chunks=0")), PodProcess("pod-1")]
    breaker = {"failure_share": 0.5, "requests_min": 4, "open_time": 60}
    with pods(*fleet), contextlib.ExitStack() as stack:
        static = [pod.configured for pod in fleet]
        given: dict[str, Any] = {"breaker": breaker, "scoring": {"policy": "round-robin"}}
        served = await asyncio.to_thread(stack.enter_context, gateway(tmp_path, static, **given))
        async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
            for number in range(40):
                body = {"model": MODEL, "prompt": f"{number} words", "max_tokens": 2, "stream": True}
                assert (await http.post("/v1/completions", json=body)).status_code == 200
        failed = served.metric(f'warmroute_requests_total{{code="500",model="{MODEL}",pod="pod-0"}}')
        fine = served.metric(f'warmroute_requests_total{{code="200",model="{MODEL}",pod="pod-1"}}')
        assert 4 <= failed <= 6 and fine == 40 - failed
        assert served.metric("warmroute_time_to_first_byte_seconds_count") == fine
        assert "pod-0 is ejected" in served.logged()


async def test_stream_is_cut_and_not_retried(served: GatewayProcess, fleet: list[PodProcess]) -> None:
    """A pod that dies after its first bytes: the client sees a broken response and no second one; no load stays."""
    for pod in fleet:
        pod.fault(die_after_chunks=3)
    finished = sum(pod.served() for pod in fleet)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 50, "stream": True}
    try:
        with pytest.raises(httpx.RemoteProtocolError):
            async with (
                httpx.AsyncClient(base_url=served.url, **PLAIN) as http,
                http.stream("POST", "/v1/completions", json=body) as stream,
            ):
                assert stream.status_code == 200
                async for _ in stream.aiter_bytes():
                    pass
    finally:
        for pod in fleet:
            pod.fault(clear=True)
    await eventually(lambda: not sum(r["load"]["requests"] for ranks in served.ranks().values() for r in ranks))
    assert sum(pod.served() for pod in fleet) <= finished + 1


async def test_kill_and_come_back(tmp_path: Path) -> None:
    """kill -9 under traffic: every request is answered; restarted, the pod is believed to be empty, and is learned."""
    fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet]) as served:
        doomed = fleet[0]
        held = prompt_ids(1)
        await complete(doomed.address, held)
        await eventually(lambda: not wrong_matches(served, fleet, [held]))
        codes: list[int] = []

        async def traffic(seed: int) -> None:
            for number in range(15):
                answer = await complete(served.url, prompt_ids(100 * seed + number), 50)
                codes.append(answer.status_code)

        clients = [asyncio.create_task(traffic(seed)) for seed in range(6)]
        await eventually(lambda: len(codes) > 15)
        doomed.kill()
        await asyncio.gather(*clients)
        assert codes == [200] * 90
        await eventually(lambda: not served.get("/pods").json()["pods"][0]["healthy"])
        assert (await complete(served.url, held)).headers["x-warmroute-pod"] == "pod-1"
        doomed.start()
        await asyncio.to_thread(doomed.wait)
        await eventually(lambda: served.get("/pods").json()["pods"][0]["fit"])
        await eventually(lambda: rank(served, "pod-0")["blocks"]["gpu"] == 0)
        await complete(doomed.address, prompt_ids(2))
        await eventually(lambda: not wrong_matches(served, fleet, [held, prompt_ids(2)]))
        assert rank(served, "pod-0")["blocks"]["gpu"] > 0
        assert rank(served, "pod-0")["state"] == "exact"


async def test_garbage(tmp_path: Path) -> None:
    """A feed that speaks nonsense is counted and degraded; requests and the process do not mind."""
    (port,) = free_ports()
    fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
    with pods(*fleet), zmq.Context() as context, context.socket(zmq.PUB) as pub:
        pub.bind(f"tcp://127.0.0.1:{port}")
        spoiled = {**fleet[1].configured, "events": f"tcp://127.0.0.1:{port}", "replay": None}
        with gateway(tmp_path, [fleet[0].configured, spoiled]) as served:
            garbage = [
                [b"only one part"],
                [b"", b"short", b"x"],
                [b"", (0).to_bytes(8, "big"), b"no msgpack \xc1"],
                [b"", (1).to_bytes(8, "big"), b"\x93\xcb" + b"\x00" * 8 + b"\x91\x01\x00"],
                [b"", b"\xff" * 8, b"\x90"],
                [b"a", b"b", b"c", b"d"],
            ]

            def errors() -> float:
                return served.metric('warmroute_event_decode_errors_total{pod="pod-1"}')

            async def until_counted(count: int) -> None:
                for _ in range(100):  # PUB drops what it sends before the subscriber is there
                    for message in garbage:
                        pub.send_multipart(message)
                    if await asyncio.to_thread(errors) >= count:
                        return
                    await asyncio.sleep(0.05)
                raise AssertionError("garbage was not counted")

            await until_counted(2 * len(garbage))
            known = rank(served, "pod-1")
            assert known["state"] == "degraded" and known["reasons"]
            assert rank(served, "pod-0")["state"] == "exact"
            for number in range(4):
                assert (await complete(served.url, prompt_ids(number))).status_code == 200
            assert served.process.poll() is None
