"""Pods' speeds and queues by their own counters, where answers tell nothing before their end."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import pytest

from router.core.fleet import Pod, Rank, RankId
from router.discovery.prefills import Prefills, prefills_of
from scorer.cost import FleetRate, PrefillRate
from scorer.load import PodLoad
from tests.fakes.processes import MODEL, PLAIN, PodProcess, eventually, gateway, pods

VECTORS = Path(__file__).parent / "vectors"


def ranks_of(*numbers: int) -> list[Rank]:
    """Ranks of one pod, in a fleet of their own."""
    pod, fleet = Pod("pod-0", "http://x"), FleetRate(8_000.0)
    return [Rank(RankId("pod-0", number), pod, PodLoad(PrefillRate(8_000.0, fleet)), None) for number in numbers]


def text_of(
    requests: int,
    seconds: float,
    tokens: int,
    cached: int = 0,
    waiting: int = 0,
    engine: int = 0,
    first: tuple[int, float, int] | None = None,
) -> bytes:
    """Counters as vLLM 0.20 and later have them. `first`: requests with a first token, its seconds, their tokens."""
    first_requests, first_seconds, first_tokens = first or (requests, seconds, tokens)
    labels = f'{{engine="{engine}",model_name="m"}}'
    values = {
        "num_requests_waiting": waiting,
        "request_prefill_time_seconds_count": requests,
        "request_prefill_time_seconds_sum": seconds,
        "request_prompt_tokens_sum": tokens,
        "request_prefill_kv_computed_tokens_sum": tokens - cached,
        "time_to_first_token_seconds_count": first_requests,
        "time_to_first_token_seconds_sum": first_seconds,
        "prompt_tokens_total": first_tokens,
    }
    return "".join(f"# TYPE x\nvllm:{name}{labels} {value}\n" for name, value in values.items()).encode()


@pytest.mark.parametrize("version", sorted(path.parent.name for path in VECTORS.glob("*/metrics_end.txt")))
def test_every_recorded_version_tells(version: str) -> None:
    """By engine; some tokens were computed and some were not, and the pod took time for them."""
    engines = prefills_of((VECTORS / version / "metrics_end.txt").read_bytes())
    assert sorted(engines) == ([0, 1] if version.endswith("dp2") else [0])
    for counted in engines.values():
        assert counted.requests > 0 and counted.seconds > 0.0 and counted.queried_tokens > counted.hit_tokens > 0
        assert counted.computed_tokens is None or 0 < counted.computed_tokens < counted.prompt_tokens
        assert counted.first_requests >= counted.requests and counted.first_tokens >= counted.prompt_tokens
        assert counted.first_seconds >= counted.seconds


@pytest.mark.parametrize("text", [b"", b"\nvllm:request_prompt_tokens_sum{", b'\nvllm:num_requests_waiting{a="b"} x\n'])
def test_what_cannot_be_read_is_nothing(text: bytes) -> None:
    """A pod that tells other things, or half of it."""
    assert prefills_of(text) == {}


def test_means_are_learned() -> None:
    """A quiet pod: ten requests of 2,000 tokens took half a second each, so it makes 4,000 tokens a second."""
    prefills, (rank,) = Prefills(), ranks_of(0)
    for look in range(12):
        prefills.looked([rank], text_of(10 * look, 5.0 * look, 20_000 * look), 60.0 * look)
    assert rank.load.rate.tokens_per_s == pytest.approx(4_000, rel=0.15) and rank.load.rate.samples == 11


def test_a_busy_pod_works_no_longer_than_time_passes() -> None:
    """Prefills that overlap count each other's time: a hundred seconds of it in five are five."""
    prefills, (rank,) = Prefills(), ranks_of(0)
    for look in range(12):
        prefills.looked([rank], text_of(10 * look, 100.0 * look, 20_000 * look), 5.0 * look)
    assert rank.load.rate.tokens_per_s == pytest.approx(4_000, rel=0.15)


