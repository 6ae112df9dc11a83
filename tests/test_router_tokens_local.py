"""Prompts become the tokens and keys that `tokenizers` and a fresh key chain give, known or new, short or long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer

from indexer.blocks import Tokens
from indexer.prefixes import PrefixStore
from router.tokens.local import LocalTokens, LocalTokensLimits, TokensUnavailable
from router.tokens.tokenizer import Tokenizer
from tests.fakes.encoders import POOLED, SPACE, Rendered, Waiting, a_store
from tests.fakes.hostile import TINY_LLAMA, TINY_QWEN, gpt2_style, texts
from tests.fakes.limits import local_tokens_limits
from tests.fakes.stores import broken_store

SLICED = local_tokens_limits(inline_bytes_max=100)


@pytest.fixture(params=["qwen", "llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return {"qwen": TINY_QWEN, "llama": TINY_LLAMA, "gpt2": gpt2_style(tmp_path)}[request.param]


def an_encoder(
    folder: Path, pool: ThreadPoolExecutor, limits: LocalTokensLimits, store: PrefixStore | None = None
) -> LocalTokens:
    tokenizer = Tokenizer(folder, window_bytes=64)
    return LocalTokens(folder.name, tokenizer, SPACE, store or a_store(), pool, limits)


def conversation(folder: Path, turns: int) -> list[str]:
    """A growing text of hostile turns between special tokens."""
    added = [t["content"] for t in json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]]
    grown, text = [], ""
    for turn in texts(9, turns, added, ["word ", "and ", "so\n"]):
        text += f"{added[0]}user\n{turn}" + "some more text, " * 9
        grown.append(text)
    return grown


async def same(encoder: LocalTokens, whole: HFTokenizer, prompt: Rendered, block_size: int) -> None:
    expected = whole.encode(prompt.text, add_special_tokens=prompt.add_special_tokens).ids
    encoded = await encoder.encode(prompt, block_size)
    assert encoded.tokens.tolist() == expected
    assert encoded.count == len(expected)
    assert encoded.keys.tolist() == SPACE.chain(np.array(expected, np.uint32), block_size).tolist()


@pytest.mark.parametrize("limits", [local_tokens_limits(), SLICED, POOLED], ids=["inline", "sliced", "pool"])
async def test_growing_prompts_are_encoded_exactly(
    folder: Path, pool: ThreadPoolExecutor, limits: LocalTokensLimits
) -> None:
    """Turn by turn, and the same prompt again, with and without special tokens, in small and large stores."""
    whole = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    for bytes_max in (50_000_000, 40_000, 0):
        store = a_store(bytes_max)
        encoder = an_encoder(folder, pool, limits, store)
        for text in conversation(folder, 25):
            for special in (False, True, False):
                await same(encoder, whole, Rendered(text, special), 16)
        assert store.failures == 0


@pytest.mark.parametrize("kept", [1, 2, 7, 30, 100_000])
async def test_truncation_keeps_the_last_tokens(kept: int, pool: ThreadPoolExecutor) -> None:
    """BOS counts and stays in front; a limit above the prompt's length changes nothing."""
    store = a_store()
    encoder = an_encoder(TINY_LLAMA, pool, local_tokens_limits(), store)
    text = "Some words of a prompt that is too long, " * 4
    for special in (True, False):
        full = (await encoder.encode(Rendered(text, special), 16)).tokens.tolist()
        kept_ids = full[-kept:] if not special or kept >= len(full) else [full[0], *full[len(full) - kept + 1 :]]
        encoded = await encoder.encode(Rendered(text, special, kept), 16)
        assert encoded.tokens.tolist() == kept_ids
        assert encoded.keys.tolist() == SPACE.chain(np.array(kept_ids, np.uint32), 16).tolist()
    assert store.failures == 0


async def test_known_text_needs_no_await(pool: ThreadPoolExecutor) -> None:
    """Long new text must be awaited; the same again, and a little more, is answered at once."""
    encoder = an_encoder(TINY_QWEN, pool, local_tokens_limits(inline_bytes_max=1000))
    text = "a long prompt, with many words. " * 1000
    assert encoder.encode_now(Rendered(text), 16) is None
    assert (await encoder.encode(Rendered(text), 16)).lookup == "miss"
    for prompt in (text, text + "And some more."):
        encoded = encoder.encode_now(Rendered(prompt), 16)
        assert encoded is not None and encoded.lookup == "partial"


