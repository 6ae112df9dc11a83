"""What a pod's own counters say of its prefill: speeds where answers tell none, and what waits there. Pure.

vLLM counts a request when it ends: how long its prefill took from when it was scheduled, and how many tokens were
computed. Between two looks these are means of some requests. Prefills that overlap each count the other's time too, but
those that were done between the looks, which first tokens tell at once, can't have taken longer than the time between:
so a busy pod may be believed slower than it is, by less than two times, and never faster. Answers are long where a pod
has too much to do, and nothing ends there: what is known first of a pod is how long its first tokens took to come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from router.core.fleet import Rank

_ENGINE = re.compile(rb'engine="(\d+)"')
_SERIES = (
    "request_prefill_time_seconds_count", "request_prefill_time_seconds_sum", "request_prompt_tokens_sum",
    "request_prefill_kv_computed_tokens_sum", "prefix_cache_queries_total", "prefix_cache_hits_total",
    "num_requests_waiting", "time_to_first_token_seconds_count", "time_to_first_token_seconds_sum",
    "prompt_tokens_total",
)  # fmt: skip


class Counted(NamedTuple):
    """One engine's counters since it started, of requests that have ended; `waiting`: how many wait now.

    `first_…`: of requests that have got their first token: how many, the seconds that it took, and their prompts.
    """

    requests: float
    seconds: float
    prompt_tokens: float
    computed_tokens: float | None  # before vLLM 0.12 or so it does not tell
    queried_tokens: float  # of all look-ups, which may be several for a request
    hit_tokens: float
    waiting: float
    first_requests: float
    first_seconds: float
    first_tokens: float


def prefills_of(text: bytes) -> dict[int, Counted]:
    """By engine; without those that do not tell. Of so much text only what is needed is looked at."""
    found: dict[int, dict[str, float]] = {}
    for name in _SERIES:
        for engine, value in _values(text, name):
            series = found.setdefault(engine, {})
            series[name] = series.get(name, 0.0) + value
    return {engine: counted for engine, series in found.items() if (counted := _counted(series)) is not None}


def _values(text: bytes, name: str) -> Iterator[tuple[int, float]]:
    wanted, end = b"\nvllm:%s{" % name.encode(), 0
    while end >= 0 and (start := text.find(wanted, end)) >= 0:
        end = text.find(b"\n", start + 1)
        line = text[start + 1 : end if end >= 0 else len(text)]
        engine = _ENGINE.search(line)
        try:
            value = float(line.rsplit(b" ", 1)[1])
        except (ValueError, IndexError):
            continue
        if 0.0 <= value < float("inf"):
            yield int(engine[1]) if engine is not None else 0, value


def _counted(series: dict[str, float]) -> Counted | None:
    requests, seconds, prompt, computed, *others = (series.get(name) for name in _SERIES)
    if requests is None or seconds is None or prompt is None:
        return None
    return Counted(requests, seconds, prompt, computed, *(value or 0.0 for value in others))


class Prefills:
    """Of the ranks of one pod: the last look, and what the next one teaches."""

    def __init__(self) -> None:
        self._looks: dict[int, tuple[Counted, float]] = {}  # by rank: and when
        self._samples: dict[int, int] = {}  # that first bytes had taught by then
        self._tickets: dict[int, int] = {}

    def wanted(self, ranks: Iterable[Rank]) -> bool:
        """Something was sent there since the last look, or has not ended, and first bytes have taught nothing of it."""
        return any(
            (rank.load.tickets != self._tickets.get(rank.id.rank, 0) or rank.load.requests)
            and rank.load.rate.samples == self._samples.get(rank.id.rank, 0)
            for rank in ranks
        )

    def looked(self, ranks: list[Rank], text: bytes, asked_at: float) -> None:
        """The pod's /metrics as they were at `asked_at`, or a moment later."""
        engines = prefills_of(text)
        if len(ranks) == 1 and len(engines) == 1:  # whatever number it gives itself
            engines = {ranks[0].id.rank: engines.popitem()[1]}
        for rank in ranks:
            number, rate = rank.id.rank, rank.load.rate
            now = engines.get(number)
            before, at = self._looks.pop(number, (None, asked_at))
            if now is not None:
                rank.load.stated(int(now.waiting), asked_at)
                if before is not None and rate.samples == self._samples.get(number, 0):
                    _teach(rank, before, now, asked_at - at)
                self._looks[number] = now, asked_at
            self._samples[number], self._tickets[number] = rate.samples, rank.load.tickets


def _teach(rank: Rank, before: Counted, now: Counted, passed_s: float) -> None:
    """By what has ended; of a pod of which nothing is known, by what has begun to be answered."""
    requests, seconds = now.requests - before.requests, now.seconds - before.seconds
    prompt, done = now.prompt_tokens - before.prompt_tokens, now.first_requests - before.first_requests
    read = _share_read(before, now)
    if requests < 1 and done >= 1 and not rank.load.rate.samples:
        requests, seconds = done, now.first_seconds - before.first_seconds
        prompt, read = now.first_tokens - before.first_tokens, _share_hit(before, now)
    computed = prompt * (1.0 - read)
    if requests < 1 or done < 1 or seconds <= 0.0 or not 0.0 < computed <= prompt:  # or it was started anew
        return
    rate, each_s = rank.load.rate, min(seconds / requests, passed_s / done)
    rate.learn(computed / requests, rate.fleet.base_s + each_s, (prompt - computed) / requests, requests)


def _share_read(before: Counted, now: Counted) -> float:
    """Of the prompts that have ended, what was read from the cache: as told, else as in all look-ups."""
    if now.computed_tokens is None or before.computed_tokens is None:
        return _share_hit(before, now)
    prompt = now.prompt_tokens - before.prompt_tokens
    return 1.0 - (now.computed_tokens - before.computed_tokens) / prompt if prompt > 0 else 0.0


def _share_hit(before: Counted, now: Counted) -> float:
    """Of all that was looked up."""
    queried, hit = now.queried_tokens - before.queried_tokens, now.hit_tokens - before.hit_tokens
    return hit / queried if queried > 0.0 else 0.0
