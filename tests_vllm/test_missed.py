"""The cause of every miss, before real vLLM servers: what is done to a prompt is what is said of it.

Each cause is brought about so often that one that is named by chance does not pass.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests_vllm.fleet import BLOCK_SIZE, BLOCKS, MODEL, SPECULATIVE, Gateway
from tests_vllm.talk import prose, token_ids

PODS = ["pod-0", "pod-1"]
TIMES = 13
LENGTH = 6 * BLOCK_SIZE + 5

pytestmark = pytest.mark.skipif(bool(SPECULATIVE), reason="a drafter has a block more computed, which is a cause, too")


class Asking:
    """Asks one pod, and tells why most of a prompt was not cached there."""

    def __init__(self, gateway: Gateway, client: httpx.Client, name: str) -> None:
        self._gateway = gateway
        self._client = client
        self._name = name
        self._count = 0

    def why(self, prompt: list[int] | list[dict[str, str]], **more: Any) -> str:
        """The cause that has most tokens; "" where all were cached."""
        self._count += 1
        request_id = f"{self._name}-{self._count}"
        chat = isinstance(prompt[0], dict)
        path, field = ("/v1/chat/completions", "messages") if chat else ("/v1/completions", "prompt")
        body = {"model": MODEL, field: prompt, "max_tokens": 1, "temperature": 0, **more}
        answer = self._client.post(path, json=body, headers={"x-request-id": request_id})
        assert answer.status_code == 200, answer.text
        self._gateway.settle(PODS)
        missed = self._gateway.missed(request_id)
        usage = answer.json()["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        assert sum(missed.values()) == usage["prompt_tokens"] - cached
        return max(missed, key=lambda cause: missed[cause], default="")


@pytest.fixture
def asking(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[Asking]:
    """Of one pod: the other one is drained meanwhile."""
    with httpx.Client(base_url=gateway.address, timeout=60.0, trust_env=False) as client, gateway.only(PODS[0], PODS):
        yield Asking(gateway, client, request.node.name)


def test_new_and_asked_again(asking: Asking, rng: random.Random) -> None:
    """A prompt of which nothing was asked for before; the same again: what is left of it fills no block."""
    told = Counter[str]()
    for _ in range(TIMES):
        ids = token_ids(rng, LENGTH)
        told.update((f"new: {asking.why(ids)}", f"again: {asking.why(ids)}"))
    assert told == {"new: first_seen": TIMES, "again: block_edge": TIMES}


def test_changed(asking: Asking, rng: random.Random) -> None:
    """A date at the beginning of what is the same otherwise."""
    told = Counter[str]()
    for number in range(TIMES):
        rest, question = prose(rng, 120), {"role": "user", "content": prose(rng, 20)}
        for day in (number, number + 1):
            system = {"role": "system", "content": f"It is 2026-03-{day + 1:02d} 10:{day:02d}:00. {rest}"}
            cause = asking.why([system, question])
        told[cause] += 1
    assert told == {"changed": TIMES}


def test_other_salt(asking: Asking, rng: random.Random) -> None:
    """The same prompt of another tenant."""
    told = Counter[str]()
    for _ in range(TIMES):
        ids = token_ids(rng, LENGTH)
        asking.why(ids, cache_salt="a")
        told[asking.why(ids, cache_salt="b")] += 1
    assert told == {"other_salt": TIMES}


def test_not_read(asking: Asking, rng: random.Random) -> None:
    """Who wants to know of every token of the prompt has it computed."""
    told = Counter[str]()
    for _ in range(TIMES):
        ids = token_ids(rng, LENGTH)
        asking.why(ids)
        told[asking.why(ids, prompt_logprobs=1)] += 1
    assert told == {"no_cache_read": TIMES}


def test_evicted(asking: Asking, rng: random.Random) -> None:
    """What came since is more than fits."""
    prompts = [token_ids(rng, LENGTH) for _ in range(TIMES)]
    for ids in prompts:
        asking.why(ids)
    for _ in range(BLOCKS // 36 + 1):
        asking.why(token_ids(rng, 36 * BLOCK_SIZE + 5))
    told = Counter(asking.why(ids) for ids in prompts)
    assert told == {"evicted": TIMES}
