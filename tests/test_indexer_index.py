"""The index against its naive twin, and the promises that a random walk does not reach."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.errors import IndexerError
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored, Tier
from indexer.index import Holding, PrefixIndex
from indexer.match import Hit
from tests.fakes.index_walk import LONG, PODS, SHORT, SPACE, Walk


@pytest.mark.parametrize("seed", range(24))
def test_answers_as_its_twin(seed: int) -> None:
    """After every one of many random operations, matches and holdings are the twin's; in the end nothing is left."""
    walk = Walk(seed, SHORT, block_size=(1, 16, 2)[seed % 3])
    for _ in range(300):
        walk.step()
        walk.check()
    assert all(walk.seen[kind] for kind in ("orphans", "unchanged", "may have changed", "store", "remove"))
    assert not walk.seen["refused"]
    for pod in PODS:
        walk.index.drop(pod)
    while walk.index.sweep(100):
        pass
    assert walk.index.blocks == 0


@pytest.mark.parametrize("seed", range(1, 5))
def test_long_chains_are_answered_as_by_the_twin(seed: int) -> None:
    """The same with prefixes far beyond the borders at which many keys are looked up at once."""
    walk = Walk(seed, LONG, block_size=(1, 16)[seed % 2], orphans_max=2000)
    walk.chains.append([walk.rng.randrange(3) for _ in range(1100)])
    longest = 0
    for _ in range(50):
        walk.step()
        walk.check()
        longest = max(longest, *(hit.blocks for match, _ in walk.matches for hit in match.hits.values()), 0)
    assert longest > 960


@pytest.mark.parametrize("seed", range(8))
def test_a_full_index_is_still_right(seed: int) -> None:
    """What finds no room is refused and said so; what was taken is answered as the twin would."""
    walk = Walk(seed, SHORT, blocks_max=40, orphans_max=0)
    for _ in range(200):
        walk.step()
        walk.check()
        assert walk.index.blocks <= 40
    assert walk.seen["refused"]


def test_the_walks_reach_what_matters() -> None:
    """Orphans are adopted, and `unchanged` gives both answers often."""
    walk = Walk(4, SHORT)
    for _ in range(400):
        walk.step()
        walk.check()
    assert walk.seen["adopted"] > 20
    assert walk.seen["unchanged"] > 1000 and walk.seen["may have changed"] > 300


# --- one promise each ---


def _index(blocks_max: int = 4096, **limits: int) -> PrefixIndex:
    return PrefixIndex(SPACE, blocks_max, **limits)


def _store(
    tokens: range | list[int],
    hashes: list[int] | None = None,
    parent: int | None = None,
    tier: Tier = "gpu",
    group: int | None = None,
    kind: str | None = None,
) -> BlockStored:
    """Blocks of one token each; the engine hash is the token unless it is given."""
    named = list(tokens) if hashes is None else hashes
    return BlockStored(named, parent, np.array(tokens, np.uint32), 1, tier, group=group, kind=kind)


def _blocks(index: PrefixIndex, tokens: range | list[int], pod: str = "a") -> int:
    hit = index.match(SPACE.chain(np.array(tokens, np.uint32), 1)).hits.get(pod)
    return hit.blocks if hit is not None else 0


def test_a_copy_less_is_not_gone() -> None:
    """A block stored twice is held until both copies are removed."""
    index = _index()
    index.apply("a", _store(range(1, 9)))
    index.apply("a", _store([8], parent=7))
    assert index.apply("a", BlockRemoved([8])).removed == 1 and _blocks(index, range(1, 9)) == 8
    assert index.apply("a", BlockRemoved([8])).removed == 1 and _blocks(index, range(1, 9)) == 7
    assert index.apply("a", BlockRemoved([8])).unknown == 1


def test_a_pod_may_have_given_up_what_its_own_cache_was_cleared_of() -> None:
    """Though a lower tier still holds all of it; what was not removed and is there was not given up."""
    index = _index()
    keys = SPACE.chain(np.arange(1, 9, dtype=np.uint32), 1)
    index.apply("a", _store(range(1, 9)))
    index.apply("a", _store(range(1, 9), tier="cpu"))
    index.apply("a", _store([99]))
    index.apply("a", BlockRemoved([99]))
    assert not index.gave_up("a", keys, 0) and not index.gave_up("a", keys, 1)
    index.apply("a", AllBlocksCleared("gpu"))
    assert index.confirmed_blocks("a", keys) == 8
    assert index.gave_up("a", keys, 0) and index.gave_up("b", keys, 0)


