"""The gateway in front of two real vLLM servers: it knows what they hold, to the token, and keeps knowing it.

What the gateway says before an answer (`x-warmroute-matched-tokens`) is compared with what the server says in it
(`usage.prompt_tokens_details.cached_tokens`). One request after the other, they agree.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests_vllm.figures import agreement, misses
from tests_vllm.fleet import BLOCK_SIZE, BLOCKS, DROPPED, MODEL, SPECULATIVE, Gateway, VllmServer
from tests_vllm.processes import wait_until
from tests_vllm.talk import Answered, Conversation, Talker, at_once, client_of, in_turns, prose, token_ids

AGREE_MIN = 0.99
PODS = ["pod-0", "pod-1"]
SYSTEM_WORDS = 90  # about 10 blocks
RECOVERY_S = 30.0  # probes every 2 s, and what they ask

Talkers = Callable[..., Talker]


@pytest.fixture
async def talker(
    gateway: Gateway, answers: list[Answered], notes: list[str], request: pytest.FixtureRequest
) -> AsyncIterator[Talkers]:
    """Makes a talker for a phase; notes what was predicted wrongly, and the pods' speeds as learned by the end."""
    async with client_of(gateway.address) as client:

        def explain(answered: Answered) -> None:
            notes.append(f"wrong: {answered}\n  {gateway.last_decision()}")

        def of(phase: str, sequential: bool = True) -> Talker:
            return Talker(client, phase, answers, explain, sequential)

        yield of
    notes.append(f"{request.node.name}: prefill tokens/s learned {gateway.speeds()}")


