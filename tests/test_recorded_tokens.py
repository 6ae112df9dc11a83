"""Token ids made from our renderings equal the ids that real vLLM servers reported, for every recorded request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer

from router.prompts.prompt import Prompt, parse
from router.prompts.rendering import Renderer, Rendering, RenderOptions

VECTORS = Path(__file__).parent / "vectors"

ROWS = {  # recorded requests with prompts; their prompts by kind; requests whose true ids are unknown
    "vllm-0.32.0": (253, {"chat": 60, "text": 17, "tokens": 181}, 0),
    "vllm-0.28.0": (353, {"chat": 60, "text": 17, "tokens": 281}, 0),
    "vllm-0.20.2": (336, {"chat": 64, "text": 15, "tokens": 262}, 0),
    "vllm-0.11.2.post2": (322, {"chat": 60, "text": 15, "tokens": 252}, 0),
    "vllm-0.10.1.1.post2": (290, {"chat": 60, "text": 15, "tokens": 220}, 2),
}


@dataclass
class Recording:
    """One recorded server: its tokenizer, its renderer as started, its requests that have prompts."""

    tokenizer: Tokenizer
    renderer: Renderer
    requests: list[dict[str, Any]]

    @classmethod
    def of(cls, version: str) -> Recording:
        folder = VECTORS / version
        meta = json.loads((folder / "meta.json").read_text())
        major, minor = meta["vllm_version"].split(".")[:2]
        trusts = "--trust-request-chat-template" in meta["command"].split()
        options = RenderOptions((int(major), int(minor)), trust_request_chat_template=trusts)
        lines = (folder / "requests.jsonl").read_bytes().splitlines()
        requests = [request for line in lines if (request := orjson.loads(line))["prompts"]]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        return cls(tokenizer, Renderer(folder / "tokenizer", options), requests)

    def ids(self, prompt: Prompt) -> list[list[int]]:
        """Our token ids of each prompt of a request."""
        if prompt.kind == "tokens":
            return [list(map(int, ids)) for ids in prompt.prompts]
        return [self._encoded(rendering) for rendering in self.renderer.render_all(prompt)]

    def _encoded(self, rendering: Rendering) -> list[int]:
        self.tokenizer.no_truncation()
        if rendering.truncate_prompt_tokens is not None:
            self.tokenizer.enable_truncation(rendering.truncate_prompt_tokens, direction="left")
        ids: list[int] = self.tokenizer.encode(rendering.text, add_special_tokens=rendering.add_special_tokens).ids
        return ids


def true_ids(request: dict[str, Any]) -> list[list[int]] | None:
    """What vLLM said; None where 0.10.1.1 could not say it and its /tokenize does not take the request."""
    reported = request["prompt_token_ids_reported"]
    if reported is not None:
        return [list(reported)] if isinstance(reported[0], int) else list(reported)
    body = request["body"]
    asked = "documents" in body or "truncate_prompt_tokens" in body
    if asked and not body.get("return_token_ids"):
        return None
    return [prompt["token_ids"] for prompt in request["prompts"]]


@pytest.mark.parametrize("version", ROWS)
def test_every_recorded_prompt(version: str) -> None:
    """All of them, and as many as there are: a request that gets lost on the way fails the test."""
    recording = Recording.of(version)
    counts = dict.fromkeys(("chat", "text", "tokens"), 0)
    unknown = 0
    differ = []
    for request in recording.requests:
        prompt = parse(request["path"], orjson.dumps(request["body"]))
        ours = recording.ids(prompt)
        theirs = true_ids(request)
        counts[prompt.kind] += len(ours)
        if theirs is None:
            unknown += 1
        elif ours != theirs:
            differ.append((request["i"], request["phase"], request["note"]))
    total, kinds, unknown_total = ROWS[version]
    print(f"{version}: {len(recording.requests)} requests, prompts {counts}, unknown {unknown}, differ {differ}")
    assert differ == []
    assert (len(recording.requests), counts, unknown) == (total, kinds, unknown_total)
