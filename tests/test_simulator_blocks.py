"""The block pool by vLLM's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.blocks import Block, BlockPool
from simulator.events import Cleared, Origin, Removed, Stored
from simulator.hashes import Chain, root_digest

SIZE = 4
ORIGIN = Origin()


def chain_of(tokens: list[int], lora: str | None = None, salt: str | None = None) -> list[bytes]:
    """The digests of a prompt's full blocks."""
    chain = Chain(root_digest("seed"), SIZE, lora, salt)
    chain.extend(tokens)
    return chain.digests


def put(pool: BlockPool, tokens: list[int]) -> list[Block]:
    """Take and fill the blocks of a prompt, nothing reused."""
    chain = chain_of(tokens)
    blocks = pool.take(len(chain))
    pool.store(blocks, chain, tokens, range(len(chain)), ORIGIN)
    return blocks


def test_a_pool_reserves_the_null_block() -> None:
    """Of n blocks n - 1 can be used, and a pool of one block is refused."""
    assert BlockPool(5, SIZE).usable == 4
    with pytest.raises(ValueError, match="null block"):
        BlockPool(1, SIZE)


def test_released_blocks_still_hit_and_are_shared() -> None:
    """What was released is found again; two users share one copy, which is free when both are done."""
    pool = BlockPool(5, SIZE)
    tokens = list(range(8))
    first = put(pool, tokens)
    pool.release(first)
    assert pool.used == 0
    found = pool.match(chain_of(tokens))
    assert found == first
    pool.use(found)
    pool.use(found)
    pool.release(found)
    assert pool.used == 2
    pool.release(found)
    assert pool.used == 0


def test_match_stops_at_the_first_missing_block() -> None:
    """A later block without its predecessor is no hit."""
    pool = BlockPool(8, SIZE)
    pool.release(put(pool, list(range(8))))
    digests = chain_of([*range(4), 99, 99, 99, 99, *range(8, 12)])
    assert len(pool.match(digests)) == 1


def test_a_sequence_is_evicted_from_its_tail_and_the_oldest_sequence_first() -> None:
    """Eviction order: the first released sequence's last block, …, its first, then the next sequence's last."""
    pool = BlockPool(5, SIZE)
    old, new = list(range(8)), list(range(100, 108))
    for tokens in (old, new):
        pool.release(put(pool, tokens))
    pool.take_events()
    pool.take(3)
    removed = [event.digest for event in pool.take_events() if isinstance(event, Removed)]
    assert removed == [*reversed(chain_of(old)), chain_of(new)[1]]


def test_content_is_not_de_duplicated_and_each_copy_is_removed() -> None:
    """The same block stored twice is two copies: losing one keeps the hit, losing both loses it."""
    pool = BlockPool(3, SIZE)
    one, two = put(pool, [1, 2, 3, 4]), put(pool, [1, 2, 3, 4])
    (digest,) = chain_of([1, 2, 3, 4])
    assert pool.cached == 1
    pool.release(one)
    pool.release(two)
    pool.take_events()
    pool.take(1)
    assert pool.match([digest]) == two
    pool.take(1)
    assert pool.match([digest]) == []
    assert pool.take_events() == [Removed(digest), Removed(digest)]


@pytest.mark.parametrize("empty_first", [True, False])
def test_a_freed_block_without_content_is_taken_first_in_new_versions(empty_first: bool) -> None:
    """From some version between 0.20 and 0.28 on an empty block goes to the front of the free queue, before: back."""
    pool = BlockPool(4, SIZE, empty_first)
    (empty,) = pool.take(1)
    pool.release([empty])
    assert (pool.take(1) == [empty]) is empty_first


def test_clear_is_refused_while_blocks_are_in_use() -> None:
    """Like vLLM's reset: nothing happens while a request runs; afterwards all content is gone, with one event."""
    pool = BlockPool(5, SIZE)
    blocks = put(pool, list(range(8)))
    assert not pool.clear()
    pool.release(blocks)
    pool.take_events()
    assert pool.clear()
    assert pool.match(chain_of(list(range(8)))) == []
    pool.take(4)
    assert pool.take_events() == [Cleared()]


def test_salt_and_lora_separate_prompts() -> None:
    """A salt changes a prompt's whole chain through its first block, a LoRA each block."""
    tokens = list(range(8))
    chains = [chain_of(tokens), chain_of(tokens, salt="a"), chain_of(tokens, salt="b"), chain_of(tokens, lora="a")]
    for number in range(2):
        assert len({chain[number] for chain in chains}) == len(chains)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans()), max_size=60), st.booleans())
def test_the_events_alone_tell_what_is_cached(steps: list[tuple[int, int, bool]], empty_first: bool) -> None:
    """Counting stores minus removes of each digest gives exactly the contents that the pool finds."""
    pool = BlockPool(9, SIZE, empty_first)
    held: list[list[Block]] = []
    copies: dict[bytes, int] = {}
    for topic, length, release in steps:
        chain = chain_of([topic] * (length * SIZE))
        reused = pool.match(chain[: length - 1])
        if pool.fits(length - len(reused), reused):
            pool.use(reused)
            blocks = [*reused, *pool.take(length - len(reused))]
            pool.store(blocks, chain, [topic] * (length * SIZE), range(len(reused), length), ORIGIN)
            held.append(blocks)
        if release and held:
            pool.release(held.pop(0))
        for event in pool.take_events():
            match event:
                case Stored(digests=digests):
                    for digest in digests:
                        copies[digest] = copies.get(digest, 0) + 1
                case Removed(digest=digest):
                    copies[digest] -= 1
        assert min(copies.values(), default=0) >= 0
        for topic_ in range(4):
            whole = chain_of([topic_] * (4 * SIZE))
            for digest in whole:
                assert bool(pool.match([digest])) == bool(copies.get(digest))
    assert pool.used == len({block.number for blocks in held for block in blocks})