def conversations(talker: Talker, rng: random.Random, count: int) -> list[Conversation]:
    """Conversations that share half as many system prompts."""
    systems = [prose(rng, SYSTEM_WORDS) for _ in range((count + 1) // 2)]
    return [
        Conversation(talker, random.Random(rng.random()), [{"role": "system", "content": systems[number // 2]}])
        for number in range(count)
    ]


async def begun(gateway: Gateway, talker: Talker, rng: random.Random, count: int) -> list[Conversation]:
    """Conversations after their first turn; those of a system prompt on one pod, the next system prompt's on the other.

    Placed by draining, as an operator would: the gateway is free to choose from the second turn on.
    """
    talks = conversations(talker, rng, count)
    for number, talk in enumerate(talks):
        with gateway.only(PODS[number // 2 % len(PODS)], PODS):
            await in_turns([talk], turns=1)
    assert {talk.pods[0] for talk in talks} == set(PODS)
    return talks


def assert_agree(answers: list[Answered]) -> None:
    """At least `AGREE_MIN` of them."""
    assert answers
    assert agreement(answers) >= AGREE_MIN, misses(answers)


def assert_exact(gateway: Gateway) -> None:
    """Nothing is unknown of any pod."""
    for pod in PODS:
        rank = gateway.rank(pod)
        assert (rank["state"], rank["reasons"], rank["block_size"]) == ("exact", [], BLOCK_SIZE), (pod, rank)


@pytest.mark.skipif(not SPECULATIVE, reason="the servers have no drafter (VLLM_SPECULATIVE)")
async def test_a_drafter_is_learned(gateway: Gateway, talker: Talkers, rng: random.Random) -> None:
    """Of which kind the drafter is, nothing tells: the first hits show it, and until then no pod is called exact."""
    asks = talker("a drafter is learned", sequential=False)
    for pod in PODS:
        ids = token_ids(rng, 6 * BLOCK_SIZE + 5)
        with gateway.only(pod, PODS):
            for number in range(8):
                if number < 2:
                    assert gateway.rank(pod)["state"] == "degraded"
                await asks.complete([*ids, *token_ids(rng, 3)], False, max_tokens=1, temperature=0)
                gateway.settle(PODS)
        assert gateway.rank(pod)["hit_rule"]["proven"]
    assert_exact(gateway)


async def test_conversations(gateway: Gateway, talker: Talkers, rng: random.Random) -> None:
    """Multi-turn chats, streamed or not: every hit is foreseen, and a conversation stays where its blocks are."""
    talks = await begun(gateway, talker("conversations, placed"), rng, 8)
    asked = [talk.heard[0] for talk in talks]
    for talk in talks:
        talk.talker = talker("conversations")
    await in_turns(talks, turns=4)
    assert_agree([*asked, *(each for talk in talks for each in talk.heard)])
    for talk in talks:
        assert len(set(talk.pods)) == 1, [talk.pods for talk in talks]
        for before, after in itertools.pairwise(talk.heard):  # nothing had to be evicted: the pools are large enough
            whole = (before.prompt_tokens - 1) // BLOCK_SIZE - DROPPED
            assert after.cached >= whole * BLOCK_SIZE, (str(before), str(after))
    assert_exact(gateway)


async def test_without_a_pause(gateway: Gateway, talker: Talkers, rng: random.Random) -> None:
    """The next turn is asked as soon as the last has ended, before its events are there: what was promised counts.

    Only the block that the last answer's own tokens filled may not be known yet, so these are no evidence of the rest.
    """
    heard = []
    asks = talker("without a pause", sequential=False)
    for talk in conversations(asks, rng, 4):
        heard += await in_turns([talk], turns=6)
    for each in heard:
        assert 0 <= each.cached - each.predicted <= BLOCK_SIZE, str(each)


async def test_token_ids(gateway: Gateway, talker: Talkers, rng: random.Random) -> None:
    """Prompts of token ids around every border of a block, asked again, longer, shorter and with another end."""
    heard, asks, reused, held = [], talker("token ids"), [], set()
    for blocks in (1, 2, 5):
        for more in (-1, 0, 1):
            ids = token_ids(rng, blocks * BLOCK_SIZE + more)
            for prompt in (ids, ids, ids + token_ids(rng, 40), ids[:-5] + token_ids(rng, 5), ids):
                stream = rng.random() < 0.5
                heard.append(await asks.complete(prompt, stream, max_tokens=rng.choice((1, 4, 40)), temperature=0))
                beginnings = [tuple(prompt[:end]) for end in range(BLOCK_SIZE, len(prompt) + 1, BLOCK_SIZE)]
                found = sum(beginning in held for beginning in beginnings[: (len(prompt) - 1) // BLOCK_SIZE])
                reused.append(max(0, found - DROPPED) * BLOCK_SIZE)
                held.update(beginnings)
    assert_agree(heard)
    assert [each.cached for each in heard] == reused


async def test_other_forms(gateway: Gateway, talker: Talkers, rng: random.Random) -> None:
    """Tools, content in parts, salts, plain texts and /score's word for each: the same prompt is the same prompt."""
    asks, heard = talker("other forms"), []
    system = {"role": "system", "content": prose(rng, SYSTEM_WORDS)}
    parts = {"role": "user", "content": [{"type": "text", "text": prose(rng, 60)}, {"type": "text", "text": "And?"}]}
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "Übersee, 東京"}}}
    tools = [{"type": "function", "function": {"name": "weather", "description": "<b>", "parameters": parameters}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    history: list[dict[str, Any]] = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    history += [{"role": "tool", "tool_call_id": "call_1", "content": "12 degrees"}]
    salts = [{"cache_salt": "tenant-a"}, {"cache_salt": "tenant-b"}]
    bodies: list[tuple[dict[str, Any], dict[str, Any]]] = [
        *(({"messages": [system, parts]}, extra) for extra in ({}, *salts)),
        ({"messages": [system, parts]}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"messages": [system, parts], "tools": tools, "tool_choice": "none"}, {}),
        ({"messages": [system, parts, *history], "tools": tools, "tool_choice": "none"}, {}),
    ]
    for body, extra in bodies:
        for stream in (False, True):
            foreseen = gateway.score({"model": MODEL, **body, **extra})
            heard.append(await asks.chat(**body, stream=stream, max_tokens=4, temperature=0, extra_body=extra))
            (best,) = [pod for pod in foreseen["pods"] if pod["pod"] == heard[-1].pod]
            assert best["matched_tokens"] == heard[-1].cached, (foreseen, str(heard[-1]))
    text = prose(rng, 200)
    heard += [await asks.complete(text[:chars], True, max_tokens=4) for chars in (1200, 1200, 700, 1200)]
    assert_agree(heard)


async def test_more_than_fits(gateway: Gateway, talker: Talkers, rng: random.Random) -> None:
    """Far more prompts than both pools hold, in random order: what was evicted is known to be gone."""
    asks, heard = talker("more than fits"), []
    documents = [token_ids(rng, 36 * BLOCK_SIZE + 7) for _ in range(3 * 2 * BLOCKS // 36 // 2)]
    for _ in range(120):
        ids = documents[min(rng.randrange(len(documents)), rng.randrange(len(documents)))]
        heard.append(await asks.complete(ids[: rng.choice((20, 36)) * BLOCK_SIZE + 7], True, max_tokens=4))
    assert_agree(heard)
    gateway.settle(PODS)
    ranks = [gateway.rank(pod) for pod in PODS]
    assert sum(rank["events"]["counts"].get("removed", 0) for rank in ranks) > len(PODS) * BLOCKS
    assert all(rank["blocks"]["gpu"] < BLOCKS for rank in ranks), ranks
    assert_exact(gateway)


async def test_all_at_once(gateway: Gateway, talker: Talkers, rng: random.Random, notes: list[str]) -> None:
    """Concurrent conversations are all answered; when they are over, the gateway knows the pools to the block again."""
    talks = conversations(talker("all at once", sequential=False), rng, 12)
    await at_once(talks, turns=5)
    stayed = sum(before == after for talk in talks for before, after in zip(talk.pods, talk.pods[1:], strict=False))
    assert {pod for talk in talks for pod in talk.pods} == set(PODS), "equal servers share the work"
    notes.append(f"all at once: {stayed} of {sum(len(talk.pods) - 1 for talk in talks)} turns where the last one was")
    gateway.settle(PODS)
    for talk in talks:
        talk.talker = talker("after all at once")
    assert_agree(await in_turns(talks, turns=1))
    assert_exact(gateway)


async def test_reset(gateway: Gateway, servers: list[VllmServer], talker: Talkers, rng: random.Random) -> None:
    """After /reset_prefix_cache only the first answer of each pod surprises: vLLM tells of it with the next step."""
    talks = await begun(gateway, talker("before a reset"), rng, 6)
    cleared = {pod: gateway.rank(pod)["events"]["counts"].get("cleared", 0) for pod in PODS}
    for server in servers:
        server.reset()
    for pod in PODS:
        talk = next(talk for talk in talks if talk.pods[-1] == pod)
        talk.talker = talker("first after a reset")
        with gateway.only(pod, PODS):
            (first,) = await in_turns([talk], turns=1)
        assert (first.pod, first.cached) == (pod, 0)
    gateway.settle(PODS)
    assert {pod: gateway.rank(pod)["events"]["counts"]["cleared"] for pod in PODS} == {
        pod: count + 1 for pod, count in cleared.items()
    }
    for talk in talks:
        talk.talker = talker("after a reset")
    assert_agree(await in_turns(talks, turns=3))
    assert_exact(gateway)


async def test_killed_and_restarted(
    gateway: Gateway, servers: list[VllmServer], talker: Talkers, rng: random.Random, notes: list[str]
) -> None:
    """kill -9 of a server costs no answer that had not begun; restarted, it is known to be empty, and serves again."""
    asks = talker("before a kill")
    talks = await begun(gateway, asks, rng, 6)
    victim, other = servers
    at_victim = [talk for talk in talks if talk.pods[0] == victim.name]

    asks.phase, asks.sequential = "under a kill", False
    long: dict[str, Any] = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}  # longer than the kill takes
    in_flight = asyncio.gather(*(talk.turn(stream=False, temperature=0, **long) for talk in at_victim))
    await asyncio.to_thread(wait_until, lambda: gateway.rank(victim.name)["load"]["requests"] > 0, 5.0, "not begun")
    await asyncio.to_thread(victim.process.kill)
    rescued = await in_flight
    assert {each.pod for each in rescued} == {other.name}
    asks.phase, asks.sequential = "one pod left", True
    assert_agree(await in_turns(talks, turns=1))
    assert {talk.pods[-1] for talk in talks} == {other.name}

    victim.start()
    waited_s = await asyncio.to_thread(victim.wait)
    began = time.monotonic()
    await asyncio.to_thread(wait_until, lambda: gateway.fit(victim.name), RECOVERY_S, "not fit again")
    if not SPECULATIVE:  # by which rule it reuses blocks must be proven anew
        await asyncio.to_thread(
            wait_until, lambda: gateway.rank(victim.name)["state"] == "exact", RECOVERY_S, "not exact"
        )
    notes.append(f"restarted in {waited_s:.0f} s; exact and fit again {time.monotonic() - began:.1f} s after /health")
    assert gateway.rank(victim.name)["blocks"]["gpu"] == 0
    asks.phase = "after a restart"
    with gateway.only(victim.name, PODS):  # with what it held before it was killed
        anew = await in_turns(at_victim[:1], turns=1)
    assert [(each.predicted, each.cached) for each in anew] == [(0, 0)]
    assert_agree(await in_turns(talks + await begun(gateway, asks, rng, 6), turns=3))
    assert_exact(gateway)


def test_sequential_requests_over_all(answers: list[Answered]) -> None:
    """Over all tests before, the answers after a reset that nobody could foresee included."""
    sequential = [each for each in answers if each.sequential]
    if not sequential:
        pytest.skip("nothing was asked before")
    assert_agree(sequential)
