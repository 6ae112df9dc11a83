"""The gateway between raw clients and hand-written pods: the bytes on both sides, and what each failure becomes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest

from tests.fakes.peers import Call, Handler, Peer, peer
from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, eventually, gateway

METRICS = b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


@dataclass
class Scripted:
    """A pod that serves one model, and answers POSTs (but /tokenize, which it has not) with `answer`, to the byte."""

    name: str
    model: str
    answer: bytes | None = b""
    """b"": the connection is closed instead; None: nothing comes at all."""
    healthy: bool = True
    posts: list[Call] = field(default_factory=list)

    async def handle(self, call: Call) -> None:
        """One request."""
        await call.read_body()
        if call.head.startswith(b"POST ") and not call.head.startswith(b"POST /tokenize "):
            self.posts.append(call)
            if self.answer:
                await call.send(self.answer)
            elif self.answer is None:
                await call.gone()
            else:
                call.close()
        elif call.head.startswith(b"GET /health "):
            await call.send(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % (200 if self.healthy else 503))
        elif call.head.startswith(b"GET /v1/models "):
            models = orjson.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]})
            await call.send(JSON_HEAD % (len(models), models))
        elif call.head.startswith(b"GET /metrics "):
            await call.send(JSON_HEAD % (len(METRICS), METRICS))
        else:
            await call.send(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")


@contextlib.asynccontextmanager
async def in_front_of(folder: Path, *scripted: Scripted, **sections: Any) -> AsyncIterator[GatewayProcess]:
    """The gateway before hand-written pods, which need this loop while it starts."""
    async with contextlib.AsyncExitStack() as stack:
        seen: list[Peer] = [await stack.enter_async_context(peer(_handler(each))) for each in scripted]
        static = [{"name": s.name, "address": p.address} for s, p in zip(scripted, seen, strict=True)]
        manager = gateway(folder, static, **sections)
        served = await asyncio.to_thread(manager.__enter__)
        try:
            yield served
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)


def _handler(scripted: Scripted) -> Handler:
    return scripted.handle


async def spoken(served: GatewayProcess, request: bytes) -> bytes:
    """All that comes back on a raw connection that asks for its end."""
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


def post(path: str, body: bytes, *fields: bytes) -> bytes:
    """A raw request on a connection that closes afterwards."""
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"host: x", b"connection: close", *fields]
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])


async def test_bytes_are_untouched(tmp_path: Path) -> None:
    """The pod gets the client's body and headers as they were sent; the client gets the pod's, and ours beside them."""
    events = [b'data: {"x": "%b"}\n\n' % word for word in (b"a", b"\xc3\xa9", b"b" * 5000)] + [b"data: [DONE]\n\n"]
    stream = b"HTTP/1.1 207 Odd\r\nContent-Type: text/event-stream; x=y\r\nX-Theirs: 1\r\nX-Theirs: 2\r\n"
    stream += b"Transfer-Encoding: chunked\r\n\r\n"
    stream += b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"
    pod = Scripted("pod-0", MODEL, stream)
    body = b'{ "model" :"tiny-qwen","messages":[{"role":"user","content":"\\u00e9 \xc3\xa9 \\ud83d\\ude00"}],\r\n'
    body += b'"stream":true, "temperature":1e-1, "temperature": 0.10, "unknown":[ 1 ,2]}  \n'
    async with in_front_of(tmp_path, pod) as served:
        fields = (b"Content-Type: application/json", b"X-Mine: \xe9", b"Authorization: Bearer k", b"X-Request-ID: me 1")
        answer = await spoken(served, post("/v1/chat/completions?a=%20b&a=c", body, *fields))
        (call,) = pod.posts
        assert call.body == body
        head = call.head.split(b"\r\n")
        assert head[0] == b"POST /v1/chat/completions?a=%20b&a=c HTTP/1.1"
        assert {b"x-mine: \xe9", b"authorization: Bearer k", b"x-request-id: me 1"} <= set(head)
        assert not any(line.lower().startswith(b"connection: close") for line in head)
        head_back, _, sent = answer.partition(b"\r\n\r\n")
        assert head_back.startswith(b"HTTP/1.1 207")
        lines = head_back.lower().split(b"\r\n")
        assert [line for line in lines if line.startswith(b"x-theirs")] == [b"x-theirs: 1", b"x-theirs: 2"]
        assert {b"content-type: text/event-stream; x=y", b"x-warmroute-pod: pod-0", b"x-request-id: me 1"} <= set(lines)
        assert _unchunked(sent) == b"".join(events)


def _unchunked(data: bytes) -> bytes:
    """The content of a chunked body that is whole."""
    content = b""
    while True:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n"
            return content
        content += rest[:length]
        data = rest[length + 2 :]


async def test_failures(tmp_path: Path) -> None:
    """502 after all attempts, 504, 503, and a pod's own error: each as the client should see it, each counted once."""
    dead = [Scripted(f"dead-{number}", "dead") for number in range(4)]
    slow = Scripted("slow", "slow", None)
    lame = Scripted("lame", "lame", healthy=False)
    own = b"HTTP/1.1 418 Teapot\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\ntheir"
    angry = Scripted("angry", "angry", own)
    pods = [*dead, slow, angry, lame]
    limits = {"first_byte_timeout": 1.5, "attempts_max": 3}
    async with in_front_of(tmp_path, *pods, upstream=limits) as served:
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        async with client:
            expected = {"dead": 502, "slow": 504, "angry": 418, "lame": 404}
            for model, status in expected.items():
                with pytest.raises(openai.APIStatusError) as error:
                    await client.completions.create(model=model, prompt="x")
                assert error.value.status_code == status, model
                assert error.value.response.headers["x-request-id"]
                if model != "angry":
                    assert error.value.response.json()["error"]["message"]
            assert error.value.code == "model_not_found"  # a pod that never was healthy has not told its models
            attempts = [{re.findall(rb"x-request-id: (.*)\r", call.head)[0] for call in pod.posts} for pod in dead]
            assert sum(map(len, attempts)) == 2  # a request that breaks a pod is tried once more, not twice
            assert len(slow.posts) >= 1

            def count(model: str, pod: str, code: int) -> float:
                series = f'warmroute_requests_total{{code="{code}",model="{model}",pod="{pod}"}}'
                return served.metric(series)

            counts = await asyncio.to_thread(
                lambda: [count("dead", "", 502), count("slow", "", 504), count("angry", "angry", 418)]
            )
            assert counts == [1, 1, 1]
            assert await asyncio.to_thread(served.metric, 'warmroute_retries_total{reason="broken_response"}') >= 1
            known = {pod["pod"]: pod for pod in (await asyncio.to_thread(served.get, "/pods")).json()["pods"]}
            assert all(rank["load"]["requests"] == 0 for pod in known.values() for rank in pod["ranks"])
            angry.healthy = False
            await eventually(lambda: not {p["pod"]: p for p in served.get("/pods").json()["pods"]}["angry"]["healthy"])
            with pytest.raises(openai.APIStatusError) as unfit:
                await client.completions.create(model="angry", prompt="x")
            assert (unfit.value.status_code, unfit.value.response.headers["retry-after"]) == (503, "1")


async def test_refused_prompt_leaves_nothing(tmp_path: Path) -> None:
    """Without events a served prompt is believed to be held; one that the pod refused is not."""
    fine = JSON_HEAD % (2, b"{}")
    pod = Scripted("pod-0", MODEL, fine)
    async with in_front_of(tmp_path, pod) as served, httpx.AsyncClient(base_url=served.url, **PLAIN) as http:

        async def matched(text: str) -> int:
            answer = await http.post("/score", json={"model": MODEL, "prompt": text})
            assert answer.json()["pods"][0]["state"] == "blind"
            return int(answer.json()["pods"][0]["matched_blocks"])

        held, refused = "held by the pod; " * 20, "refused by the pod; " * 20
        assert (await http.post("/v1/completions", json={"model": MODEL, "prompt": held})).status_code == 200
        pod.answer = fine.replace(b"200", b"400")
        assert (await http.post("/v1/completions", json={"model": MODEL, "prompt": refused})).status_code == 400
        async with asyncio.timeout(10):
            while await matched(refused):
                await asyncio.sleep(0.02)
        assert await matched(held) > 0
        assert await matched(held[: len(held) // 2]) > 0
