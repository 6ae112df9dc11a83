"""Block keys: equal content gives equal keys, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.blocks import Keys, KeySpace, Tokens

SPACE = KeySpace(0xC0FFEE)
TOKENS: Tokens = np.arange(1000, 1064, dtype=np.uint32)

_ids = st.lists(st.integers(0, 2**32 - 1), max_size=60)
_sizes = st.integers(1, 17)
_names = st.none() | st.text(min_size=1, max_size=5)


def _tokens(ids: list[int]) -> Tokens:
    return np.array(ids, np.uint32)


def _equal(left: Keys, right: Keys) -> bool:
    return bool(np.array_equal(left, right))


@given(_ids, _sizes, _names, _names)
def test_one_key_for_each_full_block(ids: list[int], size: int, lora: str | None, salt: str | None) -> None:
    """Shape (n // block_size,), uint64, whatever is hashed in beside the ids."""
    keys = SPACE.chain(_tokens(ids), size, lora=lora, salt=salt)
    assert keys.shape == (len(ids) // size,) and keys.dtype == np.uint64


@given(_ids, _sizes, st.integers(0, 60), _names, _names)
def test_resumed_keys_are_those_of_the_whole(
    ids: list[int], size: int, cut: int, lora: str | None, salt: str | None
) -> None:
    """Cut after any block, the rest hashed from the last key on is the same chain."""
    whole = SPACE.chain(_tokens(ids), size, lora=lora, salt=salt)
    blocks = min(cut, len(whole))
    head = SPACE.chain(_tokens(ids[: blocks * size]), size, lora=lora, salt=salt)
    parent = int(head[-1]) if blocks else None
    tail = SPACE.chain(_tokens(ids[blocks * size :]), size, parent, lora=lora, salt=salt)
    assert head.tolist() + tail.tolist() == whole.tolist()


@given(_ids, _sizes, _names)
def test_chain_and_chain_extras_agree(ids: list[int], size: int, lora: str | None) -> None:
    """A prompt's keys and an event's are made in two ways, and must be the same."""
    tokens = _tokens(ids)
    count = len(ids) // size
    assert _equal(
        SPACE.chain(tokens, size, lora=lora),
        SPACE.chain_extras(tokens, size, None, [[lora] if lora is not None else None] * count),
    )
    assert _equal(SPACE.chain(tokens, size), SPACE.chain_extras(tokens, size, None, [[]] * count))


def test_a_key_hangs_on_all_before_it() -> None:
    """One id changed: the keys before its block stay, its own and all after it are others."""
    changed = TOKENS.copy()
    changed[20] += 1
    before, after = SPACE.chain(TOKENS, 8), SPACE.chain(changed, 8)
    assert before[:2].tolist() == after[:2].tolist()
    assert not np.isin(before[2:], after).any()


def test_block_size_matters() -> None:
    """Chains of different block sizes never meet, not even for blocks of equal ids."""
    assert not np.isin(SPACE.chain(TOKENS, 16), SPACE.chain(TOKENS, 8)).any()
    same = np.full(64, 7, np.uint32)
    assert not np.isin(SPACE.chain(same, 16), SPACE.chain(same, 8)).any()
    assert SPACE.root(8) != SPACE.root(16)


def test_seed_matters() -> None:
    """Another process has other keys for everything; the same seed has the same."""
    assert not np.isin(SPACE.chain(TOKENS, 8), KeySpace(0xC0FFEF).chain(TOKENS, 8)).any()
    assert _equal(SPACE.chain(TOKENS, 8), KeySpace(0xC0FFEE).chain(TOKENS, 8))


def test_extras_matter() -> None:
    """Plain, LoRA, salt and both: no key in common; a LoRA named like a salt stays apart from that salt."""
    chains = [
        SPACE.chain(TOKENS, 8, lora=lora, salt=salt)
        for lora in (None, "x", "y")
        for salt in (None, "x", "y")
    ]  # fmt: skip
    keys = np.concatenate(chains)
    assert len(set(keys.tolist())) == len(keys) == 72


def test_the_order_of_extras_matters() -> None:
    """Extras are a list, not a set; and (multimodal id, offset) is not the same as two plain extras."""
    block = TOKENS[:8]
    extras: list[list[object]] = [
        ["a", "b"],
        ["b", "a"],
        [["a", "b"]],
        ["a"],
        [None, "a"],
        ["ab"],
        [b"a"],
        [["a", 1]],
        [["a", 2]],
    ]
    assert len({int(SPACE.chain_extras(block, 8, None, [extra])[0]) for extra in extras}) == len(extras)


def test_salt_is_of_the_first_block_only() -> None:
    """It reaches the others through their parent, so a resumed chain needs no salt."""
    whole = SPACE.chain(TOKENS, 8, salt="s")
    first = SPACE.chain_extras(TOKENS[:8], 8, None, [[None, "s"]])
    assert whole[0] == first[0]
    assert _equal(SPACE.chain(TOKENS[8:], 8, int(first[0])), whole[1:])
    assert _equal(SPACE.chain(TOKENS[8:], 8, int(first[0]), salt="other"), whole[1:])


@pytest.mark.parametrize("size", [1, 16, 64, 65])
def test_a_rest_is_no_block(size: int) -> None:
    """Ids behind the last full block change nothing."""
    full = len(TOKENS) // size * size
    assert _equal(SPACE.chain(TOKENS, size), SPACE.chain(TOKENS[:full], size))


def test_keys_are_spread() -> None:
    """Neighbouring contents have unlike keys: no collision, and each bit is set about half of the time."""
    keys = SPACE.chain(np.zeros(20_000, np.uint32), 1)
    assert len(np.unique(keys)) == 20_000
    share = [float(((keys >> np.uint64(bit)) & np.uint64(1)).mean()) for bit in range(64)]
    assert min(share) > 0.48 and max(share) < 0.52
