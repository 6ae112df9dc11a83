"""Prompts whose tokens are not known go where one that began alike went before: a guess, and nothing is promised."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.blocks import KeySpace
from router.core.demand import TEXT_BLOCK_TOKENS, Demand
from router.prompts.beginnings import Beginning, beginning_of
from router.prompts.prompt import parse
from router.tokens.local import LocalTokens, TokensUnavailable
from router.tokens.tokenizer import Tokenizer
from tests.fakes.cores import MODEL, NOBODY, SERVED, VOID, core_of, route
from tests.fakes.encoders import POOLED, Rendered, Waiting, a_store
from tests.fakes.hostile import TINY_QWEN
from tests.fakes.limits import local_tokens_limits
from tests.fakes.peers import peer
from tests.fakes.probes import Anything
from tests.fakes.services import in_process

SPACE = KeySpace(5)
BYTES_MAX = 1 << 16
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 500}}


def chat(*contents: Any, **more: Any) -> bytes:
    """A chat body whose turns alternate."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return orjson.dumps({"model": MODEL, "messages": messages, **more})


def beginning(body: bytes, path: str = "/v1/chat/completions", bytes_max: int = BYTES_MAX) -> Beginning:
    found = beginning_of(SPACE, parse(path, body), bytes_max)
    assert found is not None
    return found


def alike(first: Beginning, second: Beginning) -> int:
    """How many leading blocks two texts share."""
    shared = min(len(first.keys), len(second.keys))
    different = np.flatnonzero(first.keys[:shared] != second.keys[:shared])
    return int(different[0]) if len(different) else shared


words = st.text(min_size=1, max_size=400)


@given(st.lists(st.one_of(words, words.map(lambda text: [{"type": "text", "text": text}, IMAGE])), min_size=1), words)
def test_a_longer_conversation_begins_like_the_shorter(turns: list[Any], more: str) -> None:
    """Whatever the turns are made of: no block of the shorter is another in the longer."""
    shorter, longer = beginning(chat(*turns)), beginning(chat(*turns, more))
    assert alike(shorter, longer) == len(shorter.keys)


def test_what_differs_is_seen() -> None:
    """Another image, model, salt, tool or first word: nothing is shared, though the rest is."""
    tail = "and what is in this picture? " * 40
    turn = [IMAGE, {"type": "text", "text": tail}]
    base = beginning(chat(turn))
    other = {"type": "image_url", "image_url": {"url": "http://images/2.png"}}
    assert alike(base, beginning(chat([other, turn[1]]))) == 0
    for more in ({"model": "other"}, {"cache_salt": "tenant"}, {"tools": [{"type": "function"}]}):
        assert alike(base, beginning(chat(turn, **more))) == 0
    assert alike(base, beginning(chat(turn, temperature=0.5))) == len(base.keys) > 5


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"instructions": "Be brief. " * 30, "input": [{"role": "user", "content": "Hi " * 200}]}),
        ("/v1/responses", {"input": "Once upon a time " * 50}),
        ("/v1/messages", {"system": "Be brief. " * 30, "messages": [{"role": "user", "content": "Hi " * 200}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [IMAGE]}, "x" * 900, 2**70]}),
    ],
)
def test_apis_whose_prompts_only_the_pod_renders(path: str, body: dict[str, Any]) -> None:
    """Their texts are known, and about how long they are."""
    prompt = parse(path, json.dumps(body).encode())
    found = beginning_of(SPACE, prompt, BYTES_MAX)
    assert found is not None and found.tokens is not None
    assert len(found.keys) == found.tokens // TEXT_BLOCK_TOKENS > 2


