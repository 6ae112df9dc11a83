"""The operators' plane, without sockets: the key, what may be asked, what is forgotten, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router.endpoints.app import create_app
from tests.fakes.cores import MODEL, SERVED, asked, held, store
from tests.fakes.services import operators

READS = ("/metrics", "/pods", "/decisions", "/cache/status", "/sessions")
WRITES = ("/pods/pod-0/drain", "/pods/pod-0/undrain", "/cache/invalidate", "/cache/clear", "/cache/cleanup")


async def test_key() -> None:
    """With a key, nothing is told and nothing is changed without it; health is open to all."""
    async with operators(operator_key="k3y") as (client, service):
        for method, paths in (("GET", READS), ("POST", WRITES)):
            for path in paths:
                for given in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer k3"}, {"x-key": "k3y"}):
                    refused = await client.request(method, path, headers=given)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_operator_key"), path
        assert not service.core.fleet.pods["pod-0"].draining
        for path in READS:
            assert (await client.get(path, headers={"authorization": "Bearer k3y"})).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        odd = await client.get("/pods", headers={"authorization": "Bearer ké".encode()})
        assert odd.status_code == 401


async def test_no_key() -> None:
    """Without a key all of it is open."""
    async with operators() as (client, _):
        for path in READS:
            assert (await client.get(path)).status_code == 200


async def test_own_port_leaves_the_data_plane() -> None:
    """With a port of their own, operators' endpoints are not on the data port."""
    for port, status in ((None, 200), (9999, 404)):
        async with operators(ops_port=port) as (_, service):
            app: Any = create_app(service)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data") as client:
                assert (await client.get("/pods")).status_code == status
                assert (await client.get("/healthz")).status_code == 200


@contextlib.asynccontextmanager
async def on_the_data_port(client: str, **gateway: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client with this address, of a gateway whose operators' endpoints are on the data port."""
    async with operators(**gateway) as (_, service):
        app: Any = create_app(service)
        transport = httpx.ASGITransport(app, client=(client, 5555))
        async with httpx.AsyncClient(transport=transport, base_url="http://data") as asking:
            yield asking


async def test_changes_on_the_data_port() -> None:
    """Whoever reaches the data port may look, not change: that takes the machine itself, or the operator key."""
    pod = {"authorization": "Bearer k3y"}
    for client, headers, status in (
        ("10.0.0.9", {}, 403), ("2001:db8::1", {}, 403), ("127.0.0.1", {}, 200), ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200), ("fe80::1%eth0", {}, 403),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.9"}, 403), ("127.0.0.1", {"forwarded": "for=10.0.0.9"}, 403),
        ("127.0.0.1", {"origin": "https://evil.example"}, 403),
    ):  # fmt: skip
        async with on_the_data_port(client) as asking:
            for path in WRITES:
                answer = await asking.post(path, json={}, headers=headers)
                assert answer.status_code == status, (client, headers, path)
                if status == 403:
                    assert answer.json()["error"]["type"] == "permission_error"
            assert {(await asking.get(path)).status_code for path in READS} == {200}
    async with on_the_data_port("10.0.0.9", operator_key="k3y") as asking:
        for path in WRITES:
            assert (await asking.post(path, json={})).status_code == 401
            assert (await asking.post(path, json={}, headers=pod)).status_code == 200


async def test_drain() -> None:
    """Drained and back, by name; an unknown name is a 404 with an error body."""
    async with operators() as (client, service):
        pod = service.core.fleet.pods["pod-1"]
        assert (await client.post("/pods/pod-1/drain")).json() == {"pod": "pod-1", "draining": True, "requests": 0}
        assert pod.draining
        assert (await client.get("/pods")).json()["pods"][1]["fit"] is False
        await client.post("/pods/pod-1/undrain")
        assert not pod.draining
        unknown = await client.post("/pods/pod-9/drain")
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")