def test_what_ends_at_once_was_not_computed_at_once() -> None:
    """Twenty answers end between two looks; their prompts were computed one by one, in half a second each."""
    prefills, (rank,) = Prefills(), ranks_of(0)
    for look in range(12):
        ended, done = 20 * (look // 5), 4 * look
        first = (done, 3.0 * done, 2_000 * done)
        prefills.looked([rank], text_of(ended, 0.9 * ended, 2_000 * ended, first=first), 2.0 * look)
    assert rank.load.rate.samples == 3 and rank.load.rate.tokens_per_s == pytest.approx(4_000, rel=0.15)


def test_first_tokens_tell_of_a_pod_that_ends_nothing() -> None:
    """All of its answers stand still behind prefills: four first tokens in two seconds. Once it is known, what ends
    says it better: an answer may have waited for other things than prefills."""
    prefills, (rank, other) = Prefills(), ranks_of(0, 1)
    for _ in range(20):
        other.load.rate.learn(2_000, 0.1)
    prefills.looked([rank], text_of(0, 0.0, 0), 0.0)
    prefills.looked([rank], text_of(0, 0.0, 0, first=(4, 9.0, 8_000)), 2.0)
    assert 0.35 < rank.load.rate.cost_s(2_000) < 0.55 and rank.load.rate.samples == 1
    prefills.looked([rank], text_of(0, 0.0, 0, first=(5, 60.0, 10_000)), 62.0)
    assert rank.load.rate.samples == 1


def test_cached_tokens_took_no_time() -> None:
    """What was read from the cache is what the rest stood behind."""
    prefills, (rank,) = Prefills(), ranks_of(0)
    for look in range(12):
        prefills.looked([rank], text_of(10 * look, 5.0 * look, 50_000 * look, 30_000 * look), 60.0 * look)
    assert rank.load.rate.cost_s(2000, 3000) == pytest.approx(0.5, rel=0.15)


def test_an_old_version_tells_by_its_hits() -> None:
    """It counts a look-up more than once: the share of hits is right all the same."""
    prefills, (rank,) = Prefills(), ranks_of(0)
    for look in range(12):
        lines = text_of(10 * look, 5.0 * look, 50_000 * look).splitlines()
        text = b"\n".join(line for line in lines if b"kv_computed" not in line)
        text += b"\nvllm:prefix_cache_queries_total{} %d\nvllm:prefix_cache_hits_total{} %d\n"
        prefills.looked([rank], text % (200_000 * look, 120_000 * look), 60.0 * look)
    assert rank.load.rate.cost_s(2000, 3000) == pytest.approx(0.5, rel=0.15)


def test_first_bytes_say_it_better() -> None:
    """Where streams have taught since the last look, the counters do not; nor do those of a pod started anew."""
    prefills, (rank,) = Prefills(), ranks_of(0)
    prefills.looked([rank], text_of(10, 5.0, 20_000), 0.0)
    rank.load.rate.learn(1000, 0.2)
    prefills.looked([rank], text_of(20, 50.0, 40_000), 60.0)
    prefills.looked([rank], text_of(1, 0.1, 1_000), 120.0)
    prefills.looked([rank], b"", 130.0)
    prefills.looked([rank], text_of(90, 90.0, 100_000), 140.0)
    assert rank.load.rate.samples == 1


def test_what_waits_there_is_a_backlog() -> None:
    """By rank: the pod's word of requests that it has not scheduled."""
    prefills, ranks = Prefills(), ranks_of(0, 1)
    for rank in ranks:
        for _ in range(4):
            rank.load.admit(8000, 0.0)
    text = text_of(1, 1.0, 100, waiting=3, engine=0) + text_of(1, 1.0, 100, waiting=0, engine=1)
    prefills.looked(ranks, text, 60.0)
    assert [rank.load.backlog_s(60.0) for rank in ranks] == [pytest.approx(3.0), 0.0]


def test_it_is_asked_for_where_nothing_else_tells() -> None:
    """While there are requests that taught nothing, and after them; not of an idle pod, nor where streams teach."""
    prefills, ranks = Prefills(), ranks_of(0)
    load = ranks[0].load
    assert not prefills.wanted(ranks)
    whole = load.admit(1000, 0.0)
    assert prefills.wanted(ranks)
    prefills.looked(ranks, b"", 1.0)
    assert prefills.wanted(ranks), "it may have been computed since"
    load.release(whole, 2.0)
    assert not prefills.wanted(ranks)
    stream = load.admit(1000, 2.0, tells=True)
    load.first_byte(stream, 2.1, measured=True)
    assert not prefills.wanted(ranks)


async def test_unequal_pods_that_answer_whole(tmp_path: Path) -> None:
    """Clients that do not stream: the slow pod is known all the same, by its own counters."""
    rnd = random.Random(5)
    fleet = [
        PodProcess(f"pod-{n}", ("--time-scale", "0.3", "--prefill-tokens-per-s", speed))
        for n, speed in enumerate(("20000", "2500"))
    ]

    def speeds() -> list[float]:
        ranks = served.ranks()
        return [float(ranks[f"pod-{n}"][0]["load"]["prefill_tokens_per_s"]) for n in range(2)]

    async def ask(http: httpx.AsyncClient) -> None:
        content = " ".join(str(rnd.randrange(10**6)) for _ in range(120))
        body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200

    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet], probe={"interval": 0.3}) as served:
        async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
            for _ in range(16):
                await asyncio.gather(*(ask(http) for _ in range(2)))
        await eventually(lambda: speeds()[0] > 2 * speeds()[1])
