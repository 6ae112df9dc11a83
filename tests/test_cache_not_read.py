"""Requests for which the pod computes all of the prompt, whatever it holds: no match is promised or priced."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import orjson
import pytest

from router.core.demand import Demand
from router.prompts.prompt import parse
from tests.fakes.cores import NOBODY, VOID, asked, core_of, counted, decide, held, route, store, tokens_of
from tests.fakes.processes import MODEL, PLAIN, PodProcess, eventually, gateway, pods


@pytest.mark.parametrize(
    ("more", "reads"),
    [
        ({}, True), ({"prompt_logprobs": None}, True), ({"prompt_logprobs": 0}, False), ({"prompt_logprobs": 5}, False),
        ({"logprobs": 2}, True), ({"echo": True}, True), ({"echo": True, "logprobs": 0}, False),
        ({"echo": "true", "logprobs": 1}, False), ({"echo": False, "logprobs": 1}, True),
        ({"echo": True, "logprobs": None}, True), ({"prompt_logprobs": 1, "use_beam_search": True}, True),
        ({"cache_salt": "once"}, True),
    ],
)  # fmt: skip
def test_completions(more: dict[str, object], reads: bool) -> None:
    """What vLLM makes prompt_logprobs of: a beam search takes no notice of them."""
    body = orjson.dumps({"model": "m", "prompt": "x", **more})
    assert parse("/v1/completions", body).reads_cache is reads
    assert parse("/score", body).reads_cache is reads


@pytest.mark.parametrize(
    ("more", "reads"),
    [
        ({}, True), ({"prompt_logprobs": 1}, False), ({"logprobs": True, "top_logprobs": 2}, True),
        ({"echo": True}, False), ({"echo": True, "top_logprobs": None}, True),
    ],
)  # fmt: skip
def test_chats(more: dict[str, object], reads: bool) -> None:
    """Where `top_logprobs` are not given they are 0, which is not none."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **more}
    assert parse("/v1/chat/completions", orjson.dumps(body)).reads_cache is reads


@pytest.mark.parametrize(
    ("sampling", "reads"),
    [
        (None, True), ({}, True), ({"prompt_logprobs": 0}, False), ({"prompt_logprob_token_ids": [1]}, False),
        ({"skip_reading_prefix_cache": True}, False), ({"skip_reading_prefix_cache": False}, True),
        ({"skip_reading_prefix_cache": False, "prompt_logprobs": 1}, True),
    ],
)  # fmt: skip
def test_tokens(sampling: object, reads: bool) -> None:
    """vLLM's own request can say it outright."""
    body = orjson.dumps({"token_ids": [1, 2, 3], "sampling_params": sampling})
    assert parse("/inference/v1/generate", body).reads_cache is reads


@pytest.mark.parametrize(("task", "reads"), [("embed", True), ("token_embed", False), ("token_classify", False)])
def test_pooling(task: str, reads: bool) -> None:
    """A result for every token needs every token computed."""
    assert parse("/pooling", orjson.dumps({"model": "m", "input": "x", "task": task})).reads_cache is reads


def test_nothing_is_promised_or_priced() -> None:
    """The holder is as dear as the others, and takes its turn; the ticket is for all of the prompt."""
    core = core_of(4)
    store(core, "pod-1", 1)
    placed = [route(core, asked(core, 1, reads_cache=False), NOBODY, 0.0) for _ in range(8)]
    assert set(Counter(each.pod.name for each in placed).values()) == {2}
    assert {each.decision.matched_tokens for each in placed} == {0}
    assert {each.ticket.tokens for each in placed} == {160}
    assert decide(core, asked(core, 1), NOBODY, 0.0).matched_tokens == 144


def test_its_blocks_are_there_after_it() -> None:
    """They are stored as always: the next one with the same beginning follows, and what was held stays as it was."""
    core = core_of(2)
    store(core, "pod-1", 1, 80)
    placed = route(core, asked(core, 1, reads_cache=False), NOBODY, 0.0)
    assert held(core, placed.pod.name, 1) == 10
    core.finish(placed, VOID, 0.0)
    core.index.expire(0.1)
    assert (held(core, "pod-0", 1), held(core, "pod-1", 1)) == (0, 5)


def test_nor_for_a_text() -> None:
    """Where only the text is known, it is followed by who can use it alone."""
    core = core_of(2)
    text = core.space.chain(tokens_of(1), 16)
    first = route(core, Demand("m", 320, text=text), NOBODY, 0.0)
    assert route(core, Demand("m", 320, text=text), NOBODY, 0.0).pod is first.pod
    other = route(core, Demand("m", 320, text=text, reads_cache=False), NOBODY, 0.0)
    assert other.pod is not first.pod
    assert core.texts.match(text).hits[other.decision.rank.id].blocks == 10


def test_it_proves_nothing() -> None:
    """That the pod says 0 is neither against its feed nor in its counters."""
    core = core_of(1)
    store(core, "pod-0", 1)
    pod = core.fleet.pods["pod-0"]
    pod.evidence.usage = True
    feed = pod.ranks[0].feed
    assert feed is not None
    for usage in (True, False):
        pod.evidence.usage = usage
        for _ in range(20):
            placed = route(core, asked(core, 1, 161, reads_cache=False, is_alone=True), NOBODY, 0.0)
            core.finish(placed, counted(161, 0 if usage else None), 0.0)
    assert feed.state == "exact" and pod.evidence.asked_tokens == 0


async def test_through_a_gateway(tmp_path: Path) -> None:
    """An evaluation of many prompts that begin alike goes to all pods, and is promised what it gets."""
    shared = " ".join(str(word) for word in range(200))
    fleet = [PodProcess(f"pod-{number}") for number in range(2)]
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet]) as served:
        async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
            body = {"model": MODEL, "prompt": shared, "max_tokens": 1}
            assert (await http.post("/v1/completions", json=body)).status_code == 200
            await eventually(lambda: any(ranks[0]["blocks"]["gpu"] for ranks in served.ranks().values()))
            score = (await http.post("/score", json={**body, "prompt_logprobs": 1})).json()
            assert {pod["matched_tokens"] for pod in score["pods"]} == {0}
            asks = ({"prompt_logprobs": 1}, {"echo": True, "logprobs": 0}) * 8
            given = [{**body, **more, "prompt": f"{shared} {turn}"} for turn, more in enumerate(asks)]
            answers = await asyncio.gather(*(http.post("/v1/completions", json=each) for each in given))
            for answer in answers:
                details = answer.json()["usage"]["prompt_tokens_details"] or {}
                assert answer.headers["x-warmroute-matched-tokens"] == str(details.get("cached_tokens", 0)) == "0"
            assert {answer.headers["x-warmroute-pod"] for answer in answers} == {"pod-0", "pod-1"}
            again = await http.post("/v1/completions", json={**body, "prompt": f"{shared} again"})
            assert int(again.headers["x-warmroute-matched-tokens"]) > 0