async def test_undrained_while_it_hands_over() -> None:
    """Who undrains has the last word: the drain that still waits for heirs says so, and the pod is used."""
    async with operators() as (client, service):
        core = service.core
        core.fleet.pods["pod-1"].believe(False)  # nobody is there who could inherit
        store(core, "pod-0", 1)
        service.handover.recent.note("/v1/completions", b"{}", asked(core, 1, is_alone=True), time.monotonic())
        drain = asyncio.create_task(client.post("/pods/pod-0/drain?wait=60"))
        async with asyncio.timeout(10):
            while not drain.done():
                await client.post("/pods/pod-0/undrain")
        answer = await drain
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "called_off")
        assert not core.fleet.pods["pod-0"].draining


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ({"pod": "pod-0"}, [0, 10]),
        ({"model": "only-1"}, [10, 0]),
        ({"model": MODEL}, [0, 0]),
        ({"keys": [1, 2, 3, (1 << 64) - 1]}, [10, 10]),
        ({}, [10, 10]),
    ],
    ids=["pod", "model of one", "model of both", "keys", "nothing"],
)
async def test_invalidate(what: dict[str, Any], left: list[int]) -> None:
    """Exactly what was named is forgotten."""
    async with operators() as (client, service):
        for pod in ("pod-0", "pod-1"):
            store(service.core, pod, 1)
        answer = await client.post("/cache/invalidate", json=what)
        assert answer.status_code == 200
        assert [held(service.core, pod, 1) for pod in ("pod-0", "pod-1")] == left
        assert answer.json()["pods"] == [
            pod for pod, blocks in zip(("pod-0", "pod-1"), left, strict=True) if not blocks
        ]


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ({"keys": [-1]}, 400), ({"keys": [1 << 64]}, 400), ({"keys": ["x"]}, 400),
        pytest.param({"keys": [1] * 10_001}, 400, id="too many"),
        ({"unheard": 1}, 400), ([], 400), ({"pod": "pod-9"}, 404), ({"model": "unheard"}, 404),
    ],
    ids=str,
)  # fmt: skip
async def test_bad_invalidate(what: object, status: int) -> None:
    """Refused with an error body, and nothing is forgotten."""
    async with operators() as (client, service):
        store(service.core, "pod-0", 1)
        answer = await client.post("/cache/invalidate", json=what)
        assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True)
        assert held(service.core, "pod-0", 1) == 10


async def test_what_curl_sends_is_read() -> None:
    """JSON is JSON, whatever content-type it says that it is, or none; and what is none is refused in plain words."""
    async with operators() as (client, service):
        for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):
            store(service.core, "pod-0", 1)
            answer = await client.post("/cache/invalidate", content=b'{"pod": "pod-0"}', headers=headers)
            assert (answer.status_code, held(service.core, "pod-0", 1)) == (200, 0)
        answer = await client.post("/cache/invalidate", content=b"pod=pod-0")
        assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("Invalid JSON")


async def test_heads() -> None:
    """`curl -I` is answered as a GET, also where an answer would go on for ever."""
    async with operators() as (client, _service):
        for path, status in (("/pods", 200), ("/metrics", 200), ("/ui", 200), ("/ui/events", 200), ("/nowhere", 404)):
            async with asyncio.timeout(10):
                assert (await client.head(path)).status_code == status, path
        refused = await client.head("/cache/clear")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert (await client.post("/pods")).headers["allow"] == "GET, HEAD"
        assert (await client.get("/")).headers["location"] == "/ui"


async def test_clear_and_status() -> None:
    """Status counts what is held, by pod, rank and tier; after a clear there is nothing."""
    async with operators() as (client, service):
        store(service.core, "pod-0", 1)
        store(service.core, "pod-1", 1, tier="cpu")
        held_by = (await client.get("/cache/status")).json()["index"]["pods"]
        assert [held_by[pod]["0"][tier] for pod, tier in (("pod-0", "gpu"), ("pod-1", "cpu"))] == [10, 10]
        assert (await client.post("/cache/clear")).json()["pods"] == ["pod-0", "pod-1"]
        held_by = (await client.get("/cache/status")).json()["index"]["pods"]
        assert {blocks for ranks in held_by.values() for blocks in ranks["0"].values()} == {0}
        assert (await client.post("/cache/cleanup")).json() == {"removed": 0}


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "x"])
async def test_bad_limit(limit: str) -> None:
    """A limit that is none is refused."""
    async with operators() as (client, _):
        assert (await client.get("/decisions", params={"limit": limit})).status_code == 400