def test_no_more_is_looked_at_than_may_be() -> None:
    """Of a long text only the beginning counts, and its length is not known then; of nothing, nothing is."""
    found = beginning(chat([IMAGE, {"type": "text", "text": "x" * 50_000}]), bytes_max=4096)
    assert (len(found.keys), found.tokens) == (4096 // (4 * TEXT_BLOCK_TOKENS), None)
    assert beginning_of(SPACE, parse("/v1/audio/transcriptions", b"RIFF"), BYTES_MAX) is None
    assert len(beginning(chat("short")).keys) == 0


# --- the decision


def asked(body: bytes) -> Demand:
    found = beginning(body)
    return Demand(MODEL, found.tokens or 0, text=found.keys, reason="not tokenized: images")


def test_turns_of_a_conversation_meet_on_one_pod() -> None:
    """Others spread by load; a turn goes where the last one went, and promises nothing."""
    core = core_of(4)
    text = "It shows a harbour at night, with boats. " * 60
    bodies = [chat([{**IMAGE, "n": n}, {"type": "text", "text": "What?"}], text) for n in range(4)]
    first = [route(core, asked(body), NOBODY, 0.0) for body in bodies]
    assert len({placed.decision.rank.id for placed in first}) == 4
    for body, before in zip(bodies, first, strict=True):
        core.finish(before, SERVED, 1.0)
        grown = orjson.loads(body)
        grown["messages"].append({"role": "user", "content": "And by day?"})
        after = route(core, asked(orjson.dumps(grown)), NOBODY, 2.0)
        assert after.decision.rank is before.decision.rank
        assert after.decision.matched_tokens == 0
        assert after.decision.reason == "not tokenized: images; its text: holds the longest prefix"
        core.finish(after, SERVED, 3.0)


def test_guesses_fade_unless_they_are_used() -> None:
    """A beginning is forgotten after its time; each use begins it anew; a pod that failed did not get it."""
    core = core_of(2, index={"blocks_max": 10_000, "blind_ttl": 100})
    body = chat([IMAGE], "It shows a harbour. " * 100)

    def known(now: float) -> bool:
        core.texts.expire(now)
        return bool(core.texts.match(asked(body).text).hits)  # type: ignore[arg-type]

    for now in (0.0, 90.0, 180.0):
        core.finish(route(core, asked(body), NOBODY, now), SERVED, now)
    assert known(270.0)
    assert not known(281.0)
    core.finish(route(core, asked(body), NOBODY, 300.0), VOID, 301.0)
    assert not known(301.5)


# --- the edge


async def test_images_through_the_gateway() -> None:
    """A conversation about an image stays on its pod, /score says so without promising, and the header says 0."""
    async with peer(Anything(["raises"])) as one, peer(Anything(["raises"])) as two:
        static = [{"name": f"pod-{n}", "address": seen.address} for n, seen in enumerate((one, two))]
        async with in_process({"discovery": {"static": static}}) as (_, client):
            turns: list[Any] = [[IMAGE, {"type": "text", "text": "What is it? " * 20}]]
            pods = []
            for _ in range(6):
                body = {"model": "raises", "messages": [{"role": "user", "content": turn} for turn in turns]}
                answer = await client.post("/v1/chat/completions", json=body)
                assert answer.headers["x-warmroute-matched-tokens"] == "0"
                pods.append(answer.headers["x-warmroute-pod"])
                turns.append("and then, after all of that? " * 30)
            assert len(set(pods)) == 1
            score = (await client.post("/score", json=body)).json()
            assert score["pick"] == pods[0] and score["reason"].endswith("; its text: holds the longest prefix")
            best = next(pod for pod in score["pods"] if pod["pod"] == pods[0])
            assert (best["matched_tokens"], best["matched_blocks"], best["matched_by_tier"]) == (0, 0, {})
            assert best["text_tokens"] > 1000


async def test_what_was_tokenized_in_time_counts(pool: Any) -> None:
    """At the deadline the tokens that are known by then are told, and how much text is left."""
    tokenizer = Waiting(TINY_QWEN)
    encoder = LocalTokens("m", tokenizer, SPACE, a_store(), pool, replace(POOLED, deadline_s=0.2))
    text = "a long prompt, with many words. " * 100
    with pytest.raises(TokensUnavailable) as caught:
        await encoder.encode(Rendered(text), 16)
    known = caught.value.beginning
    assert known is not None and caught.value.rest_bytes > 0
    whole = LocalTokens("n", Tokenizer(TINY_QWEN), SPACE, a_store(), pool, local_tokens_limits())
    encoded = await whole.encode(Rendered(text), 16)
    assert 0 < len(known.keys) < len(encoded.keys)
    assert known.keys.tolist() == encoded.keys[: len(known.keys)].tolist()
    tokenizer.go.set()
    await asyncio.sleep(0)
