"""Closed-loop load on one address: wrk where it is installed, else an asyncio protocol (slower, and it says so)."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, cast

import httptools
import uvloop

HEADERS = {
    "content-type": "application/json",
    "accept": "application/json",
    "authorization": "Bearer sk-0123456789abcdef",
    "user-agent": "benchmark",
}
PATH = "/v1/chat/completions"


class Load(NamedTuple):
    """What the generator saw. A request counts as an error if its status is not 200 or its connection broke."""

    requests: int
    errors: int
    p50_ms: float
    p99_ms: float


UNIQUE = "0000000000"
"""Stands in a payload where every request has a number of its own."""


def payload(prompt_bytes: int, stream: bool, unique: bool = False) -> str:
    """A chat request of about this size. `unique`: it begins with `UNIQUE`."""
    content = "lorem ipsum " * (prompt_bytes // 12)
    message = {"role": "user", "content": f"{UNIQUE} {content}" if unique else content}
    return json.dumps({"model": "mock", "stream": stream, "messages": [message]})


def run_wrk(port: int, body: str, connections: int, seconds: float, core: int, folder: Path) -> Load | None:
    """One round with wrk; None where it is not installed. Every `UNIQUE` in the body becomes a request's number."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return None
    script = folder / "load.lua"
    headers = "".join(f'wrk.headers["{name}"]="{value}"\n' for name, value in HEADERS.items())
    script.write_text(f'wrk.method="POST"\nwrk.path="{PATH}"\n{headers}wrk.body=[[{body}]]\n' + UNIQUE_LUA + DONE_LUA)
    duration = f"-d{max(1, round(seconds))}s"
    address = f"http://127.0.0.1:{port}"
    command = ["taskset", "-c", str(core), wrk, "-t1", f"-c{connections}", duration, "-s", str(script), address]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"LOAD (\d+) (\d+) ([\d.]+) ([\d.]+)", output)
    assert found is not None, output
    return Load(int(found[1]), int(found[2]), float(found[3]), float(found[4]))


UNIQUE_LUA = f"""
if wrk.body:find("{UNIQUE}") then
  local number = os.time() % 100000 * 100000
  local body = wrk.body
  request = function()
    number = number + 1
    return wrk.format(nil, nil, nil, (body:gsub("{UNIQUE}", string.format("%010d", number))))
  end
end
"""
DONE_LUA = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("LOAD %d %d %f %f", summary.requests, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


def run_asyncio(port: int, body: str, connections: int, seconds: float, core: int) -> Load:
    """One round in a process of its own, pinned to `core`."""
    options = ["--port", str(port), "--connections", str(connections), "--seconds", str(seconds)]
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.proxy_load", *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True, input=body).stdout
    return Load(*json.loads(output))


class Requester(asyncio.Protocol):
    """Sends a request, and the next when its answer is whole."""

    def __init__(self, request: bytes, latencies_s: list[float], errors: list[str]) -> None:
        self._request = request
        self._latencies_s = latencies_s
        self._errors = errors
        self._parser = httptools.HttpResponseParser(self)
        self._began = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def _next(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:
            self._errors.append("status")
        self._latencies_s.append(time.perf_counter() - self._began)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._errors.append(str(exc))


async def _generate(port: int, body: bytes, connections: int, seconds: float) -> Load:
    head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()) + "\r\n"
    latencies_s: list[float] = []
    errors: list[str] = []
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Requester(head.encode() + body, latencies_s, errors), "127.0.0.1", port)
    await asyncio.sleep(seconds)
    latencies_s.sort()
    places = [latencies_s[int(len(latencies_s) * share)] * 1000 for share in (0.5, 0.99)]
    return Load(len(latencies_s), len(errors), *places)


def main() -> None:
    parser = argparse.ArgumentParser(description="The asyncio generator; the request's body comes on stdin.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    body = sys.stdin.buffer.read()
    print(json.dumps(uvloop.run(_generate(options.port, body, options.connections, options.seconds))))


if __name__ == "__main__":
    main()
