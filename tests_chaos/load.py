"""Steady load of chats, streamed and not. Every request ends in exactly one of the ends below, and is kept."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from tests.fakes.processes import MODEL, PLAIN

CLIENTS = 14
THINK_S = 0.15  # at most, between an answer and the next question
STREAM_SHARE = 0.6
LEAVE_SHARE = 0.05  # of requests that their client gives up
LEAVE_S = (0.05, 0.4)
TENANTS, USERS, TURNS_MAX = 5, 60, 4
DEADLINE_S = 20.0  # above all that the gateway's own limits allow a request

WHOLE = "whole"  # 200, and all of it
CUT = "cut"  # 200, and a connection that ends before the response does
LEFT = "left"  # by its own client
DROPPED = "dropped"  # no answer at all: the gateway must not
WRONG = "wrong"  # 200 and another request's answer, or a clean end of half an answer: the gateway must not
HUNG = "hung"  # no end within `DEADLINE_S`: the gateway must not


@dataclass(frozen=True, slots=True)
class Told:
    """How one request ended, in monotonic seconds. `end`: one of the words above, or an HTTP status."""

    began: float
    ended: float
    end: str
    status: int | None
    pod: str | None
    detail: str = ""


class Load:
    """`CLIENTS` clients that ask one question after the other."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._seed = seed
        self._numbers = itertools.count()
        self._over = False
        self.told: list[Told] = []
        self.sent = 0

    async def during(self, work: Callable[[], Any]) -> None:
        """Ask for as long as `work` takes; all answers are in when this returns."""
        clients = [asyncio.create_task(self._client(random.Random(f"{self._seed} {n}"))) for n in range(CLIENTS)]
        try:
            await work()
        finally:
            self._over = True
            await asyncio.gather(*clients)

    async def _client(self, draw: random.Random) -> None:
        async with httpx.AsyncClient(base_url=self._url, **{**PLAIN, "timeout": None}) as http:
            while not self._over:
                self.sent += 1
                self.told.append(await self._ask(http, draw, f"chaos-{self._seed}-{next(self._numbers)}"))
                await asyncio.sleep(draw.uniform(0, THINK_S))

    async def _ask(self, http: httpx.AsyncClient, draw: random.Random, name: str) -> Told:
        body = chat(draw, stream=draw.random() < STREAM_SHARE)
        leaves_s = draw.uniform(*LEAVE_S) if draw.random() < LEAVE_SHARE else None
        answer = _Answer()
        end, detail, began = HUNG, "", time.monotonic()
        try:
            async with asyncio.timeout(leaves_s or DEADLINE_S):
                await answer.read(http, body, name)
            end = answer.end(body["stream"], name)
        except TimeoutError:
            end = LEFT if leaves_s is not None else HUNG
        except httpx.TransportError as error:
            end, detail = DROPPED if answer.status is None else CUT, repr(error)
        detail = detail or (repr(bytes(answer.body[-300:])) if end != WHOLE else "")
        return Told(began, time.monotonic(), end, answer.status, answer.pod, detail)


class _Answer:
    """One response, as far as it has come."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.pod: str | None = None
        self.body = bytearray()

    async def read(self, http: httpx.AsyncClient, body: dict[str, Any], name: str) -> None:
        headers = {"x-request-id": name}
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            self.status, self.pod = response.status_code, response.headers.get("x-warmroute-pod")
            async for chunk in response.aiter_raw():
                self.body += chunk

    def end(self, stream: bool, name: str) -> str:
        """The end of a response that the connection says is complete."""
        if self.status != 200:
            return str(self.status)
        own = b'"id":"chatcmpl-%b"' % name.encode()
        if not stream:
            answer = orjson.loads(self.body)
            return WHOLE if answer["id"] == f"chatcmpl-{name}" and answer["usage"] else WRONG
        chunks = bytes(self.body).split(b"\n\n")
        if chunks[-2:] != [b"data: [DONE]", b""] or not all(own in chunk for chunk in chunks[:-2]):
            return WRONG
        return WHOLE


def chat(draw: random.Random, stream: bool) -> dict[str, Any]:
    """A question late in one of many conversations, which share what their tenants and users share."""
    tenant, user, turns = draw.randrange(TENANTS), draw.randrange(USERS), draw.randrange(1, TURNS_MAX + 1)
    messages = [{"role": "system", "content": _words(f"tenant {tenant}", 120)}]
    for turn in range(turns):
        role = "assistant" if turn % 2 else "user"
        messages.append({"role": role, "content": _words(f"user {user} turn {turn}", 30)})
    messages.append({"role": "user", "content": _words(str(draw.random()), 10)})
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": draw.randrange(4, 60), "stream": stream}
    return {**body, "stream_options": {"include_usage": True}} if stream else body


def _words(seed: str, count: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghilmnoprstu", k=draw.randrange(2, 9))) for _ in range(count))
