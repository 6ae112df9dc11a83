"""Recordings of real vLLM servers, read for tests: what a server published, was asked, and answered."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.blocks import Tokens
from router.discovery.vllm_metrics import parse_metrics

VECTORS = Path(__file__).parents[1] / "vectors"

VERSIONS = ("vllm-0.32.0", "vllm-0.28.0", "vllm-0.20.2", "vllm-0.11.2.post2", "vllm-0.10.1.1.post2")
"""The main recordings, one server each: one pod, one rank, one KV-cache group."""

DRAFTERS = ("vllm-0.33.0-eagle", "vllm-0.32.0-eagle", "vllm-0.33.0-mtp-nolookahead")
"""As the main ones, with a drafter, of which no setting is read: /metrics says that there is one."""


@dataclass(frozen=True)
class Frame:
    """One batch as it came from the publisher at `endpoint`, which numbers its batches itself."""

    endpoint: str
    number: int
    payload: bytes


@dataclass(frozen=True)
class Ask:
    """One answered request with one prompt, alone on its server.

    `before`: how many of the recording's frames were published when it was sent; `cached`: what vLLM reported, in
    tokens. `tokens` are the ids that vLLM reported where it did, else those of its `/tokenize`.
    """

    number: int
    phase: str
    note: str
    before: int
    tokens: Tokens
    lora: str | None
    salt: str | None
    rank: int | None  # asked for by header
    n: int
    reads_cache: bool  # prompt_logprobs needs every position computed
    cached: int

    def expected(self, held: int, block_size: int) -> int:
        """The tokens that vLLM takes from its cache if it holds `held` leading blocks: the last is always computed."""
        return min(held, (len(self.tokens) - 1) // block_size) * block_size if self.reads_cache else 0


@dataclass(frozen=True)
class Recording:
    frames: list[Frame]
    asks: list[Ask]
    block_size: int


def lines(name: str, file: str) -> list[dict[str, Any]]:
    """One JSON value a line of `tests/vectors/<name>/<file>`, which may be packed (and has then what tests need)."""
    packed = VECTORS / name / f"{file}.gz"
    if packed.exists():
        return [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()]
    with (VECTORS / name / file).open(encoding="utf-8") as opened:
        return [json.loads(line) for line in opened]


def metrics(name: str) -> dict[str, float]:
    """What a recording's /metrics said at its start."""
    packed = VECTORS / name / "metrics.txt"
    return parse_metrics((packed if packed.exists() else VECTORS / name / "metrics_start.txt").read_text())


def frames(name: str) -> list[Frame]:
    return [
        Frame(line.get("endpoint", ""), line["seq"], base64.b64decode(line["parts"][2]))
        for line in lines(name, "frames.jsonl")
    ]


def recording(name: str) -> Recording:
    """One of VERSIONS: `asks` are its exclusive requests with a single prompt and a usage, in order."""
    meta = json.loads((VECTORS / name / "meta.json").read_text())
    published = frames(name)
    before = {number: sum(frame.number <= number for frame in published) for number in range(-1, len(published))}
    asks = [
        _ask(line, tokens, before[line["seq_before"]], meta["lora"])
        for line in lines(name, "requests.jsonl")
        if _alone(line) and (tokens := _single(line)) is not None
    ]
    return Recording(published, asks, meta["block_size"])


def small_recording(name: str, block_size: int = 32) -> Recording:
    """A recording of token-id prompts, one at a time."""
    asks = [
        _ask(line, line["body"]["prompt"], line["frames_before"], [])
        for line in lines(name, "requests.jsonl")
        if line["status"] == 200 and line["usage_prompt_tokens"] is not None
    ]
    return Recording(frames(name), asks, block_size)


def replay(name: str) -> list[tuple[int, bytes]]:
    """What the server's replay socket sent: (number, payload) in order, without the end marker."""
    parts = [[base64.b64decode(part) for part in line["parts"]] for line in lines(name, "replay.jsonl")[1:]]
    assert parts[-1][-2] == b"\xff" * 8
    return [(int.from_bytes(answer[-2], "big"), answer[-1]) for answer in parts[:-1]]


def _alone(line: dict[str, Any]) -> bool:
    answered = line["path"].endswith("completions") and line["status"] == 200
    counted = line["cached_tokens"] is not None or line["usage_prompt_tokens"] is not None
    return answered and counted and line["exclusive"] and not line["aborted"]


def _single(line: dict[str, Any]) -> list[int] | None:
    prompts = line["prompt_token_ids_reported"] or [prompt["token_ids"] for prompt in line["prompts"]]
    return prompts[0] if len(prompts) == 1 else None


def _ask(line: dict[str, Any], tokens: list[int], before: int, adapters: list[str]) -> Ask:
    body = line["body"]
    rank = line["headers"].get("X-data-parallel-rank")
    return Ask(
        number=line["i"],
        phase=line.get("phase", ""),
        note=line["note"] or "",
        before=before,
        tokens=np.array(tokens, np.uint32),
        lora=body["model"] if body.get("model") in adapters else None,
        salt=body.get("cache_salt"),
        rank=None if rank is None else int(rank),
        n=body.get("n") or 1,
        reads_cache=body.get("prompt_logprobs") is None,
        cached=line["cached_tokens"] or 0,
    )
