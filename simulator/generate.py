"""One request for tokens, from the engine's first token to the last byte, or to the client's going away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

import orjson

from simulator.answer import Answer
from simulator.asgi import Exchange
from simulator.ask import Ask, Refused
from simulator.engine import Engine, Inbox, Interrupted, Ticket
from simulator.faults import Faults
from simulator.model import Model
from simulator.scheduler import Request
from simulator.tokens import Speller

CHUNKS_MERGED_MAX = 64
"""Tokens that wait while the client reads slowly go out together, as vLLM merges them, up to this many."""


async def generate(
    ask: Ask, model: Model, engine: Engine, faults: Faults, exchange: Exchange, headers: Mapping[str, str],
    shape: type[Answer] = Answer,
) -> None:  # fmt: skip
    """Queue the sequences of one request and send the answer. Whatever happens, they leave the engine."""
    inbox: Inbox = asyncio.Queue()
    now = time.monotonic()
    tickets = [
        engine.submit(
            Request(choice.prompt, choice.output, ask.origin, ask.reads_cache, ask.full_report),
            now,
            inbox,
            index,
            ask.stream,
        )
        for index, choice in enumerate(ask.choices)
    ]
    watch = asyncio.create_task(_interrupt_when_gone(exchange, inbox))
    answer = shape(ask, model, engine.limits.block_size)
    try:
        if ask.stream:
            await _Stream(ask, model, answer, tickets, inbox, exchange, faults).run(headers)
        else:
            await _whole(ask, model, answer, tickets, inbox, exchange, headers)
    except Interrupted:
        await exchange.cut()
    finally:
        for ticket in tickets:
            engine.withdraw(ticket)
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch


async def _interrupt_when_gone(exchange: Exchange, inbox: Inbox) -> None:
    await exchange.gone()
    inbox.put_nowait((0, Interrupted("the client is gone")))


async def _whole(
    ask: Ask, model: Model, answer: Answer, tickets: list[Ticket], inbox: Inbox, exchange: Exchange,
    headers: Mapping[str, str],
) -> None:  # fmt: skip
    for _ in tickets:
        _, end = await inbox.get()
        if isinstance(end, Interrupted):
            raise end
    texts = [model.vocabulary.decode(choice.output) for choice in ask.choices]
    body = answer.whole(texts, tickets[-1].request.cached_tokens or 0)
    await exchange.respond(200, orjson.dumps(body), "application/json", headers)


class _Stream:
    """One answer as server-sent events."""

    def __init__(
        self, ask: Ask, model: Model, answer: Answer, tickets: list[Ticket], inbox: Inbox, exchange: Exchange,
        faults: Faults,
    ) -> None:  # fmt: skip
        self._ask = ask
        self._answer = answer
        self._tickets = tickets
        self._inbox = inbox
        self._exchange = exchange
        self._faults = faults
        self._spellers = [Speller(model.vocabulary) for _ in tickets]
        self._sent = [0] * len(tickets)
        self._chunks = 0

    async def run(self, headers: Mapping[str, str]) -> None:
        """Send everything. Raises Interrupted."""
        await self._exchange.start(200, "text/event-stream; charset=utf-8", headers)
        try:
            await self._answer_all()
        except Refused as failure:
            await self._exchange.send(b"data: %b\n\ndata: [DONE]\n\n" % orjson.dumps(failure.body))
            await self._exchange.end()

    async def _answer_all(self) -> None:
        answering = len(self._tickets)
        opened = False
        while answering:
            merged: dict[int, list[int]] = {}
            for _ in range(CHUNKS_MERGED_MAX):
                index, token = await self._next()
                if token is None:
                    answering -= 1
                else:
                    merged.setdefault(index, []).append(token)
                if self._inbox.empty():
                    break
            if not opened:
                opened = True
                for chunk in self._answer.opening():
                    await self._send(chunk)
            for index, tokens in merged.items():
                await self._send(self._piece(index, tokens))
        await self._close()

    async def _next(self) -> tuple[int, int | None]:
        index, token = await self._inbox.get()
        if isinstance(token, Interrupted):
            raise token
        return index, token

    def _piece(self, index: int, tokens: list[int]) -> bytes:
        first = self._sent[index] == 0
        self._sent[index] += len(tokens)
        last = self._sent[index] == len(self._ask.choices[index].output)
        speller = self._spellers[index]
        text = "".join(speller.add(token, last and at == len(tokens)) for at, token in enumerate(tokens, 1))
        return self._answer.chunk(index, text, tokens, first, last, sum(self._sent))

    async def _close(self) -> None:
        for chunk in self._answer.closing(sum(self._sent), self._tickets[-1].request.cached_tokens or 0):
            await self._send(chunk)
        await self._exchange.end()

    async def _send(self, data: bytes) -> None:
        if self._chunks == self._faults.die_after_chunks:
            raise Interrupted("told to die here")
        if self._chunks == self._faults.fail_after_chunks:
            raise Refused(500, "EngineCore encountered an issue.")
        self._chunks += 1
        await self._exchange.send(data)
