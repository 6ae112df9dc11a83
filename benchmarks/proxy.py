"""CPU per proxied request: ours against a plain FastAPI + httpx proxy, and a peer where it is installed.

Each gateway runs alone on core 0, the mock pods and the load generator on core 1. CPU is the gateway process's own
accounting over a round; rounds are interleaved so that a noisy machine is noisy for all; medians are printed.
`direct` is the load without any gateway: what its times are less, the gateways add.

    python -m benchmarks.proxy --seconds 5 --rounds 3
    python -m benchmarks.proxy --peer-venv /path/to/venv/with/sglang-router
    python -m benchmarks.proxy --aiohttp /path/to/python/with/fastapi/and/aiohttp
    python -m benchmarks.proxy --router 'warmroute serve --port {port} {pod_flags}'
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.proxy_load import PATH, Load, payload, run_asyncio, run_wrk
from benchmarks.proxy_pods import start_nginx

GATEWAY_CORE, LOAD_CORE = 0, 1
PODS = 4
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
READY_TIMEOUT_S = 30.0


class Case(NamedTuple):
    """One kind of work."""

    name: str
    prompt_bytes: int
    stream: bool
    unique: bool = False  # no two prompts begin alike


CASES = (
    Case("2 KB", 1_900, False),
    Case("2 KB unique", 1_900, False, unique=True),
    Case("32 KB", 32_000, False),
    Case("SSE x 50", 1_900, True),
)


class Round(NamedTuple):
    """One gateway, one case, one time."""

    cpu_us: float
    load: Load
    per_s: float


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_mib(pid: int) -> float:
    """Resident memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def pinned(command: list[str], core: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one core; it is terminated in the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=output, stderr=output)
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate, and kill what does not go."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def mock_pods(stream: bool, ports: list[int], folder: Path) -> Iterator[str]:
    """The pods of a case; yields what they are."""
    nginx = None if stream else start_nginx(ports, folder)
    if nginx is not None:
        os.sched_setaffinity(nginx.pid, {LOAD_CORE})
        try:
            yield "nginx"
        finally:
            stop(nginx)
        return
    command = [sys.executable, "-m", "benchmarks.proxy_pods", "--ports", ",".join(map(str, ports))]
    with pinned(command, LOAD_CORE, folder / "pods.log"):
        yield "asyncio"


def commands(options: argparse.Namespace, pods: list[str]) -> dict[str, tuple[int, list[str]]]:
    """name -> (port, command) of each gateway to measure."""
    found: dict[str, tuple[int, list[str]]] = {}
    pythons = {"ours": sys.executable, "fastapi": sys.executable, "aiohttp": options.aiohttp}
    for name, python in pythons.items():
        if python is not None:
            port = free_port()
            module = f"benchmarks.proxy_{name}"
            found[name] = (port, [python, "-m", module, "--port", str(port), "--pods", ",".join(pods)])
    if options.peer_venv is not None:
        port = free_port()
        launch = [str(options.peer_venv / "bin/python"), "-m", "sglang_router.launch_router", "--policy", "cache_aware"]
        metrics = ["--prometheus-port", str(free_port()), "--log-level", "error"]
        where = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", *pods]
        found["sglang-router"] = (port, [*launch, *metrics, *where])
    for number, template in enumerate(options.router):
        port = free_port()
        flags = " ".join(f"--pod name=pod-{place},address={pod}" for place, pod in enumerate(pods))
        command = template.format(port=port, pods=",".join(pods), pod_flags=flags)
        found[f"router-{number}"] = (port, shlex.split(command))
    return found


def ask(port: int, body: str) -> tuple[int, bytes]:
    """One request, whole."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_TIMEOUT_S)
    try:
        connection.request("POST", PATH, body.encode(), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_ready(name: str, port: int, body: str, expected: bytes) -> None:
    """Return when the gateway gives the pods' own answer."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    answer: tuple[int, bytes] | OSError | None = None
    while time.monotonic() < deadline:
        try:
            answer = ask(port, body)
        except (OSError, http.client.HTTPException) as error:
            answer = error if isinstance(error, OSError) else None
        if answer == (200, expected):
            return
        time.sleep(0.2)
    raise SystemExit(f"{name} does not give the pods' answer: {answer!r}")


