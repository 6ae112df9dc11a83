"""The index against its naive twin, and the promises that a random walk does not reach."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from indexer.blocks import KeySpace
from indexer.errors import IndexerError
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored, Tier
from indexer.index import Holding, Prediction, PrefixIndex
from indexer.match import Hit, Match
from tests.index_twin import Twin

SPACE = KeySpace(0x5EED)
PODS = ("a", "b", "c", "d")
_ROOM = 1 << 15  # blocks: more than any walk needs
_SHORT = (1, 2, 3, 7, 8, 9, 17)  # blocks that a chain grows by: about the border of a page
_LONG = (9, 30, 48, 49, 60, 200, 961, 1100)  # about the borders of the paths for many keys at once


class _Walk:
    """Random operations on an index and its twin; what was matched is remembered, to ask whether it still holds."""

    def __init__(
        self,
        seed: int,
        lengths: tuple[int, ...],
        block_size: int = 1,
        blocks_max: int = _ROOM,
        orphans_max: int = 60,
    ) -> None:
        self.rng = random.Random(seed)
        self.size = block_size
        self.lengths = lengths
        self.chains_max = 6 if lengths is _SHORT else 20
        self.full = blocks_max < _ROOM
        self.index = PrefixIndex(SPACE, blocks_max, pods_max=len(PODS), orphans_max=orphans_max)
        self.twin = Twin(orphans_max)
        self.chains: list[list[int]] = []
        self.matches: list[tuple[Match, list[int]]] = []
        self.seen: Counter[str] = Counter()
        self.now = 0.0
        self._hashes: dict[tuple[str, int, int], int] = {}
        self._collide = seed % 2 == 0  # engine hashes that share their low bits
        self._predictions: list[tuple[Prediction, str, list[int]]] = []

    def step(self) -> None:
        operations = {
            self.store: 40, self.remove: 20, self.predict: 8, self.settle: 5, self.expire: 5, self.sweep: 6,
            self.offload: 6, self.clear: 0.5, self.drop: 0.5, self.grow: 6,
        }  # fmt: skip
        chosen = self.rng.choices(list(operations), list(operations.values()))[0]
        if chosen.__name__ not in ("store", "predict", "settle", "grow"):
            self._predictions.clear()  # a row may belong to another block from now on
        self.seen[chosen.__name__] += 1
        chosen()

    def check(self) -> None:
        """All that can be asked is answered as the twin would."""
        for chain in self.rng.sample(self.chains, min(3, len(self.chains))):
            match = self.index.match(SPACE.chain(self._tokens(chain), self.size))
            assert match.hits == self._expected(chain)
            assert match.blocks == len(chain) and self.index.unchanged(match)
            self.matches.append((match, chain))
        for match, chain in self.matches:
            if self.index.unchanged(match):
                self.seen["unchanged"] += 1
                assert match.hits == self._expected(chain)
            else:
                self.seen["may have changed"] += 1
        self.matches = self.rng.sample(self.matches, min(8, len(self.matches)))
        for pod in PODS:
            assert self.index.holding(pod) == self.twin.holding(pod)
        assert set(self.index.pods) == set(self.twin.pods)

    # --- operations ---

    def grow(self) -> None:
        """A new chain, or a branch of one."""
        rng = self.rng
        stem: list[int] = []
        if self.chains and rng.random() < 0.7:
            stem = rng.choice(self.chains)
            stem = stem[: rng.randint(0, len(stem))]
        self.chains.append(stem + [rng.randrange(3) for _ in range(rng.choice(self.lengths))])
        if len(self.chains) > self.chains_max:
            self.chains.pop(rng.randrange(len(self.chains)))

    def store(self) -> None:
        rng, pod = self.rng, self._pod()
        chain, nodes = self._chain()
        start = 0
        if rng.random() < 0.6:
            start = self._leading(pod, nodes) if rng.random() < 0.8 else rng.randrange(len(nodes))
            start = min(start, len(nodes) - 1)
        stop = len(nodes) if rng.random() < 0.5 else rng.randint(start + 1, len(nodes))
        variant = int(rng.random() < 0.1)
        parent = self._hash(pod, nodes[start - 1], int(rng.random() < 0.05)) if start else None
        hashes = [self._hash(pod, node, variant) for node in nodes[start:stop]]
        if rng.random() < 0.05:  # a hash that named something else before
            hashes[rng.randrange(len(hashes))] = self._hash(pod, rng.choice(self._chain()[1]), 0)
        event = BlockStored(
            hashes,
            parent,
            self._tokens(chain[start:stop]),
            self.size,
            self._tier(),
        )
        applied = self.index.apply(pod, event)
        self.seen["refused"] += applied.refused
        self.seen["orphans"] += applied.orphans
        stored = self.twin.store(pod, event, applied.stored if self.full else None)
        assert applied.stored == stored
        self.seen["adopted"] += max(0, stored - len(event.hashes))

    def offload(self) -> None:
        """Blocks without tokens: some that the pod holds elsewhere, some that nobody knows."""
        tiers: tuple[Tier, ...] = ("cpu", "disk")
        pod, tier = self._pod(), self.rng.choice(tiers)
        _, nodes = self._chain()
        some = self.rng.sample(nodes, min(len(nodes), 20))
        hashes = [self._hash(pod, node, 0) for node in some]
        if self.full:  # there is no room for what is known from memory only
            hashes = [engine_hash for engine_hash in hashes if engine_hash not in self.twin.pod(pod).lately]
        event = BlockStored(hashes, None, self._tokens([]), self.rng.choice((0, self.size)), tier)
        hidden = sum(not self.twin.pod(pod).named(engine_hash, tier) for engine_hash in hashes)
        applied = self.index.apply(pod, event)
        assert applied.stored == self.twin.store(pod, event) and applied.hidden == hidden

    def remove(self) -> None:
        """Copies in any order: tails, holes, parents before their children, orphans, and blocks never stored."""
        rng, pod, tier = self.rng, self._pod(), self._tier()
        twin = self.twin.pods.get(pod)
        known = list(twin.tiers.get(tier, {})) if twin is not None else []
        waiting = [h for event in twin.waiting for h in event.hashes] if twin is not None else []
        hashes = rng.sample(known, min(len(known), rng.choice((1, 3, 40))))
        if rng.random() < 0.1:
            hashes = known
        hashes += rng.sample(waiting, min(len(waiting), rng.choice((0, 1, 5))))
        if rng.random() < 0.2:
            hashes += [rng.getrandbits(64), *hashes[:2]]
        event = BlockRemoved(hashes, tier)
        assert self.index.apply(pod, event).removed == self.twin.remove(pod, event)

    def predict(self) -> None:
        rng, pod = self.rng, self._pod()
        chain, nodes = self._chain()
        start = self._leading(pod, nodes) if rng.random() < 0.8 else rng.randrange(len(nodes))
        keys = SPACE.chain(self._tokens(chain), self.size)
        expires = self.now + rng.random() * 10
        prediction = self.index.predict(pod, keys, start, expires)
        assert self.full or len(prediction.rows) == len(nodes) - start
        entered = nodes[start:][: len(prediction.rows)]
        self.twin.predict(pod, entered, expires)
        self._predictions.append((prediction, pod, entered))

    def settle(self) -> None:
        if self._predictions:
            prediction, pod, nodes = self._predictions.pop()
            expires = self.now + self.rng.random() * 3
            self.index.settle(prediction, expires)
            self.twin.settle(pod, nodes, expires)

    def expire(self) -> None:
        self.now += self.rng.random() * 4
        for _ in range(100):  # in slices; a slice may find that nothing of it is left to expire
            self.index.expire(self.now, 8)
        self.index.expire(self.now, 1 << 20)
        self.twin.expire(self.now)

    def sweep(self) -> None:
        self.index.sweep(self.rng.choice((1, 10, 500)))

    def clear(self) -> None:
        pod = self._pod()
        tiers: tuple[Tier, ...] = ("gpu", "cpu", "disk")
        tier = self.rng.choice(tiers)
        self.index.apply(pod, AllBlocksCleared(tier))
        self.twin.clear(pod, tier)

    def drop(self) -> None:
        pod = self._pod()
        self.index.drop(pod)
        self.twin.pods.pop(pod, None)

    # --- material ---

    def _expected(self, chain: list[int]) -> dict[str, Hit]:
        return self.twin.match(self._tokens(chain).tolist(), self.size)

    def _pod(self) -> str:
        """In a full index one pod only: several would give up blocks for each other's sake."""
        if self.full:
            return PODS[0]
        return self.rng.choices(PODS, (6, 3, 1, 1))[0]

    def _chain(self) -> tuple[list[int], list[int]]:
        if not self.chains:
            self.grow()
        chain = self.rng.choice(self.chains)
        return chain, self.twin.path(self._tokens(chain).tolist(), self.size)

    def _tokens(self, chain: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        return np.repeat(np.array(chain, np.uint32), self.size)

    def _tier(self) -> Tier:
        tiers: tuple[Tier, ...] = ("gpu", "cpu", "disk")
        return self.rng.choices(tiers, (8, 1, 1))[0]

    def _leading(self, pod: str, nodes: list[int]) -> int:
        held = set().union(*self.twin.pods[pod].planes()) if pod in self.twin.pods else set()
        return next((block for block, node in enumerate(nodes) if node not in held), len(nodes))

    def _hash(self, pod: str, node: int, variant: int) -> int:
        """The engine hash of a block on a pod; a variant: the same tokens with what events do not tell."""
        drawn = self.rng.getrandbits(64)
        if self._collide:
            drawn = (drawn & ~0x3FFF) | 5
        return self._hashes.setdefault((pod, node, variant), drawn)


@pytest.mark.parametrize("seed", range(24))
def test_answers_as_its_twin(seed: int) -> None:
    """After every one of many random operations, matches and holdings are the twin's; in the end nothing is left."""
    walk = _Walk(seed, _SHORT, block_size=(1, 16, 2)[seed % 3])
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
    walk = _Walk(seed, _LONG, block_size=(1, 16)[seed % 2], orphans_max=2000)
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
    walk = _Walk(seed, _SHORT, blocks_max=40, orphans_max=0)
    for _ in range(200):
        walk.step()
        walk.check()
        assert walk.index.blocks <= 40
    assert walk.seen["refused"]


def test_the_walks_reach_what_matters() -> None:
    """Orphans are adopted, and `unchanged` gives both answers often."""
    walk = _Walk(4, _SHORT)
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
