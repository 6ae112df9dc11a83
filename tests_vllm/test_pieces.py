"""Long prompts in pieces, before real vLLM servers: known turns that come meanwhile, and what is answered."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from tests_vllm.fleet import CONTEXT, SPECULATIVE, Gateway, VllmServer
from tests_vllm.talk import Answered, Talker, client_of, token_ids

PIECE = 512
COLD = 6
LENGTH = CONTEXT - 64
_TALKS = 60  # turns, after which it is known that most prompts continue others
_PAUSE_S = 0.05  # of who asks for the known prompts

pytestmark = pytest.mark.skipif(bool(SPECULATIVE), reason="answers of a drafter's steps are not the same bits")


class Heard(NamedTuple):
    """Seconds to the first token of known prompts that were asked for while long ones were computed; all texts."""

    warm_s: list[float]
    texts: list[str]

    @property
    def p90_s(self) -> float:
        return sorted(self.warm_s)[int(0.9 * len(self.warm_s))]


def unexplained(answered: Answered) -> None:
    """What is cached of a prompt that went in pieces is more than was promised."""


async def heard(gateway: Gateway, answers: list[Answered], phase: str) -> Heard:
    """Long new prompts, one after the other for each server, and known ones beside them."""
    rng = random.Random(7)
    async with client_of(gateway.address) as client:
        asks = Talker(client, phase, answers, unexplained, sequential=False)
        known = token_ids(rng, 300 + 32 * _TALKS)
        for turn in range(_TALKS):
            await asks.complete(known[: 300 + 32 * turn], False, max_tokens=1, temperature=0)
        short = [token_ids(rng, 100) for _ in range(4)]
        texts = [(await asks.complete(prompt, False, max_tokens=4, temperature=0)).text for prompt in short]
        long = [token_ids(rng, LENGTH) for _ in range(COLD)]
        warm_s: list[float] = []

        async def turns() -> None:
            while True:
                for prompt in short:
                    await asyncio.sleep(_PAUSE_S)
                    answered = await asks.complete(prompt, True, max_tokens=1, temperature=0)
                    assert answered.first_s is not None
                    warm_s.append(answered.first_s)

        async def new(prompts: list[list[int]]) -> list[str]:
            return [(await asks.complete(ids, False, max_tokens=4, temperature=0)).text for ids in prompts]

        beside = [asyncio.ensure_future(turns()) for _ in range(2)]
        for part in await asyncio.gather(new(long[::2]), new(long[1::2])):
            texts += part
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    return Heard(warm_s, texts)


async def test_known_turns_come_between(
    servers: list[VllmServer], model: Path, logs: Path, answers: list[Answered], notes: list[str]
) -> None:
    """The same is answered, in pieces and whole; how long who asks for what is known waits is noted.

    These servers' caches hold two such prompts: nobody is to wait for long until others are used no more.
    """
    settings = {"ADMISSION__HOLD_MAX": "1s"}
    pieces = {**settings, "SCORING__PIECES__ENABLED": "true", "SCORING__PIECES__TOKENS": str(PIECE)}
    found, sent = list[Heard](), list[int]()
    for phase, given in (("whole", settings), ("pieces", pieces)):
        for server in servers:
            server.reset()
        with Gateway(servers, model, logs, given) as gateway:
            gateway.wait()
            found.append(await heard(gateway, answers, phase))
            sent.append(gateway.pieces())
    whole, pieced = found
    notes.append(f"known turns beside long prompts, p90: whole {whole.p90_s:.3f} s, in pieces {pieced.p90_s:.3f} s")
    assert sent[0] == 0 < sent[1]
    assert pieced.texts == whole.texts
