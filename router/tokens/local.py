"""Prompts to token ids and block keys, without the loop ever waiting for a tokenizer.

What the prefix store knows, and short new text, is done at once; longer new text in slices, between which others have
their turn; long new text goes to a pool of threads in parts. Ids are kept as they arrive: a request that runs out of
time leaves its work to the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, Self

import numpy as np

from indexer.blocks import KeySpace, Tokens
from indexer.prefixes import PrefixStore
from indexer.text_blocks import Family, Found, Variant
from router.tokens.given import Encoded, GivenTokens, LookupResult
from router.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from router.config.tokens import TokensConfig

Unavailable = Literal["busy", "deadline", "failed", "text"]


class TokensUnavailable(Exception):
    """This prompt's tokens can't be had (in time). `reason` is one of a few words.

    `beginning`: what is known of its first tokens, if anything; `rest_bytes`: of text after them.
    """

    def __init__(self, reason: Unavailable, beginning: Encoded | None = None, rest_bytes: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.beginning = beginning
        self.rest_bytes = rest_bytes


class Text(Protocol):
    """A rendered prompt."""

    @property
    def text(self) -> str: ...
    @property
    def add_special_tokens(self) -> bool: ...
    @property
    def truncate_prompt_tokens(self) -> int | None:
        """Keep the last so many tokens, those of the post-processor included."""


@dataclass(frozen=True, slots=True)
class LocalTokensLimits:
    """The bounds of `LocalTokens`."""

    deadline_s: float
    inline_bytes_max: int
    """New text up to here is tokenized on the loop: 0.7 ms with tiktoken, 4 ms if it is made to be slow."""
    inline_bytes_slow_max: int
    """The same where `tokenizers` does the work."""
    sliced_bytes_max: int
    """New text up to here is tokenized on the loop in slices of that size, where tiktoken does the work: the pool has
    an engine of its own, whose tables (30 MB) would have to come into the CPU's caches first."""
    job_bytes: int
    """New text goes to the pool in parts of about this size: the loop takes up a part's ids in about 0.3 ms."""
    jobs_per_prompt_max: int
    """Parts of one prompt in the pool at a time, so that a long one does not keep others waiting."""
    waiting_bytes_max: int
    """New text of all prompts that wait for the pool; above it: TokensUnavailable."""

    @classmethod
    def of(cls, tokens: TokensConfig) -> Self:
        """As configured; what is not was measured."""
        return cls(
            deadline_s=tokens.deadline,
            inline_bytes_max=tokens.inline_max,
            inline_bytes_slow_max=2 * 1024,
            sliced_bytes_max=tokens.sliced_max,
            job_bytes=48 * 1024,
            jobs_per_prompt_max=2,
            waiting_bytes_max=tokens.waiting_max,
        )


class _Part(NamedTuple):
    """Token ids of a part of a text, and the cuts in it; `stops`: how many ids come before each, if that is known."""

    ends: list[int]
    ids: Tokens
    stops: list[int] | None


class _Begun(NamedTuple):
    """A text whose tokens are wanted since `started`. `found` None: the store failed."""

    started: float
    data: bytes
    found: Found | None
    lookup: LookupResult


