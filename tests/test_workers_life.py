"""Several workers behind one port, as real processes: how they start, die, are started again, and leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.fakes.processes import MODEL, PLAIN, ROOT, TOKENIZER, PodProcess, eventually, free_ports
from tests.fakes.worker_processes import WORKERS, completion, each, pid_of, until_in_flight, workers

START_S = 60.0  # for a command that fails, on a busy machine


async def test_killed_worker(tmp_path: Path) -> None:
    """kill -9 of one: the others serve, its load counts no more, and its place is taken with what it knew."""
    with contextlib.ExitStack() as stack:
        fleet = [PodProcess(f"pod-{number}", options=("--time-scale", "0.5")) for number in range(2)]
        served = await asyncio.to_thread(stack.enter_context, workers(tmp_path, *fleet))
        async with each(served) as clients:
            (victim, here), (_, there) = clients.items()
            for number in range(5):
                await here.post("/v1/completions", json=completion(f"{number} was counted"))
            (await here.post("/pods/pod-1/drain")).raise_for_status()
            counted = _requests((await there.get("/metrics")).text)
            asked = completion("a long answer", max_tokens=2000, ignore_eos=True, stream=True)
            async with here.stream("POST", "/v1/completions", json=asked) as stream:
                await until_in_flight(there, 1)
                os.kill(victim, signal.SIGKILL)
                with pytest.raises(httpx.TransportError):
                    async for _ in stream.aiter_raw():
                        pass
            answers = [await there.post("/v1/completions", json=completion(f"{n} was served")) for n in range(5)]
            assert [answer.status_code for answer in answers] == [200] * 5
            await until_in_flight(there, 0)
            await eventually(lambda: served.metric("warmroute_workers") == WORKERS, 30.0)
        assert served.metric("warmroute_worker_restarts_total") == 1
        assert _requests(served.get("/metrics").text) >= counted + 5

        def drained() -> list[bool]:
            return [one["pods"][1]["draining"] for one in served.get("/pods").json()["workers"]]

        assert await eventually(lambda: drained() == [True] * WORKERS)  # before it serves, it asks what others drain
        async with each(served) as clients:
            assert len(clients) == WORKERS and victim not in clients


def _requests(metrics: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith("warmroute_requests_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_sigterm_under_load(tmp_path: Path) -> None:
    """Told to stop: all workers are unready, then leave; every request is answered whole, and the exit code is 0."""
    with contextlib.ExitStack() as stack:
        fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
        gateway = {"drain_delay": 6.0}  # clients have left by then, on any machine
        served = await asyncio.to_thread(stack.enter_context, workers(tmp_path, *fleet, gateway=gateway))
        ended: Counter[str] = Counter()
        leaving = asyncio.Event()

        async def client(number: int) -> None:
            """Sends one request after the other until the gateway is said to be unready, as a balancer does."""
            async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
                while not leaving.is_set():
                    body = completion(f"{number}: {sum(ended.values())}", max_tokens=20, stream=True)
                    answer = await http.post("/v1/completions", json=body)
                    ended["whole" if answer.text.endswith("data: [DONE]\n\n") else "cut"] += 1
                    ended[f"worker {pid_of(answer)}"] += 1

        clients = [asyncio.create_task(client(number)) for number in range(16)]
        await eventually(lambda: sum(ended.values()) > 200)
        served.process.send_signal(signal.SIGTERM)
        await eventually(lambda: served.get("/readyz").status_code == 503)
        before = ended["whole"]
        await eventually(lambda: ended["whole"] > before)  # it serves all the same
        leaving.set()
        await asyncio.gather(*clients)
        assert ended["cut"] == 0
        assert len([name for name in ended if name.startswith("worker")]) == WORKERS
        assert await asyncio.to_thread(served.process.wait, 30) == 0
        assert "Traceback" not in served.logged()


async def test_a_drain_that_waits(tmp_path: Path) -> None:
    """For heirs, for longer than workers have for their answers, as configured and as asked: it is answered by all."""
    with contextlib.ExitStack() as stack:
        fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
        served = await asyncio.to_thread(
            stack.enter_context,
            workers(tmp_path, *fleet, gateway={"workers_timeout": 2.0}, handover={"before": 3.0, "patience": 3600}),
        )
        async with each(served) as clients:
            (here, *_) = clients.values()
            answer = await here.post("/v1/completions", json=completion("what only one holds " * 99))
            holder = answer.headers["x-warmroute-pod"]
            heir = next(pod for pod in fleet if pod.name != holder)
            await eventually(lambda: any(loss["alone_tokens"] for loss in served.get("/scale-in").json()["all"]))
            heir.kill()
            for client in clients.values():
                while (await client.get("/readyz")).json()["pods"][heir.name]["fit"]:
                    await asyncio.sleep(0.05)
            for drain in ("drain", "drain?wait=3.5"):
                told = await here.post(f"/pods/{holder}/{drain}")
                assert told.status_code == 200, told.text
                assert told.json()["draining"] and told.json()["handover"]["done"] == 0
                assert (await here.post(f"/pods/{holder}/undrain")).status_code == 200


async def test_nobody_keeps_them(tmp_path: Path) -> None:
    """Without the process that keeps them, workers leave and leave nothing: nobody else would stop them."""
    with contextlib.ExitStack() as stack:
        served = await asyncio.to_thread(stack.enter_context, workers(tmp_path, PodProcess("pod-0")))
        async with each(served) as clients:
            pids = list(clients)
            folder = served.logged().partition("unix socket ")[2].split("/worker-")[0]
            assert await asyncio.to_thread(os.path.isdir, folder)
        served.process.kill()
        await eventually(lambda: not any(_is_alive(pid) for pid in pids), 30.0)
        assert not await asyncio.to_thread(os.path.exists, folder)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_told_to_leave_while_it_starts(sig: signal.Signals, code: int) -> None:
    """There is nothing to drain yet: it ends as it would later."""
    command = [sys.executable, "-m", "router", "serve", "--host", "127.0.0.1", "--port", "0", "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(sig)
        assert process.wait(START_S) == code
    finally:
        process.kill()
        process.wait(START_S)


def failed(*flags: str) -> list[str]:
    """What `serve` with two workers says when it can't start."""
    command = [sys.executable, "-m", "router", "serve", "--host", "127.0.0.1", "--workers", "2", *flags]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WARMROUTE_")}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=START_S, check=False)
    assert ended.returncode == 1
    return ended.stderr.splitlines()


def test_port_in_use() -> None:
    """Where somebody listens, or a second gateway of this kind would share the port: one plain line."""
    for reuse in (False, True):
        with socket.socket() as other:
            if reuse:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = str(other.getsockname()[1])
            assert failed("--port", port) == [
                f"warmroute: port {port} of 127.0.0.1 is in use: somebody listens there already; "
                "take another one, or 0 for any that is free"
            ]


def test_bad_configuration(tmp_path: Path) -> None:
    """What only a worker can find out is said once, in one line, and nothing is tried again."""
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / name).write_bytes((TOKENIZER / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    port = str(free_ports()[0])
    said = failed("--port", port, "--model", f"name={MODEL},tokenizer={tmp_path}")
    assert len(said) == 1 and said[0].startswith("warmroute: ") and str(tmp_path) in said[0]
    assert failed("--workers", "0")[0].startswith("warmroute: ")