async def test_sessions() -> None:
    """Who lives and where, named or by its chain; what of it is in a pod's cache; who waits, for what, and how long one
    has waited."""
    async with operators() as (client, service):
        core, now = service.core, time.monotonic()
        pod = core.fleet.pods["pod-0"]
        core.fleet.pods["pod-1"].believe(False)
        pod.blocks = 1000
        for name, seed in (("mine", 1), (None, 2), ("mine", 1)):
            prompt = asked(core, seed, 1600)
            placed = core.route(prompt, core.look_up(prompt, None, now), frozenset(), now, session=name)
            core.finish(placed, SERVED, now)
        held = core.hold.put("somebody", b"", 0, 0.0, now - 5.0)
        assert held is not None and core.hold.must_wait(pod.ranks[0].load, 4.0, True, held, now)
        told = (await client.get("/sessions")).json()
        assert [(each["session"], each["named"], each["pod"], each["prompts"]) for each in told["sessions"]] == [
            ("mine", True, "pod-0", 2),
            (told["sessions"][1]["session"], False, "pod-0", 1),
        ]
        assert (told["live"], told["kept"], told["held"], told["waiting_for_room"]) == (2, 2, 1, 0)
        assert told["working_set"] == {"tokens": 3200, "capacity_tokens": 16_000, "ratio": 0.2}
        assert [(each["live_tokens"], each["capacity_tokens"]) for each in told["pods"]] == [(3200, 16_000), (0, None)]
        (waiting,) = told["waiting"]
        assert (waiting["pod"], waiting["prefill_s"]) == (None, 4.0) and waiting["waits_s"] >= 5.0
        assert "no room" in waiting["reason"]
        assert len((await client.get("/sessions?limit=1")).json()["sessions"]) == 1
        page = (await client.get("/metrics")).text
        assert "warmroute_sessions_live 2" in page and "warmroute_sessions_held 1" in page
        assert "warmroute_working_set_ratio 0.2" in page
        prompt = asked(core, 3, 1600)
        core.route(prompt, core.look_up(prompt, None, now), frozenset(), now, held=held)
        newest = (await client.get("/decisions?limit=1")).json()["decisions"][0]
        assert newest["waited_s"] == 5.0 and newest["waited_for"] == "the pod is busy"


async def test_unready() -> None:
    """A service that has not started, or is leaving, says so."""
    async with operators() as (client, service):
        assert (await client.get("/readyz")).json()["reasons"] == ["starting"]
        service.started = True
        assert (await client.get("/readyz")).status_code == 200
        for pod in service.core.fleet.pods.values():
            pod.believe(False)
        told = (await client.get("/readyz")).json()
        unfit = {name: {"fit": False, "reasons": ["it has not been probed yet"]} for name in service.core.fleet.pods}
        assert told == {"ready": False, "reasons": ["no pod is fit"], "pods": unfit}
        service.draining = True
        assert (await client.get("/readyz")).json()["reasons"] == ["draining"]


async def test_matches_are_for_operators_only_where_wanted() -> None:
    """With `tell_matches` off, who may not change anything is not told by /score what is cached either."""
    ask = {"model": MODEL, "token_ids": [1, 2, 3]}
    for client, told in (("10.0.0.9", 403), ("127.0.0.1", 200)):
        async with on_the_data_port(client, tell_matches=False) as asking:
            for _ in range(2):  # the second one is recalled
                assert (await asking.post("/score", json=ask)).status_code == told
            assert (await asking.get("/score", params={"model": MODEL, "prompt": "x"})).status_code == told
        async with on_the_data_port(client) as asking:
            assert (await asking.post("/score", json=ask)).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_keys_are_for_operators(method: str) -> None:
    """/score shows a prompt's keys to operators who ask for them, and nobody else."""
    ask: dict[str, Any] = {"json": {"model": MODEL, "token_ids": list(range(100))}, "params": {}}
    if method == "GET":
        ask = {"params": {"model": MODEL, "prompt": "word " * 100}}
    for client, told in (("10.0.0.9", 403), ("127.0.0.1", 200)):
        async with on_the_data_port(client) as asking:
            for keys in ("true", "1", "true"):
                answer = await asking.request(method, "/score", **ask | {"params": ask["params"] | {"keys": keys}})
                assert answer.status_code == told
            for plain in ({}, {"keys": "false"}):
                answer = await asking.request(method, "/score", **ask | {"params": ask["params"] | plain})
                assert answer.status_code == 200 and "keys" not in answer.json()
            odd = await asking.request(method, "/score", **ask | {"params": ask["params"] | {"keys": "some"}})
            assert odd.status_code == 400


async def test_shown_keys_can_be_invalidated() -> None:
    """Exactly the mappings of prompts that have the block go."""
    async with on_the_data_port("127.0.0.1") as asking:
        shown = {}
        for name, tokens in (("long", list(range(160))), ("short", list(range(64))), ("other", [7] * 160)):
            answer = (await asking.post("/score?keys=true", json={"model": MODEL, "token_ids": tokens})).json()
            shown[name] = answer["keys"][str(answer["block_size"])]
            assert len(shown[name]) == answer["blocks"]
        assert shown["long"][:4] == shown["short"] and not set(shown["long"]) & set(shown["other"])
        for keys, mappings in (
            ([shown["long"][9]], 1),
            ([shown["short"][0]], 1),
            (shown["other"], 1),
            (shown["long"], 0),
        ):
            answer = await asking.post("/cache/invalidate", json={"keys": keys})
            assert answer.json() == {"mappings": mappings, "pods": []}
