"""A work on a side: what each client saw."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from router.commands.bench.work import Flow, Work
from router.commands.streaming import Streamed, Unanswered, streamed

_TIMEOUT_S = 600.0  # of a request that waits for all others
_KINDS_MAX = 5  # of failures that are told


@dataclass(slots=True, frozen=True)
class BenchSide:
    """Who is asked: `addresses` in turn. `unshared`: no prompt begins as another one, so nothing can be reused.

    `pods`: how many there are, None where that is not known.
    """

    title: str
    addresses: Sequence[str]
    model: str
    key: str | None = None
    unshared: bool = False
    pods: int | None = None


@dataclass(slots=True)
class Seen:
    """What all clients of one work saw on one side."""

    answers: list[Streamed] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    by_pod: Counter[str] = field(default_factory=Counter)
    pods: int | None = None
    seconds: float = 0.0

    @property
    def done(self) -> int:
        return len(self.answers) + self.failures.total()

    def failed(self, error: Exception) -> None:
        """One request more that was not answered."""
        said = str(error) or type(error).__name__
        if said not in self.failures and len(self.failures) >= _KINDS_MAX:
            said = "other failures"
        self.failures[said] += 1


async def play_work(work: Work, side: BenchSide, on_request: Callable[[Seen], None]) -> Seen:
    """All flows. Each run begins its prompts in a way of its own: what caches hold from before is of no use to it."""
    seen, run, turns = Seen(pods=side.pods), secrets.token_hex(4), itertools.count()
    room = asyncio.Semaphore(work.at_once or len(work.flows))
    headers = {} if side.key is None else {"authorization": f"Bearer {side.key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=len(work.flows))
    began = time.monotonic()

    async def one(flow: Flow) -> None:
        await asyncio.sleep(max(0.0, began + flow.starts_s - time.monotonic()))
        async with room:
            await _talk(flow)

    async def _talk(flow: Flow) -> None:
        messages = list(flow.opening)
        for turn in flow.turns:
            await asyncio.sleep(turn.think_s)
            messages.append({"role": "user", "content": turn.says})
            salt = secrets.token_hex(8) if side.unshared else run
            place = side.addresses[next(turns) % len(side.addresses)]
            body = {"model": side.model, "messages": _begun(messages, salt), "max_tokens": turn.answer_tokens}
            try:
                answer = await streamed(client, f"{place}/v1/chat/completions", body)
            except (httpx.HTTPError, Unanswered) as error:
                seen.failed(error)
                on_request(seen)
                return
            seen.answers.append(answer)
            seen.by_pod[answer.pod or place] += 1
            on_request(seen)
            messages.append({"role": "assistant", "content": answer.text})

    async with (
        httpx.AsyncClient(headers=headers, timeout=_TIMEOUT_S, trust_env=False, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        for flow in work.flows:
            group.create_task(one(flow))
    seen.seconds = time.monotonic() - began
    return seen


def _begun(messages: Sequence[dict[str, str]], salt: str) -> list[dict[str, str]]:
    first, *rest = messages
    return [{**first, "content": f"{salt} {first['content']}"}, *rest]