def test_a_long_chain_of_orphans_is_adopted() -> None:
    """Thousands of single blocks that each wait for the one before are adopted when the first one's parent comes."""
    index = _index()
    for token in range(2, 4001):
        assert index.apply("a", _store([token], parent=token - 1)).orphans == 1
    assert _blocks(index, range(1, 4001)) == 0 and index.holding("a").orphans == 3999
    assert index.apply("a", _store([1])).stored == 4000
    assert _blocks(index, range(1, 4001)) == 4000 and index.holding("a") == Holding(4000, 0, 0, 0, 0)


def test_orphans_are_bounded() -> None:
    """The oldest are forgotten first."""
    index = _index(orphans_max=10)
    for token in range(2, 30):
        index.apply("a", _store([token], parent=token - 1))
    assert index.holding("a").orphans == 10
    index.apply("a", _store([19]))
    assert _blocks(index, [19, *range(20, 30)]) == 11


def test_one_removal_of_an_orphan_with_two_copies() -> None:
    """A removal that comes before its orphaned stores are adopted takes one copy, not one of each store."""
    index = _index()
    index.apply("a", _store([2], parent=1))
    index.apply("a", _store([2], parent=1))
    index.apply("a", BlockRemoved([2]))
    index.apply("a", _store([1]))
    assert _blocks(index, [1, 2]) == 2
    index.apply("a", BlockRemoved([2]))
    assert _blocks(index, [1, 2]) == 1


def test_tokens_are_not_needed_to_store_what_is_known() -> None:
    """An offload tier may name blocks by hash alone; two hashes of one content are two holds of it."""
    index = _index()
    index.apply("a", _store([1, 2], [11, 12]))
    index.apply("a", _store([1, 2], [21, 22]))
    applied = index.apply("a", _store([], [11, 12, 21, 99], tier="cpu"))
    assert applied.stored == 3 and applied.hidden == 1
    for hashes in ([11, 12], [21, 22]):
        index.apply("a", BlockRemoved(hashes))
    match = index.match(SPACE.chain(np.array([1, 2], np.uint32), 1))
    assert match.hits == {"a": Hit(2, 0, 0, 2, lower=((0, 2),))}
    index.apply("a", BlockRemoved([11], "cpu"))
    assert _blocks(index, [1, 2]) == 2
    index.apply("a", BlockRemoved([21], "cpu"))
    assert _blocks(index, [1, 2]) == 0


def test_a_hash_that_names_other_content_now() -> None:
    """The pod contradicts itself: the later word counts, and nothing is left of the earlier one, copies included."""
    index = _index()
    index.apply("a", _store([1], [7]))
    index.apply("a", _store([1], [7]))
    index.apply("a", _store([2], [7]))
    assert _blocks(index, [1]) == 0 and _blocks(index, [2]) == 1
    assert index.apply("a", BlockRemoved([7, 7])).removed == 1
    assert index.holding("a").gpu == 0


def test_groups_that_prefixes_hang_on() -> None:
    """Full attention in all its kinds is indexed, sliding windows and states are not; only one group is."""
    for kind in (None, "full_attention", "mla_attention", "sink_full_attention"):
        index = _index()
        assert index.apply("a", _store([1, 2], group=0, kind=kind)).stored == 2
    for kind in ("sliding_window", "mamba", "chunked_local_attention", "sliding_window_mla"):
        index = _index()
        assert index.apply("a", _store([1, 2], group=0, kind=kind)).ignored == 2
    index = _index()
    index.apply("a", _store([1, 2], group=1, kind="full_attention"))
    assert index.apply("a", _store([1, 2], group=2, kind="full_attention")).ignored == 2
    assert index.apply("a", BlockRemoved([2], group=0)).ignored == 1
    assert _blocks(index, [1, 2]) == 2
    assert index.apply("a", BlockRemoved([2], group=1)).removed == 1
    index.apply("a", AllBlocksCleared())
    assert index.apply("a", BlockRemoved([2], group=1)).unknown == 1, "a clear does not forget the group"


def test_predicted_until_confirmed_settled_or_expired() -> None:
    """A prediction counts as held in its own plane; an event makes it sure, time makes it go."""
    index = _index()
    keys = SPACE.chain(np.arange(1, 7, dtype=np.uint32), 1)
    prediction = index.predict("a", keys, 0, expires=10.0)
    assert index.match(keys).hits == {"a": Hit(6, 0, 6)}
    index.apply("a", _store(range(1, 3)))
    assert index.match(keys).hits == {"a": Hit(6, 2, 4)}
    index.settle(prediction, expires=5.0)
    assert index.expire(4.9) == 0 and index.expire(5.0) == 4
    assert index.match(keys).hits == {"a": Hit(2, 2)}
    assert index.expire(20.0) == 0