class LocalTokens:
    """One model's way from text to tokens. Not for use by several threads; the pool may be shared by models."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        space: KeySpace,
        store: PrefixStore,
        pool: ThreadPoolExecutor,
        limits: LocalTokensLimits,
    ) -> None:
        """`name`: what the store tells this model's texts from others' by; unique per tokenizer."""
        self._tokenizer = tokenizer
        self._store = store
        self._pool = pool
        self._limits = limits
        self._inline_max = limits.inline_bytes_max if tokenizer.fast else limits.inline_bytes_slow_max
        self._sliced_max = limits.sliced_bytes_max if tokenizer.fast else 0
        self._plain = store.family(f"text:{name}", tokenizer.cuts, tokenizer.count)
        self._framed = self._plain
        if len(tokenizer.prefix) or len(tokenizer.suffix):
            self._framed = store.family(f"framed:{name}", tokenizer.cuts, tokenizer.count)
        self._keys = GivenTokens(space, store)
        self._waiting_bytes = 0

    def encode_now(
        self, prompt: Text, block_size: int, lora: str | None = None, salt: str | None = None
    ) -> Encoded | None:
        """The prompt's tokens and keys, or None where `encode` must be awaited: too much of its text is new."""
        answer = self._begin(prompt, (block_size, lora, salt))
        return answer if isinstance(answer, Encoded) else None

    async def encode(self, prompt: Text, block_size: int, lora: str | None = None, salt: str | None = None) -> Encoded:
        """The prompt's tokens and keys, without giving way where `encode_now` has them.

        Longer new text goes in slices or to the pool. TokensUnavailable at the deadline, or where there are no tokens.
        """
        variant = (block_size, lora, salt)
        answer = self._begin(prompt, variant)
        if isinstance(answer, Encoded):
            return answer
        if self._waiting_bytes + len(prompt.text) > self._limits.waiting_bytes_max:
            raise self._unavailable("busy", prompt, variant, answer)
        self._waiting_bytes += len(prompt.text)
        try:
            async with asyncio.timeout(self._limits.deadline_s):
                return await self._encode_long(prompt, variant, answer)
        except TimeoutError:
            raise self._unavailable("deadline", prompt, variant, answer) from None
        finally:
            self._waiting_bytes -= len(prompt.text)

    def _begin(self, prompt: Text, variant: Variant) -> Encoded | _Begun:
        """What can be done at once: all of it, or the look-up of a text of which too much is new."""
        started = perf_counter()
        data = _utf8(prompt.text)
        begun = _Begun(started, data, None, "miss")
        try:
            found = self._store.find_longest_tokens(self._family(prompt), data)
            begun = _Begun(started, data, found, "miss" if found.block is None else "partial")
            if found.whole is None:
                if len(data) - found.known > self._inline_max:
                    return begun
                self._store.extend(found, *self._tokenize(prompt, data, found.known, found.ends()))
            return self._finish(prompt, found, variant, begun)
        except TokensUnavailable:
            raise
        except Exception:  # a fault of the cache must not cost the answer
            self._store.failures += 1
            begun = begun._replace(found=None)
            return begun if len(data) > self._inline_max else self._without_store(prompt, variant, begun)

    def _unavailable(self, reason: Unavailable, prompt: Text, variant: Variant, begun: _Begun) -> TokensUnavailable:
        """With the tokens that are known by now; truncation would take them off."""
        found = begun.found
        if found is None or found.block is None or prompt.truncate_prompt_tokens is not None:
            return TokensUnavailable(reason)
        beginning = Encoded(self._store.ending(found.block, variant), found.block, "partial", 0.0, 0.0)
        return TokensUnavailable(reason, beginning, len(found.data) - found.known)

    # --- text that is new

    async def _encode_long(self, prompt: Text, variant: Variant, begun: _Begun) -> Encoded:
        if begun.found is not None:
            try:
                if len(begun.data) - begun.found.known <= self._sliced_max:
                    await self._extend_in_slices(prompt, begun.found)
                else:
                    await self._extend_in_pool(prompt, begun.found, variant)
                return self._finish(prompt, begun.found, variant, begun)
            except TokensUnavailable:
                raise
            except Exception:
                self._store.failures += 1
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._without_store, prompt, variant, begun)

    async def _extend_in_slices(self, prompt: Text, found: Found) -> None:
        """Tokenize what is not known of a text, here, with others' turns between."""
        for ends in _parts(found.ends(), found.known, self._inline_max):
            self._store.extend(found, *self._tokenize(prompt, found.data, found.known, ends))
            if found.whole is None:
                await asyncio.sleep(0)

    async def _extend_in_pool(self, prompt: Text, found: Found, variant: Variant) -> None:
        """As `_extend_in_slices`, in threads, a few parts at a time."""
        loop = asyncio.get_running_loop()
        data = found.data
        waiting: deque[asyncio.Future[_Part]] = deque()
        start = found.known
        parts = _parts(found.ends(), start, self._limits.job_bytes)
        try:
            for ends in parts:
                if len(waiting) >= self._limits.jobs_per_prompt_max:
                    await self._take(found, variant, waiting.popleft())
                waiting.append(loop.run_in_executor(self._pool, self._tokenize, prompt, data, start, ends))
                start = ends[-1]
            while waiting:
                await self._take(found, variant, waiting.popleft())
        finally:
            for job in waiting:
                job.cancel()

    async def _take(self, found: Found, variant: Variant, job: asyncio.Future[_Part]) -> None:
        self._store.extend(found, *await job)
        if found.block is not None:
            self._store.extend_keys(found.block, variant)

    def _tokenize(self, prompt: Text, data: bytes, start: int, ends: list[int]) -> _Part:
        """The part of `data` from `start`, with what the post-processor puts before all text."""
        places = [end - start for end in ends]
        try:
            ids, stops = self._tokenizer.encode_cut(data[start : ends[-1]], places)
        except Exception as error:  # `tokenizers` raises plain Exception
            raise TokensUnavailable("failed") from error
        prefix = self._tokenizer.prefix
        if start == 0 and prompt.add_special_tokens and len(prefix):
            ids = np.concatenate([prefix, ids])
            stops = stops and [len(prefix) + stop for stop in stops]
        return _Part(ends, ids, stops)

    # --- from tokens to keys

    def _finish(self, prompt: Text, found: Found, variant: Variant, begun: _Begun) -> Encoded:
        block = found.whole
        assert block is not None
        tokenized = perf_counter()
        suffix = len(self._tokenizer.suffix) if prompt.add_special_tokens else 0
        kept = prompt.truncate_prompt_tokens
        if suffix or (kept is not None and 0 < kept < block.total):
            encoded = self._keys.encode_now(self._reshaped(prompt, block.tokens()), *variant)
            encoded.lookup = begun.lookup
        else:
            ending = self._store.ending(block, variant)
            encoded = Encoded(ending, block, begun.lookup, 0.0, 0.0)
        encoded.tokenize_us = (tokenized - begun.started) * 1e6
        encoded.keys_us = (perf_counter() - tokenized) * 1e6
        return encoded

    def _reshaped(self, prompt: Text, tokens: Tokens) -> Tokens:
        """With the post-processor's suffix, and without what truncation takes from the front of the text's own."""
        if not prompt.add_special_tokens:
            prefix = suffix = np.zeros(0, np.uint32)
        else:
            prefix, suffix = self._tokenizer.prefix, self._tokenizer.suffix
        body = tokens[len(prefix) :]
        kept = prompt.truncate_prompt_tokens
        if kept is not None and 0 < kept < len(tokens) + len(suffix):
            body = body[len(body) - max(0, kept - len(prefix) - len(suffix)) :]
        return np.concatenate([prefix, body, suffix])

    def _without_store(self, prompt: Text, variant: Variant, begun: _Begun) -> Encoded:
        ids = self._reshaped(prompt, self._tokenize(prompt, begun.data, 0, [len(begun.data)]).ids)
        encoded = self._keys.unkept(ids, *variant)
        encoded.tokenize_us = (perf_counter() - begun.started) * 1e6
        return encoded

    def _family(self, prompt: Text) -> Family:
        return self._framed if prompt.add_special_tokens else self._plain


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # lone surrogates: pods refuse them as well
        raise TokensUnavailable("text") from None


def _parts(ends: Sequence[int], start: int, size: int) -> Iterator[list[int]]:
    """Consecutive pieces together, until they have `size` bytes."""
    part: list[int] = []
    for end in ends:
        part.append(end)
        if end - start >= size:
            yield part
            part, start = [], end
    if part:
        yield part
