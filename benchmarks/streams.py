"""What an open, silent stream costs the gateway: resident memory and CPU each, beside a plain FastAPI + httpx proxy.

Pods, gateways and clients are processes of their own: each has the file limit for itself (a gateway needs two files a
stream). Prompts are few and asked before, so that caches of prompts do not count. The gateway is `warmroute serve`
itself: it tokenizes, looks up and predicts; the peer forwards, nothing more, and gets fewer streams, as its connection
pool takes time that grows with their square.

    python -m benchmarks.streams --streams 10000 --peer-streams 1000
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

from benchmarks.proxy import ask, cpu_s, free_port, pinned, rss_mib, wait_until_listening
from benchmarks.proxy_load import PATH, payload

PODS = 4
PROMPTS = 100
PROMPT_BYTES = 1_900
SPARE_FILES = 200
OPENING = 100  # streams that are being opened at one time
SILENT_MS = 3_600_000
SETTLE_S = 2.0  # for bodies and tasks to go, and the allocator to be quiet
IDLE_S = 10.0
ROUTER_CORE, OTHERS_CORE = 0, 1
TOKENIZER = Path(__file__).parents[1] / "tests" / "vectors" / "vllm-0.32.0" / "tokenizer"


class Cost(NamedTuple):
    """Of one gateway."""

    streams: int
    kib: float  # each
    open_us: float  # CPU, each
    idle_share: float  # of a core, for all of them


def prompt(number: int) -> bytes:
    """One of `PROMPTS` streamed chats."""
    body = json.loads(payload(PROMPT_BYTES, True))
    body["messages"][0]["content"] = f"{number % PROMPTS} {body['messages'][0]['content']}"
    return json.dumps(body).encode()


# --- clients: run as `python -m benchmarks.streams --clients PORT`


class Client(asyncio.Protocol):
    """Asks, and says when the first event is there; after that it only listens."""

    def __init__(self, request: bytes, began: asyncio.Future[None]) -> None:
        self._request = request
        self._began = began
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._began.done():
            return
        self._seen += data
        if b"\r\n\r\n" in self._seen and not self._seen.startswith(b"HTTP/1.1 200"):
            self._began.set_exception(RuntimeError(repr(self._seen[:300])))
        elif b"data: " in self._seen:
            self._began.set_result(None)
            self._seen = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._began.done():
            self._began.set_exception(exc or ConnectionError("closed before the first event"))


async def hold(port: int, streams: int) -> None:
    """Open them, say so in a line, and hold them until a line comes in."""
    loop, room = asyncio.get_running_loop(), asyncio.Semaphore(OPENING)
    transports = []

    async def one(number: int) -> None:
        body = prompt(number)
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        async with room:
            began = loop.create_future()
            transport, _ = await loop.create_connection(lambda: Client(head.encode() + body, began), "127.0.0.1", port)
            transports.append(transport)
            await began

    await asyncio.gather(*(one(number) for number in range(streams)))
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0)


@contextlib.contextmanager
def held(port: int, streams: int) -> Iterator[None]:
    """So many streams are open inside."""
    command = ["taskset", "-c", str(OTHERS_CORE), sys.executable, "-m", "benchmarks.streams", "--clients", str(port)]
    process = subprocess.Popen(
        [*command, "--streams", str(streams)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "open\n":
            raise SystemExit(f"{streams} streams could not be opened: see above")
        yield
    finally:
        process.communicate("close\n")


# --- measuring


def measure(pid: int, port: int, streams: int) -> Cost:
    """A gateway that is up. What the first fifth costs is not counted: it takes memory that was there, and warms."""
    first = streams // 5
    with held(port, first):
        time.sleep(SETTLE_S)
        before_mib, before_s = rss_mib(pid), cpu_s(pid)
        with held(port, streams - first):
            opened_s = cpu_s(pid)
            time.sleep(SETTLE_S)
            settled_s = cpu_s(pid)
            time.sleep(IDLE_S)
            idle_share = (cpu_s(pid) - settled_s) / IDLE_S
            kib = (rss_mib(pid) - before_mib) * 1024 / (streams - first)
    return Cost(streams, kib, (opened_s - before_s) / (streams - first) * 1e6, idle_share)


def ours(folder: Path, port: int, pods: list[str], streams: int) -> list[str]:
    """`warmroute serve` with room for so many."""
    room = streams + SPARE_FILES
    config = {
        "gateway": {"host": "127.0.0.1", "port": port, "requests_max": room, "connections_max": room},
        "discovery": {"static": [{"name": f"pod-{n}", "address": pod} for n, pod in enumerate(pods)]},
        "models": [{"name": "mock", "tokenizer": str(TOKENIZER), "block_size": 16}],
        "upstream": {"connections_max": room, "idle_timeout": "1h"},
        "parity": {"first": 0, "share": 0},
    }
    file = folder / "warmroute.json"
    file.write_text(json.dumps(config))
    return [sys.executable, "-m", "router", "serve", "--config", str(file)]


def wait_ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            status, _ = ask(port, payload(100, False))
            if status == 200:
                return
        time.sleep(0.2)
    raise SystemExit("the gateway does not answer")


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Cost]:
    ports = [free_port() for _ in range(PODS)]
    pods = [f"http://127.0.0.1:{port}" for port in ports]
    serve_pods = [sys.executable, "-m", "benchmarks.proxy_pods", "--ports", ",".join(map(str, ports))]
    costs = {}
    with pinned([*serve_pods, "--sse-gap-ms", str(SILENT_MS)], OTHERS_CORE, folder / "pods.log"):
        for port in ports:
            wait_until_listening(port)
        port = free_port()
        with pinned(ours(folder, port, pods, options.streams), ROUTER_CORE, folder / "ours.log") as process:
            wait_ready(port)
            costs["ours"] = measure(process.pid, port, options.streams)
        port = free_port()
        peer = [sys.executable, "-m", "benchmarks.proxy_fastapi", "--port", str(port), "--pods", ",".join(pods)]
        with pinned(peer, ROUTER_CORE, folder / "fastapi.log") as process:
            wait_ready(port)
            costs["fastapi"] = measure(process.pid, port, options.peer_streams)
    return costs


def open_files(streams: int) -> int:
    """How many streams a gateway can have under the file limit, which is raised if that is allowed."""
    wanted = 2 * streams + SPARE_FILES
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    return min(streams, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES) // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--peer-streams", type=int, default=1_000)
    parser.add_argument("--clients", type=int, metavar="PORT", help="only hold streams: what this module runs itself")
    options = parser.parse_args()
    if options.clients is not None:
        uvloop.run(hold(options.clients, options.streams))
        return
    possible = open_files(options.streams)
    if possible < options.streams:
        print(f"the file limit allows {possible} streams, not {options.streams}")
        options.streams = possible
    with tempfile.TemporaryDirectory(prefix="warmroute-bench-") as folder:
        costs = compare(options, Path(folder))
    print(f"{'gateway':10} {'streams':>8} {'KiB each':>9} {'x ours':>7} {'CPU us to open':>15} {'idle, of a core':>16}")
    for name, cost in costs.items():
        ratio = cost.kib / costs["ours"].kib
        print(f"{name:10} {cost.streams:8} {cost.kib:9.1f} {ratio:7.2f} {cost.open_us:15.0f} {cost.idle_share:16.2%}")


if __name__ == "__main__":
    main()