def test_neighbours_keep_their_own_holders() -> None:
    """A store that confirms a predicted block among others gives none of them the holders of another."""
    index = _index()
    index.apply("d", _store([1, 2, 3]))
    index.apply("d", BlockRemoved([1, 2]))
    index.apply("a", _store([1, 2, 3, 4]))
    index.apply("a", BlockRemoved([1, 2, 4]))
    index.apply("b", _store([1, 2, 3, 4]))
    index.predict("a", SPACE.chain(np.array([1, 2, 3], np.uint32), 1), 2, expires=1.0)
    index.apply("a", _store([1, 2, 3, 4]))
    index.apply("d", _store([1, 2]))
    assert [_blocks(index, [1, 2, 3, 4], pod) for pod in "abd"] == [4, 4, 3]


def test_unchanged_is_true_when_nothing_relevant_happened() -> None:
    """Other prompts, other pods' blocks elsewhere, a copy more or less, and time leave a match as it is."""
    index = _index()
    index.apply("a", _store(range(1, 100)))
    index.apply("b", _store(range(201, 300)))
    keys = SPACE.chain(np.arange(1, 150, dtype=np.uint32), 1)
    match = index.match(keys)
    assert match.hits == {"a": Hit(99, 99)}
    index.apply("a", _store(range(301, 400)))
    index.apply("b", BlockRemoved(list(range(201, 250))))
    index.apply("a", _store([99], parent=98))
    index.apply("a", BlockRemoved([99]))
    index.apply("a", BlockRemoved([12345]))
    index.predict("b", SPACE.chain(np.arange(500, 600, dtype=np.uint32), 1), 0, expires=1.0)
    index.expire(2.0)
    index.sweep()
    assert index.unchanged(match)


@pytest.mark.parametrize("length", [5, 60, 300])
def test_unchanged_is_true_when_something_happened_behind_the_answer(length: int) -> None:
    """What a pod holds behind a hole of its own is in no answer, and neither is what becomes of it."""
    index = _index()
    index.apply("a", _store(range(1, length + 1)))
    index.apply("b", _store(range(1, length + 200)))
    index.apply("b", BlockRemoved([2]))
    match = index.match(SPACE.chain(np.arange(1, length + 200, dtype=np.uint32), 1))
    assert match.hits == {"a": Hit(length, length), "b": Hit(1, 1)}
    index.apply("b", BlockRemoved(list(range(length + 50, length + 100))))
    assert index.unchanged(match)


@pytest.mark.parametrize("length", [5, 40, 99, 1000])
def test_unchanged_is_false_when_the_answer_changes(length: int) -> None:
    """Whatever changes an answer: a block more behind the prefix, one less in it, another holder, another plane."""
    keys = SPACE.chain(np.arange(1, length + 50, dtype=np.uint32), 1)
    for change in (
        lambda index: index.apply("a", _store([length + 1], parent=length)),
        lambda index: index.apply("a", BlockRemoved([length])),
        lambda index: index.apply("a", BlockRemoved([1])),
        lambda index: index.apply("b", _store([1])),
        lambda index: index.apply("c", _store([1])),
        lambda index: index.predict("b", keys, 0, expires=1.0),
        lambda index: index.predict("a", keys, length, expires=1.0),
        lambda index: index.clear("a"),
        lambda index: index.drop("a"),
    ):
        index = _index()
        index.apply("b", _store([999_999]))
        index.apply("a", _store(range(1, length + 1)))
        match = index.match(keys)
        assert match.hits["a"] == Hit(length, length) and index.unchanged(match)
        change(index)
        assert index.match(keys).hits != match.hits and not index.unchanged(match)


def test_pods_come_and_go_without_end() -> None:
    """A pod that is dropped gives its place back; places run out only if they are all taken at once."""
    index = _index(pods_max=2)
    for number in range(50):
        index.apply(number, _store(range(1, 20)))
        assert _blocks(index, range(1, 20), number) == 19  # type: ignore[arg-type]
        index.drop(number)
    for number in range(4):
        index.apply(number, _store([1]))
    with pytest.raises(IndexerError):
        index.apply(4, _store([1]))


def test_no_keys_no_hits() -> None:
    """A prompt shorter than a block matches nothing, and that does not change."""
    index = _index()
    index.apply("a", _store([1]))
    match = index.match(SPACE.chain(np.array([], np.uint32), 1))
    assert match.hits == {} and match.blocks == 0 and index.unchanged(match)
    index.apply("a", _store([2]))
    assert index.unchanged(match)


def test_memory_follows_what_is_held() -> None:
    """Rows of blocks that nobody holds any more are used again; the bytes are told."""
    index = _index(blocks_max=64)
    for start in range(0, 6400, 64):
        tokens = range(start + 1, start + 65)
        assert index.apply("a", _store(tokens)).stored == 64
        index.apply("a", BlockRemoved(list(tokens)))
    assert index.blocks == 0 and index.nbytes > 0
