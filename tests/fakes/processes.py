"""Simulated pods and the gateway as processes of their own: real sockets, surely stopped."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tests" / "vectors" / "vllm-0.32.0" / "tokenizer"
MODEL = "tiny-qwen"
BLOCK = 16  # tokens
START_S = 30.0  # for a process to be there, on a busy machine
STOP_S = 10.0
PLAIN: Any = {"trust_env": False, "verify": False, "timeout": 20.0}
"""For httpx clients: there is no TLS here, and to load its certificates for each client takes 20 ms."""
_FAST = ("--time-scale", "0.05", "--block-size", str(BLOCK), "--num-blocks", "1024")
_QUICK = {  # the gateway's own clocks, faster than by default
    "probe": {"interval": 0.2, "timeout": 5.0, "failures_max": 2},
}


PORTS = range(18_000, 32_000)
"""Below the ephemeral range, so that no client's socket takes them."""


def _own_ports() -> Iterator[int]:
    """The ports of this process, round and round. Tests that run beside each other have ports of their own."""
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    width = len(PORTS) // int(workers)
    own = PORTS[int(worker.removeprefix("gw")) * width :][:width]
    begin = random.randrange(width)  # what ran before may still hold some
    return itertools.cycle([*own[begin:], *own[:begin]])


_PORTS = _own_ports()


def free_ports(count: int = 1) -> list[int]:
    """Consecutive ports that are free now, and that nobody here was given lately."""
    ports: list[int] = []
    for port in itertools.islice(_PORTS, len(PORTS)):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                ports = []
                continue
        ports = [*ports, port] if ports and port == ports[-1] + 1 else [port]
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports")


@dataclass
class PodProcess:
    """One simulated pod. `start` may be called again after `kill`: it comes back on the same ports."""

    name: str
    options: tuple[str, ...] = ()
    ranks: int = 1
    block: int = BLOCK
    ports: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to start; `wait` for it."""
        http, events, replay = self.ports[0], self.ports[1], self.ports[1 + self.ranks]
        command = [sys.executable, "-m", "simulator", "--port", str(http), "--events-port", str(events)]
        command += ["--replay-port", str(replay), "--data-parallel-size", str(self.ranks)]
        command += ["--model-path", str(TOKENIZER), "--served-model-name", MODEL, *_FAST, *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)

    def wait(self) -> None:
        """Return when it listens."""
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.name} did not start"
        assert json.loads(line)["address"] == self.address

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_S)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def configured(self) -> dict[str, Any]:
        """As the gateway's configuration names it."""
        events, replay = self.ports[1], self.ports[1 + self.ranks]
        return {
            "name": self.name,
            "address": self.address,
            "events": f"tcp://127.0.0.1:{events}",
            "replay": f"tcp://127.0.0.1:{replay}",
            "data_parallel_size": self.ranks,
        }

    def fault(self, **changes: Any) -> None:
        """Change what it does wrong; `clear=True`: nothing more."""
        httpx.post(f"{self.address}/simulator/fault", json=changes, **PLAIN).raise_for_status()

    def state(self) -> dict[str, Any]:
        """The truth."""
        answer: dict[str, Any] = httpx.get(f"{self.address}/simulator/state", **PLAIN).json()
        return answer

    def served(self) -> int:
        """Requests that it has finished, on all ranks."""
        return sum(rank["finished"] for rank in self.state()["ranks"])


@contextlib.contextmanager
def pods(*fleet: PodProcess) -> Iterator[list[PodProcess]]:
    """All of them, started side by side."""
    ports = free_ports(sum(1 + 2 * pod.ranks for pod in fleet))
    for pod in fleet:
        pod.ports, ports = ports[: 1 + 2 * pod.ranks], ports[1 + 2 * pod.ranks :]
    try:
        for pod in fleet:
            pod.start()
        for pod in fleet:
            pod.wait()
        yield list(fleet)
    finally:
        for pod in fleet:
            pod.kill()


@dataclass
class GatewayProcess:
    """`warmroute serve`, and where it is."""

    url: str
    ops_url: str
    process: subprocess.Popen[bytes]
    log: Path

    def logged(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str, **options: Any) -> httpx.Response:
        """A GET to the operators' plane, on a connection of its own."""
        return httpx.get(f"{self.ops_url}{path}", **PLAIN, **options)

    def ranks(self) -> dict[str, list[dict[str, Any]]]:
        """The ranks of each pod, as /pods tells."""
        return {pod["pod"]: pod["ranks"] for pod in self.get("/pods").json()["pods"]}

    def metric(self, series: str) -> float:
        """The value of one series, as it is written: `warmroute_x_total{pod="a"}`. 0 if it is not there."""
        for line in self.get("/metrics").text.splitlines():
            if line.rpartition(" ")[0] == series:
                return float(line.rpartition(" ")[2])
        return 0.0


@contextlib.contextmanager
def gateway(
    folder: Path, static: Sequence[dict[str, Any]], ready: bool = True, **sections: Any
) -> Iterator[GatewayProcess]:
    """The gateway in front of `static` pods, configured by a file; its log is shown if something goes wrong.

    `ready`: wait for /readyz to say 200; else only until it listens.
    """
    port, ops_port = free_ports(2)
    own = sections.pop("gateway", {})
    config = {
        "gateway": {"host": "127.0.0.1", "port": port, **own},
        "discovery": {"static": list(static)},
        "models": [{"name": MODEL, "tokenizer": str(TOKENIZER)}],
        **sections,
        **{name: {**quick, **sections.get(name, {})} for name, quick in _QUICK.items()},
    }
    if own.get("ops_port") == 0:
        config["gateway"]["ops_port"] = ops_port
    file, log = folder / f"{port}.json", folder / f"{port}.log"
    file.write_text(json.dumps(config))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WARMROUTE_")}
    with log.open("wb") as output:
        command = [sys.executable, "-m", "router", "serve", "--config", str(file)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environ)
    url = f"http://127.0.0.1:{port}"
    ops_url = f"http://127.0.0.1:{ops_port}" if own.get("ops_port") == 0 else url
    served = GatewayProcess(url, ops_url, process, log)
    try:
        _await_answer(served, f"{url}/readyz" if ready else f"{url}/healthz")
        yield served
    except BaseException:
        print(f"--- the gateway's log\n{served.logged()[-4000:]}")
        raise
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], stop_s: float = STOP_S) -> None:
    """Told to end, and gone in any case; raises `subprocess.TimeoutExpired` if it did not go by itself."""
    process.terminate()
    try:
        process.wait(stop_s)
    finally:
        process.kill()
        process.wait(stop_s)


def _await_answer(served: GatewayProcess, url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert served.process.poll() is None, "the gateway has ended"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, **PLAIN).is_success:
                return
        time.sleep(0.05)
    raise AssertionError(f"{url} was not 200 within {START_S:g} s")


async def eventually(condition: Any, timeout_s: float = 15.0) -> Any:
    """Wait for something that must come, and return it. `condition` is called in a thread: it may block."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = await asyncio.to_thread(condition)
        if value:
            return value
        assert time.monotonic() < deadline, "what should have come did not"
        await asyncio.sleep(0.05)