async def test_the_deadline_ends_the_waiting_and_keeps_the_work(pool: ThreadPoolExecutor) -> None:
    """A prompt that can't be tokenized in time is given up; what was done is not done again."""
    tokenizer, store = Waiting(TINY_QWEN), a_store()
    encoder = LocalTokens("m", tokenizer, SPACE, store, pool, replace(POOLED, deadline_s=0.2))
    text = "a long prompt, with many words. " * 100
    with pytest.raises(TokensUnavailable, match="deadline"):
        await encoder.encode(Rendered(text), 16)
    tokenizer.go.set()
    patient = LocalTokens("m", tokenizer, SPACE, store, pool, POOLED)
    encoded = await patient.encode(Rendered(text), 16)
    assert encoded.lookup == "partial"
    assert encoded.tokens.tolist() == tokenizer.encode(text, False).tolist()


async def test_too_much_waiting_text_is_refused(pool: ThreadPoolExecutor) -> None:
    """Above the bound a prompt is refused at once, and the bound is given back."""
    tokenizer = Waiting(TINY_QWEN)
    encoder = LocalTokens("m", tokenizer, SPACE, a_store(), pool, replace(POOLED, waiting_bytes_max=5_000))
    text = "a long prompt, with many words. " * 100
    first = asyncio.create_task(encoder.encode(Rendered(text), 16))
    await asyncio.sleep(0)
    with pytest.raises(TokensUnavailable, match="busy"):
        await encoder.encode(Rendered(text + "other"), 16)
    tokenizer.go.set()
    assert (await first).count == len(tokenizer.encode(text, False))
    assert (await encoder.encode(Rendered(text + "other"), 16)).lookup == "partial"


async def test_a_cancelled_request_gives_back_its_bound(pool: ThreadPoolExecutor) -> None:
    """A client that goes away leaves nothing behind."""
    tokenizer = Waiting(TINY_QWEN)
    encoder = LocalTokens("m", tokenizer, SPACE, a_store(), pool, replace(POOLED, waiting_bytes_max=5_000))
    text = "a long prompt, with many words. " * 100
    task = asyncio.create_task(encoder.encode(Rendered(text), 16))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    tokenizer.go.set()
    assert (await encoder.encode(Rendered(text), 16)).count == len(tokenizer.encode(text, False))


async def test_many_prompts_at_once(pool: ThreadPoolExecutor) -> None:
    """Requests that share a beginning, and are tokenized at the same time, get their own tokens each."""
    store = a_store(200_000)
    encoder = an_encoder(TINY_QWEN, pool, POOLED, store)
    prompts = ["shared beginning, word by word. " * 30 + f"and prompt {n} " * (n % 7 * 20) for n in range(40)]
    answers = await asyncio.gather(*(encoder.encode(Rendered(text), 16) for text in prompts))
    tokenizer = Tokenizer(TINY_QWEN)
    for text, encoded in zip(prompts, answers, strict=True):
        expected = tokenizer.encode(text, False)
        assert encoded.tokens.tolist() == expected.tolist()
        assert encoded.keys.tolist() == SPACE.chain(expected, 16).tolist()
    assert store.failures == 0


@pytest.mark.parametrize("limits", [local_tokens_limits(), SLICED, POOLED], ids=["inline", "sliced", "pool"])
async def test_text_that_is_not_unicode_is_named(limits: LocalTokensLimits, pool: ThreadPoolExecutor) -> None:
    """Lone surrogates have no UTF-8, so no tokens."""
    encoder = an_encoder(TINY_QWEN, pool, limits)
    with pytest.raises(TokensUnavailable, match="text"):
        await encoder.encode(Rendered("x\ud800"), 16)


class Failing(Tokenizer):
    """A tokenizer with a fault."""

    def encode_cut(self, data: bytes, ends: Sequence[int]) -> tuple[Tokens, list[int] | None]:
        raise RuntimeError("fault")


@pytest.mark.parametrize("limits", [local_tokens_limits(), SLICED, POOLED], ids=["inline", "sliced", "pool"])
async def test_a_fault_of_the_store_costs_no_answer(limits: LocalTokensLimits, pool: ThreadPoolExecutor) -> None:
    """The prompt is encoded without it, and the fault is counted."""
    store = broken_store(SPACE)
    encoder = an_encoder(TINY_LLAMA, pool, limits, store)
    whole = HFTokenizer.from_file(str(TINY_LLAMA / "tokenizer.json"))
    await same(encoder, whole, Rendered("Some words.", True), 2)
    assert store.failures > 0


@pytest.mark.parametrize("limits", [local_tokens_limits(), SLICED, POOLED], ids=["inline", "sliced", "pool"])
async def test_a_fault_of_the_tokenizer_is_named(limits: LocalTokensLimits, pool: ThreadPoolExecutor) -> None:
    """Without a tokenizer there are no tokens, and no crash."""
    encoder = LocalTokens("m", Failing(TINY_QWEN), SPACE, a_store(), pool, limits)
    with pytest.raises(TokensUnavailable, match="failed"):
        await encoder.encode(Rendered("Some words."), 16)