def one_round(pid: int, port: int, case: Case, options: argparse.Namespace, folder: Path, seconds: float) -> Round:
    """Load for a while; CPU is the gateway's alone."""
    body = payload(case.prompt_bytes, case.stream, case.unique)
    before, began = cpu_s(pid), time.monotonic()
    load = run_wrk(port, body, options.connections, seconds, LOAD_CORE, folder)
    load = load or run_asyncio(port, body, options.connections, seconds, LOAD_CORE)
    spent_s, took_s = cpu_s(pid) - before, time.monotonic() - began
    return Round(spent_s / max(1, load.requests) * 1e6, load, load.requests / took_s)


def measure(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, tuple[list[Round], float]]:
    """name -> (rounds, RSS in MiB) of all gateways on one case."""
    ports = [free_port() for _ in range(PODS)]
    pods = [f"http://127.0.0.1:{port}" for port in ports]
    body = payload(case.prompt_bytes, case.stream, case.unique)
    with contextlib.ExitStack() as stack:
        kind = stack.enter_context(mock_pods(case.stream, ports, folder))
        for port in ports:
            wait_until_listening(port)
        expected = ask(ports[0], body)[1]
        running: dict[str, tuple[int, int]] = {}
        for name, (port, command) in commands(options, pods).items():
            process = stack.enter_context(pinned(command, GATEWAY_CORE, folder / f"{name}.log"))
            wait_ready(name, port, body, expected)
            running[name] = (process.pid, port)
        running["direct"] = (os.getpid(), ports[0])
        for pid, port in running.values():
            one_round(pid, port, case, options, folder, 1.0)
        print(f"\n{case.name}, {options.connections} connections, {PODS} {kind} pods", flush=True)
        rounds: dict[str, list[Round]] = {name: [] for name in running}
        for _ in range(options.rounds):
            for name, (pid, port) in running.items():
                rounds[name].append(one_round(pid, port, case, options, folder, options.seconds))
        return {name: (rounds[name], rss_mib(pid)) for name, (pid, _) in running.items()}


def wait_until_listening(port: int) -> None:
    """Return when something listens."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def print_table(results: dict[str, tuple[list[Round], float]]) -> None:
    """Medians over the rounds, and CPU as a ratio to ours."""
    columns = ("CPU us/req", "x ours", "req/s", "p50 ms", "p99 ms", "errors", "RSS MiB")
    print(f"{'gateway':14} " + " ".join(f"{column:>10}" for column in columns))
    ours = statistics.median(each.cpu_us for each in results["ours"][0])
    for name, (rounds, rss) in results.items():
        cpu_us = statistics.median(each.cpu_us for each in rounds)
        per_s = statistics.median(each.per_s for each in rounds)
        p50, p99 = (statistics.median(getattr(each.load, at) for each in rounds) for at in ("p50_ms", "p99_ms"))
        errors = sum(each.load.errors for each in rounds)
        figures = (cpu_us, cpu_us / ours, per_s, p50, p99, errors, rss)
        texts = [f"{figure:10.2f}" if figure < 100 else f"{figure:10.0f}" for figure in figures]
        if name == "direct":
            texts = [f"{'':10}" if place in (0, 1, 6) else text for place, text in enumerate(texts)]
        print(f"{name:14} " + " ".join(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3, help="per gateway, interleaved")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="only this one")
    parser.add_argument("--peer-venv", type=Path, help="a venv with sglang-router")
    parser.add_argument("--aiohttp", metavar="PYTHON", help="one that has FastAPI, uvicorn with uvloop, and aiohttp")
    parser.add_argument("--router", action="append", default=[], help="a command with {port} and {pods} or {pod_flags}")
    options = parser.parse_args()
    if os.cpu_count() == 1:
        raise SystemExit("Two cores are needed: one for the gateway, one for pods and load.")
    for case in CASES:
        if options.case is None or case.name in options.case:
            with tempfile.TemporaryDirectory(prefix="warmroute-bench-") as folder:
                print_table(measure(case, options, Path(folder)))


if __name__ == "__main__":
    main()
