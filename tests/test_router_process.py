"""The gateway as a server process: its ports, its operator key, data-parallel ranks, and how it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from router.service import NO_PODS
from tests.fakes.houses import reply
from tests.fakes.peers import Call, peer, until
from tests.fakes.processes import MODEL, PLAIN, ROOT, PodProcess, eventually, gateway, pods


async def healthy(call: Call) -> None:
    """A pod that is well."""
    await call.read_body()
    models = b'{"data": [{"id": "%b"}]}' % MODEL.encode()
    await call.send(reply(200, models if call.head.startswith(b"GET /v1/models ") else b"{}"))


async def test_ops_port_and_ranks(tmp_path: Path) -> None:
    """Operators' endpoints have a port and a key of their own; each rank of a pod is a candidate, and is told apart."""
    pod = PodProcess("pod-0", ranks=2)
    own = {"ops_port": 0, "operator_key": "secret-key"}
    with pods(pod), gateway(tmp_path, [pod.configured], gateway=own) as served:
        async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
            for path in ("/metrics", "/pods", "/decisions", "/cache/status"):
                assert (await http.get(path)).status_code == 404
                for key in (None, "Bearer wrong", "secret"):
                    refused = served.get(path, headers={} if key is None else {"authorization": key})
                    assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
                assert served.get(path, headers={"authorization": "Bearer secret-key"}).status_code == 200
            assert served.get("/healthz").status_code == served.get("/readyz").status_code == 200
            homes: dict[int, int] = {}
            for turn in range(2):
                for number in range(4):
                    text = f"{number} is the first word of a prompt for a rank; " * 8
                    body = {"model": MODEL, "prompt": text, "max_tokens": 1}
                    sent = await http.post("/v1/completions", json=body)
                    usage = sent.json()["usage"]
                    cached = usage["prompt_tokens_details"]["cached_tokens"]
                    assert cached == int(sent.headers["x-warmroute-matched-tokens"])
                    assert bool(cached) == bool(turn)
                    answer = (await http.post("/score", json={"model": MODEL, "prompt": text})).json()
                    assert [(entry["pod"], entry["rank"]) for entry in answer["pods"]] == [("pod-0", 0), ("pod-0", 1)]
                    assert homes.setdefault(number, answer["rank"]) == answer["rank"]
            assert set(homes.values()) == {0, 1}
            finished = [rank["finished"] for rank in pod.state()["ranks"]]
            assert finished == [2 * list(homes.values()).count(rank) for rank in (0, 1)]


async def test_without_pods(tmp_path: Path) -> None:
    """With no pod there is a process that is up, not ready, and says why."""
    with gateway(tmp_path, [], ready=False) as served:
        unready = served.get("/readyz")
        assert (unready.status_code, unready.json()["reasons"]) == (503, [NO_PODS])
        async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
            assert (await http.get("/v1/models")).json()["data"] == []
            nobody = await http.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
            assert nobody.status_code == 404 and "No pod has told" in nobody.json()["error"]["message"]
        served.process.terminate()
        assert await asyncio.to_thread(served.process.wait, 20) == 0


async def test_it_listens_before_it_knows_its_pods(tmp_path: Path) -> None:
    """While a pod is waited for, probes are answered that it starts; who asks for more waits, and is served then."""
    known = asyncio.Event()

    async def slow_to_tell(call: Call) -> None:
        if call.head.startswith(b"GET"):
            await known.wait()
        await healthy(call)

    async with peer(slow_to_tell) as seen:
        with contextlib.ExitStack() as stack:
            given = gateway(tmp_path, [{"name": "pod-0", "address": seen.address}], ready=False, probe={"timeout": 30})
            served = await asyncio.to_thread(stack.enter_context, given)
            await until(lambda: bool(seen.calls))
            unready = await asyncio.to_thread(served.get, "/readyz")
            assert (unready.status_code, unready.json()["reasons"]) == (503, ["starting"])
            async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
                body = {"model": MODEL, "prompt": "x"}
                asking = [
                    asyncio.create_task(http.post(path, json=body)) for path in ("/v1/completions", "/score")
                ]  # fmt: skip
                naming = asyncio.create_task(http.get("/v1/models"))
                done, _ = await asyncio.wait([*asking, naming], timeout=0.3)
                assert not done
                known.set()
                answers = await asyncio.gather(*asking)
                assert [answer.status_code for answer in answers] == [200, 200]
                assert [model["id"] for model in (await naming).json()["data"]] == [MODEL]
            assert (await asyncio.to_thread(served.get, "/readyz")).status_code == 200


async def test_feed_that_is_not_there(tmp_path: Path) -> None:
    """A pod whose feed can't be reached is blind; it does not keep the gateway from being ready."""
    fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
    with pods(*fleet):
        deaf = {**fleet[1].configured, "events": f"tcp://127.0.0.1:{fleet[1].ports[0]}", "replay": None}  # HTTP's port
        with gateway(tmp_path, [fleet[0].configured, deaf]) as served:
            states = {pod: ranks[0]["state"] for pod, ranks in served.ranks().items()}
            assert states == {"pod-0": "exact", "pod-1": "blind"}


async def test_sigterm_finishes_streams(tmp_path: Path) -> None:
    """Told to stop during a stream: unready first, then no new connections; the stream ends whole; exit code 0."""
    pod = PodProcess("pod-0", options=("--time-scale", "0.5"))
    with pods(pod), gateway(tmp_path, [pod.configured], gateway={"drain_delay": 1.0}) as served:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}
        async with (
            httpx.AsyncClient(base_url=served.url, **PLAIN) as http,
            http.stream("POST", "/v1/completions", json=body) as stream,
        ):
            lines = stream.aiter_lines()
            got = [await anext(lines)]
            served.process.send_signal(signal.SIGTERM)
            unready = await eventually(lambda: (r := served.get("/readyz")).status_code == 503 and r)
            assert unready.json()["reasons"] == ["draining"]
            await eventually(lambda: _refuses(served.url))
            assert served.process.poll() is None
            got += [line async for line in lines]
        data = [line for line in got if line]
        assert data[-1] == "data: [DONE]" and len(data) > 200
        assert await asyncio.to_thread(served.process.wait, 20) == 0
        assert "Traceback" not in served.logged()


@pytest.mark.parametrize("words", ["nothing that finds them", "requests to models", "Started server process"])
def test_told_to_leave_while_it_starts(words: str) -> None:
    """Before it listens, nothing is to be waited for: it ends well at whatever moment that is."""
    command = [sys.executable, "-m", "router", "serve", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while words not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def _refuses(url: str) -> bool:
    """Is nobody listening any more?"""
    with contextlib.suppress(httpx.TransportError):  # refused, or reset with the socket that it waited at
        httpx.get(f"{url}/healthz", **PLAIN)
        return False
    return True
