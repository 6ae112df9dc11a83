"""Clients as users write them, with the official `openai` package; every answer is written down with its figures."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

from tests_vllm.fleet import MODEL

PAUSE_S = 0.05
"""Between an answer and the next request, as of a client that reads: while its engine is busy, vLLM holds events back,
so that those of an answer, removals too, may come some 10 ms after its end."""

TURN_WORDS = 25
_TIMEOUT_S = 120.0
_WORDS = (
    "river stone window garden morning letter train coffee signal winter bridge market forest engine paper "
    "table summer music teacher island planet shadow number question answer moment journey silver ocean "
    "kitchen doctor village mountain history pattern colour sentence memory factory harbour naïve café 東京 "
    "übung données привет 12,345 3.14 foo_bar() {key: value} https://example.org/a?b=c don't we'll I'm"
).split(" ")


@dataclass(slots=True, frozen=True)
class Answered:
    """One answered request. `predicted` is the gateway's header, `cached` the server's usage; tokens, seconds."""

    phase: str
    kind: str
    sequential: bool
    streamed: bool
    pod: str
    prompt_tokens: int
    predicted: int
    cached: int
    text: str
    first_s: float | None  # until the first chunk, of a stream

    @property
    def agrees(self) -> bool:
        return self.predicted == self.cached

    def __str__(self) -> str:
        how = "stream" if self.streamed else "whole"
        return (
            f"{self.phase}: {self.kind} ({how}) of {self.prompt_tokens} tokens to {self.pod}: "
            f"predicted {self.predicted}, cached {self.cached}"
        )


@dataclass(slots=True)
class Talker:
    """Asks through the gateway; fails on every answer but 200. `answers` is where all that was heard is kept.

    `explain` is told of a wrong prediction of a sequential request as soon as it is known to be one.
    """

    client: AsyncOpenAI
    phase: str
    answers: list[Answered]
    explain: Callable[[Answered], None]
    sequential: bool = True
    pause_s: float = PAUSE_S  # before each sequential request

    async def chat(self, messages: list[dict[str, Any]], stream: bool, **more: Any) -> Answered:
        """One chat completion."""
        return await self._ask(self.client.chat.completions, "chat", stream, {"messages": messages, **more})

    async def complete(self, prompt: str | list[int], stream: bool, **more: Any) -> Answered:
        """One completion of a text, or of token ids."""
        return await self._ask(self.client.completions, "completion", stream, {"prompt": prompt, **more})

    async def _ask(self, endpoint: Any, kind: str, stream: bool, request: dict[str, Any]) -> Answered:
        if stream:
            request = {**request, "stream": True, "stream_options": {"include_usage": True}}
        if self.sequential:
            await asyncio.sleep(self.pause_s)
        began = time.monotonic()
        response = await endpoint.with_raw_response.create(model=MODEL, **request)
        assert response.status_code == 200
        body = response.parse()
        text, first_s, usage = await _heard(body, began) if stream else (_text(body), None, body.usage)
        assert usage is not None and usage.prompt_tokens_details is not None, "the server did not say what was cached"
        answered = Answered(
            self.phase, kind, self.sequential, stream, response.headers["x-warmroute-pod"], usage.prompt_tokens,
            int(response.headers["x-warmroute-matched-tokens"]), usage.prompt_tokens_details.cached_tokens or 0,
            text, first_s,
        )  # fmt: skip
        self.answers.append(answered)
        if self.sequential and not answered.agrees:
            self.explain(answered)
        return answered


@dataclass(slots=True)
class Conversation:
    """A chat that grows by a question and an answer each turn, as a client's does.

    No request gives a seed: on the CPU, vLLM's engine ends when a seeded one shares a step with half a prefill.
    """

    talker: Talker
    rng: random.Random
    messages: list[dict[str, Any]]
    heard: list[Answered] = field(default_factory=list)

    @property
    def pods(self) -> list[str]:
        """Where each turn was answered."""
        return [answered.pod for answered in self.heard]

    async def turn(self, stream: bool, temperature: float, max_tokens: int = 40, **more: Any) -> Answered:
        """Ask something new with all that was said before."""
        self.messages.append({"role": "user", "content": prose(self.rng, TURN_WORDS)})
        answered = await self.talker.chat(self.messages, stream, max_tokens=max_tokens, temperature=temperature, **more)
        self.messages.append({"role": "assistant", "content": answered.text})
        self.heard.append(answered)
        return answered


def client_of(address: str) -> AsyncOpenAI:
    """A client of the gateway that does not try again: what fails is to be seen."""
    return AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT_S)


def prose(rng: random.Random, words: int) -> str:
    """Words of several scripts, with some punctuation: whatever cuts text into tokens has something to do."""
    return " ".join(rng.choice(_WORDS) + rng.choice(("", "", "", ",", ".", "\n", "\n\n")) for _ in range(words))


def token_ids(rng: random.Random, count: int) -> list[int]:
    """Plain tokens: below the special ones, above single bytes."""
    return [rng.randrange(300, 8000) for _ in range(count)]


async def in_turns(conversations: list[Conversation], turns: int) -> list[Answered]:
    """All conversations turn by turn, one request after the other; every other answer streamed, every third random."""
    return [
        await conversation.turn(stream=(turn + number) % 2 == 0, temperature=float(number % 3 == 0))
        for turn in range(turns)
        for number, conversation in enumerate(conversations)
    ]


async def at_once(conversations: list[Conversation], turns: int) -> list[Answered]:
    """All conversations at the same time, each at its own pace."""

    async def alone(number: int, conversation: Conversation) -> list[Answered]:
        return [
            await conversation.turn(stream=(turn + number) % 2 == 0, temperature=float(number % 3 == 0))
            for turn in range(turns)
        ]

    every = await asyncio.gather(*(alone(number, each) for number, each in enumerate(conversations)))
    return [answered for answers in every for answered in answers]


async def _heard(chunks: AsyncIterator[Any], began: float) -> tuple[str, float | None, Any]:
    """The text, the seconds until the first chunk, and the usage of a stream."""
    pieces, first_s, usage = [], None, None
    async for chunk in chunks:
        if first_s is None:
            first_s = time.monotonic() - began
        pieces += [_text(chunk)]
        usage = chunk.usage or usage
    return "".join(pieces), first_s, usage


def _text(body: Any) -> str:
    """What the first choice says, in any of the four shapes of an answer."""
    if not body.choices:
        return ""
    choice = body.choices[0]
    said = getattr(choice, "delta", None) or getattr(choice, "message", None)
    return (said.content if said is not None else choice.text) or ""
