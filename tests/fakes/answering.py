"""Hand-written pods that serve one model: each answers what it is told to, and keeps what it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from tests.fakes.peers import Call

MODEL = "m"
METRICS = b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'


def response(status: int, body: bytes) -> bytes:
    """A whole one."""
    head = b"HTTP/1.1 %d x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def usage(prompt_tokens: int, cached_tokens: int | None = None) -> bytes:
    """A completion that says what it has computed."""
    details = None if cached_tokens is None else {"cached_tokens": cached_tokens}
    told = {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "prompt_tokens_details": details}
    return response(200, orjson.dumps({"choices": [{"text": "x"}], "usage": told}))


@dataclass
class Answering:
    """One pod; its answer to POSTs may be changed at any time. None: it breaks off."""

    answer: bytes | None = field(default_factory=lambda: usage(8, 0))
    posts: list[Call] = field(default_factory=list)

    async def __call__(self, call: Call) -> None:
        """One request."""
        await call.read_body()
        if call.head.startswith(b"POST ") and not call.head.startswith(b"POST /tokenize "):
            self.posts.append(call)
            if self.answer is None:
                call.reset()
            else:
                await call.send(self.answer)
        elif call.head.startswith(b"GET /health "):
            await call.send(response(200, b"{}"))
        elif call.head.startswith(b"GET /v1/models "):
            await call.send(response(200, orjson.dumps({"object": "list", "data": [{"id": MODEL}]})))
        elif call.head.startswith(b"GET /metrics "):
            await call.send(response(200, METRICS))
        else:
            await call.send(response(404, b"{}"))
