"""Several workers behind one port, as real processes: what they know of each other, and what operators hear of all."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import httpx

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, eventually
from tests.fakes.worker_processes import WORKERS, completion, each, pid_of, until_in_flight, workers


def test_connections_spread_and_figures_add_up(tmp_path: Path) -> None:
    """Connections go to all workers about evenly; whichever of them is asked, the figures are those of all."""
    count, pids = 200, Counter[int]()
    with workers(tmp_path, PodProcess("pod-0"), PodProcess("pod-1")) as served:
        for number in range(count):
            answer = httpx.post(f"{served.url}/v1/completions", json=completion(f"{number} is a number"), **PLAIN)
            assert answer.status_code == 200
            pids[pid_of(answer)] += 1
        assert len(pids) == WORKERS and min(pids.values()) > count / WORKERS / 2
        for _ in range(10):  # on a connection of its own each time
            told = served.get("/metrics").text.splitlines()
            values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in told if line[0] != "#"}
            requests = [value for series, value in values.items() if series.startswith("warmroute_requests_total")]
            assert sum(requests) == values["warmroute_request_duration_seconds_count"] == count
            assert values['warmroute_time_to_first_byte_seconds_bucket{le="+Inf"}'] == count
            assert sum(value for series, value in values.items() if "pod_inflight" in series) == 0
            assert values["warmroute_prefix_store_entries"] == count
            assert values['warmroute_pod_state{pod="pod-0",state="exact"}'] == 1
            assert values["warmroute_worker_restarts_total"] == 0
        decisions = served.get("/decisions", params={"limit": 150}).json()["decisions"]
        assert len(decisions) == 150 and {one["worker"] for one in decisions} == set(range(WORKERS))
        assert [one["at"] for one in decisions] == sorted((one["at"] for one in decisions), reverse=True)
        assert served.get("/cache/status").json()["prefix_store"]["lookups"]["miss"] == count


async def test_load_is_seen_by_all(tmp_path: Path) -> None:
    """What one worker has sent counts in the next decisions of the other, and no more once it has ended."""
    with contextlib.ExitStack() as stack:
        fleet = [PodProcess(f"pod-{number}", options=("--time-scale", "0.5")) for number in range(2)]
        served = await asyncio.to_thread(stack.enter_context, workers(tmp_path, *fleet))
        async with each(served) as clients:
            here, there = clients.values()
            asked = completion("a long answer", max_tokens=300, ignore_eos=True, stream=True)
            async with here.stream("POST", "/v1/completions", json=asked) as stream:
                assert stream.status_code == 200
                pod = stream.headers["x-warmroute-pod"]
                for client in (there, here):
                    assert (await until_in_flight(client, 1))[pod] == 1
                inflight = f'warmroute_pod_inflight_requests{{pod="{pod}"}}'
                assert await asyncio.to_thread(served.metric, inflight) == 1  # and not once for each worker
                other = await there.post("/v1/completions", json=completion("another one"))
                assert other.headers["x-warmroute-pod"] != pod
                async for _ in stream.aiter_raw():
                    pass
            assert await eventually(lambda: _are_idle(served))
            assert await until_in_flight(there, 0)


def _are_idle(served: GatewayProcess) -> bool:
    """Whether no worker knows of a request in flight."""
    told = served.get("/pods").json()["workers"]
    return all(rank["load"]["requests"] == 0 for one in told for pod in one["pods"] for rank in pod["ranks"])


async def test_a_prompt_that_another_worker_has_sent_is_followed(tmp_path: Path) -> None:
    """Before any event can tell, the other worker knows where a prefix has gone: equal prompts do not scatter."""
    with contextlib.ExitStack() as stack:
        fleet = [PodProcess(f"pod-{number}", options=("--time-scale", "20")) for number in range(2)]
        served = await asyncio.to_thread(stack.enter_context, workers(tmp_path, *fleet))
        async with each(served) as clients:
            here, there = clients.values()
            text = "the same document for all, and a question about it. " * 40
            first = asyncio.create_task(here.post("/v1/completions", json=completion(text)))
            await eventually(lambda: any(pod.state()["ranks"][0]["running"] for pod in fleet))
            await until_in_flight(there, 1)
            answer = (await there.post("/score", json={"model": MODEL, "prompt": text})).json()
            best = max(answer["pods"], key=lambda pod: pod["matched_tokens"])
            assert best["predicted_blocks"] == best["matched_blocks"] == answer["tokens"] // answer["block_size"]
            assert (await first).headers["x-warmroute-pod"] == best["pod"]


async def test_a_bound_holds_for_all(tmp_path: Path) -> None:
    """As many requests as are allowed, whichever workers they come to."""
    with contextlib.ExitStack() as stack:
        pod = PodProcess("pod-0", options=("--time-scale", "0.5"))
        bounds = {"gateway": {"requests_max": 2}, "admission": {"queue_max": 0}}
        served = await asyncio.to_thread(stack.enter_context, workers(tmp_path, pod, **bounds))
        async with each(served) as clients, contextlib.AsyncExitStack() as streams:
            for number, client in enumerate(clients.values()):
                asked = completion(f"{number}", max_tokens=400, ignore_eos=True, stream=True)
                stream = await streams.enter_async_context(client.stream("POST", "/v1/completions", json=asked))
                assert stream.status_code == 200
            for client in clients.values():
                await until_in_flight(client, len(clients))
                assert (await client.post("/v1/completions", json=completion("x"))).status_code == 429


def test_operators_reach_all(tmp_path: Path) -> None:
    """What an operator changes through one worker holds in all."""
    with workers(tmp_path, PodProcess("pod-0"), PodProcess("pod-1")) as served:
        operators = httpx.Client(base_url=served.ops_url, **PLAIN)

        def drained(pod: int) -> list[bool]:
            return [one["pods"][pod]["draining"] for one in served.get("/pods").json()["workers"]]

        with operators:
            told = {"pod": "pod-0", "draining": True, "requests": 0}
            assert operators.post("/pods/pod-0/drain").json() == told
            assert (drained(0), drained(1)) == ([True] * WORKERS, [False] * WORKERS)
            for number in range(20):
                asked = completion(f"{number} goes elsewhere " * 9)
                sent = httpx.post(f"{served.url}/v1/completions", json=asked, **PLAIN)
                assert sent.headers["x-warmroute-pod"] == "pod-1"
            operators.post("/pods/pod-0/undrain")
            assert drained(0) == [False] * WORKERS
            assert operators.post("/cache/invalidate", json={"pod": "pod-1"}).json()["pods"] == ["pod-1"]
            assert operators.post("/cache/clear").json()["text_blocks"] == 20
            status = operators.get("/cache/status").json()
            assert [one["prefix_store"]["blocks"] for one in status["workers"]] == [0] * WORKERS
            assert operators.post("/pods/pod-9/drain").status_code == 404
            assert operators.post("/cache/invalidate", json={"keys": [-1]}).status_code == 400
            assert operators.get("/decisions", params={"limit": 0}).status_code == 400
            assert operators.delete("/pods").status_code == 405


def test_operators_show_their_key(tmp_path: Path) -> None:
    """Without the operator key nothing is told and nothing is changed, in no worker."""
    own = {"operator_key": "k3y", "ops_port": 0}
    with workers(tmp_path, PodProcess("pod-0"), gateway=own) as served:
        key = {"authorization": "Bearer k3y"}
        for path in ("/metrics", "/pods", "/decisions", "/cache/status"):
            assert served.get(path).status_code == served.get(path, headers={"x-api-key": "no"}).status_code == 401
            assert served.get(path, headers=key).status_code == 200
            assert httpx.get(f"{served.url}{path}", headers=key, **PLAIN).status_code == 404
        refused = httpx.post(f"{served.ops_url}/pods/pod-0/drain", **PLAIN)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        told = served.get("/pods", headers=key).json()
        assert [one["pods"][0]["draining"] for one in told["workers"]] == [False] * WORKERS
        assert served.get("/worker/metrics", headers=key).status_code == 404
