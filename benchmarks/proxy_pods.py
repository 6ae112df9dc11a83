"""Mock pods that cost next to nothing: nginx for JSON where it is installed, an asyncio protocol for the rest.

They say what gateways ask for at start (/health, /v1/models, /get_server_info, /get_model_info, /metrics …).
Run as a module it serves one of them: `python -m benchmarks.proxy_pods --ports 9001,9002 --sse-gap-ms 2`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import cast

import httptools
import uvloop

MODEL = "mock"
USAGE = {
    "prompt_tokens": 500,
    "completion_tokens": 100,
    "total_tokens": 600,
    "prompt_tokens_details": {"cached_tokens": 384},
}
SSE_CHUNKS = 50
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

INFO = {
    "/health": {},
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]},
    "/get_server_info": {"model_path": MODEL, "model_id": MODEL, "served_model_name": MODEL, "dp_size": 1},
    "/server_info": {"model_path": MODEL, "model_id": MODEL, "served_model_name": MODEL, "dp_size": 1},
    "/get_model_info": {"model_path": MODEL, "tokenizer_path": MODEL, "is_generation": True},
    "/model_info": {"model_path": MODEL, "tokenizer_path": MODEL, "is_generation": True},
    "/get_load": [{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}],
}


def completion() -> bytes:
    """One chat completion of about 700 bytes, in the field order of vLLM."""
    message = {"role": "assistant", "content": "lorem ipsum " * 30}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    answer = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    return json.dumps({**answer, "usage": USAGE}, separators=(",", ":")).encode()


def events() -> list[bytes]:
    """`SSE_CHUNKS` events of about 200 bytes, then usage and `[DONE]`, each framed as one HTTP chunk."""
    common = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    choice = {"index": 0, "delta": {"content": " lorem"}, "logprobs": None, "finish_reason": None}
    texts = [json.dumps({**common, "choices": [choice]})] * SSE_CHUNKS
    texts += [json.dumps({**common, "choices": [], "usage": USAGE}), "[DONE]"]
    framed = [f"data: {text}\n\n".encode() for text in texts]
    return [b"%x\r\n%b\r\n" % (len(event), event) for event in framed]


def framed_json(value: object) -> bytes:
    """A whole JSON answer, head and body."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class MockPod(asyncio.Protocol):
    """Answers GET with its information and POST with a completion, or with events `gap_s` apart."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._parser = httptools.HttpRequestParser(self)
        self._events = events()
        self._json = framed_json(completion())
        self._url = b""
        self._body: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            self._transport.write(framed_json(INFO.get(self._url.decode(), {})))
        elif b'"stream":true' in b"".join(self._body).replace(b" ", b""):
            self._transport.write(SSE_HEAD + self._events[0])
            self._loop.call_later(self._gap_s, self._next_event, 1)
        else:
            self._transport.write(self._json)

    def _next_event(self, number: int) -> None:
        if self._transport.is_closing():
            return
        if number == len(self._events) - 1:
            self._transport.write(self._events[number] + b"0\r\n\r\n")
            return
        self._transport.write(self._events[number])
        self._loop.call_later(self._gap_s, self._next_event, number + 1)


async def serve(ports: list[int], gap_s: float) -> None:
    """Serve mock pods on these ports until cancelled."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: MockPod(gap_s), "127.0.0.1", port) for port in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


def nginx_config(ports: list[int], folder: Path) -> str:
    """One worker that answers from memory; request bodies up to 64 KiB stay in memory too."""
    listens = "".join(f"listen 127.0.0.1:{port};" for port in ports)
    infos = "".join(f"location = {path} {{ return 200 '{json.dumps(value)}'; }}" for path, value in INFO.items())
    answer = completion().decode()
    return f"""
        worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
        events {{ worker_connections 4096; }}
        http {{
            access_log off; default_type application/json; keepalive_requests 100000000; keepalive_timeout 75s;
            client_body_buffer_size 128k; client_max_body_size 8m; client_body_temp_path {folder};
            proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
            server {{ {listens} {infos} location / {{ return 200 '{answer}'; }} }}
        }}
    """


def start_nginx(ports: list[int], folder: Path) -> subprocess.Popen[bytes] | None:
    """The native mock pods; None where nginx is not installed."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        return None
    config = folder / "nginx.conf"
    config.write_text(nginx_config(ports, folder))
    return subprocess.Popen([nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", required=True, help="comma-separated")
    parser.add_argument("--sse-gap-ms", type=float, default=2.0)
    options = parser.parse_args()
    uvloop.run(serve([int(port) for port in options.ports.split(",")], options.sse_gap_ms / 1000))


if __name__ == "__main__":
    main()
