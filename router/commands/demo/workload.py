"""The demo's workload: conversations that share system prompts and long documents, played by streaming clients."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from router.commands.streaming import Unanswered, streamed
from router.plan.figures import value_at

_WORDS = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have "
    "an had they you were their one all we can her has there been if more when will would who so no out "
    "up into do any your what file line value name type list function object string module class code "
    "error return default method data number user system option argument package version table state "
    "order test case time process memory path result event"
).split()


@dataclass(slots=True, frozen=True)
class WorkloadShape:
    """Sizes of the workload; words are roughly tokens."""

    conversations: int = 20
    turns: int = 12
    systems: int = 4
    system_words: int = 300
    documents: int = 20
    document_words: int = 1500
    turn_words: int = 60
    answer_tokens: int = 20
    start_within_s: float = 4.0
    think_s: float = 0.9


@dataclass(slots=True, frozen=True)
class Conversation:
    """What one user says, and when."""

    starts_s: float
    opening: list[dict[str, str]]
    says: list[str]
    thinks_s: list[float]


@dataclass(slots=True)
class Measured:
    """What the clients saw."""

    requests: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    exact: int = 0  # requests whose cached tokens were predicted to the token
    first_tokens_s: list[float] = field(default_factory=list)
    by_pod: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def hit_ratio(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def first_token_s(self, share: float) -> float:
        """The given quantile of the time to the first token."""
        return value_at(share, sorted(self.first_tokens_s))


def words_of(rng: random.Random, count: int) -> str:
    """So many words."""
    return " ".join(rng.choice(_WORDS) for _ in range(count))


def conversations(shape: WorkloadShape, seed: int) -> list[Conversation]:
    """The same work for the same seed."""
    rng = random.Random(seed)

    systems = [words_of(rng, shape.system_words) for _ in range(shape.systems)]
    documents = [words_of(rng, shape.document_words) for _ in range(shape.documents)]
    made = []
    for number in range(shape.conversations):
        opening = [
            {
                "role": "system",
                "content": f"You are assistant {number % shape.systems}. {systems[number % shape.systems]}",
            },
            {"role": "user", "content": f"Read this document. {documents[number % shape.documents]}"},
            {"role": "assistant", "content": "I have read it."},
        ]
        says = [words_of(rng, shape.turn_words) for _ in range(shape.turns)]
        thinks = [rng.uniform(0.3, 1.7) * shape.think_s for _ in range(shape.turns)]
        made.append(Conversation(rng.uniform(0, shape.start_within_s), opening, says, thinks))
    return made


async def play(
    address: str, model: str, work: list[Conversation], shape: WorkloadShape, on_request: Callable[[Measured], None]
) -> Measured:
    """All conversations at once, each turn by turn, against the gateway at `address`."""
    measured = Measured()
    began = time.monotonic()
    async with (
        httpx.AsyncClient(base_url=address, timeout=60.0, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        for conversation in work:
            group.create_task(_converse(client, model, conversation, shape, measured, on_request))
    measured.seconds = time.monotonic() - began
    return measured


async def _converse(
    client: httpx.AsyncClient,
    model: str,
    conversation: Conversation,
    shape: WorkloadShape,
    measured: Measured,
    on_request: Callable[[Measured], None],
) -> None:
    await asyncio.sleep(conversation.starts_s)
    messages = list(conversation.opening)
    for says, thinks_s in zip(conversation.says, conversation.thinks_s, strict=True):
        messages.append({"role": "user", "content": says})
        body = {"model": model, "messages": messages, "max_tokens": shape.answer_tokens}
        try:
            answer = await _ask(client, body, measured)
        except (httpx.HTTPError, Unanswered):
            measured.failures += 1
            return
        on_request(measured)
        messages.append({"role": "assistant", "content": answer})
        await asyncio.sleep(thinks_s)


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], measured: Measured) -> str:
    answer = await streamed(client, "/v1/chat/completions", body)
    if answer.prompt_tokens is None or answer.pod is None:
        raise Unanswered("a stream ended without usage, or is not the gateway's")
    if answer.first_s is not None:
        measured.first_tokens_s.append(answer.first_s)
    cached = answer.cached_tokens or 0
    measured.requests += 1
    measured.prompt_tokens += answer.prompt_tokens
    measured.cached_tokens += cached
    measured.exact += cached == answer.predicted
    measured.by_pod[answer.pod] += 1
    return answer.text
