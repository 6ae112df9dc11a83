"""Random operations on an index and its twin."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np

from indexer.blocks import KeySpace
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored, Tier
from indexer.index import Prediction, PrefixIndex
from indexer.match import Hit, Match
from tests.fakes.index_twin import Twin

SPACE = KeySpace(0x5EED)
PODS = ("a", "b", "c", "d")
ROOM = 1 << 15  # blocks: more than any walk needs
SHORT = (1, 2, 3, 7, 8, 9, 17)  # blocks that a chain grows by: about the border of a page
LONG = (9, 30, 48, 49, 60, 200, 961, 1100)  # about the borders of the paths for many keys at once


class Walk:
    """Random operations on an index and its twin; what was matched is remembered, to ask whether it still holds."""

    def __init__(
        self,
        seed: int,
        lengths: tuple[int, ...],
        block_size: int = 1,
        blocks_max: int = ROOM,
        orphans_max: int = 60,
    ) -> None:
        self.rng = random.Random(seed)
        self.size = block_size
        self.lengths = lengths
        self.chains_max = 6 if lengths is SHORT else 20
        self.full = blocks_max < ROOM
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
        self.do(chosen)

    def do(self, chosen: Callable[[], None]) -> None:
        """One of the operations."""
        if chosen.__name__ not in ("store", "predict", "settle", "grow"):
            self._predictions.clear()  # a row may belong to another block from now on
        self.seen[chosen.__name__] += 1
        chosen()

    def check(self) -> None:
        """All that can be asked is answered as the twin would."""
        for chain in self.rng.sample(self.chains, min(3, len(self.chains))):
            match = self.index.match(SPACE.chain(self.tokens(chain), self.size))
            assert match.hits == self.expected(chain)
            assert match.blocks == len(chain) and self.index.unchanged(match)
            self.matches.append((match, chain))
        for match, chain in self.matches:
            if self.index.unchanged(match):
                self.seen["unchanged"] += 1
                assert match.hits == self.expected(chain)
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
        rng, pod = self.rng, self.any_pod()
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
            self.tokens(chain[start:stop]),
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
        pod, tier = self.any_pod(), self.rng.choice(tiers)
        _, nodes = self._chain()
        some = self.rng.sample(nodes, min(len(nodes), 20))
        hashes = [self._hash(pod, node, 0) for node in some]
        if self.full:  # there is no room for what is known from memory only
            hashes = [engine_hash for engine_hash in hashes if engine_hash not in self.twin.pod(pod).lately]
        event = BlockStored(hashes, None, self.tokens([]), self.rng.choice((0, self.size)), tier)
        hidden = sum(not self.twin.pod(pod).named(engine_hash, tier) for engine_hash in hashes)
        applied = self.index.apply(pod, event)
        assert applied.stored == self.twin.store(pod, event) and applied.hidden == hidden

    def remove(self) -> None:
        """Copies in any order: tails, holes, parents before their children, orphans, and blocks never stored."""
        rng, pod, tier = self.rng, self.any_pod(), self._tier()
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
        rng, pod = self.rng, self.any_pod()
        chain, nodes = self._chain()
        start = self._leading(pod, nodes) if rng.random() < 0.8 else rng.randrange(len(nodes))
        keys = SPACE.chain(self.tokens(chain), self.size)
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
        pod = self.any_pod()
        tiers: tuple[Tier, ...] = ("gpu", "cpu", "disk")
        tier = self.rng.choice(tiers)
        self.index.apply(pod, AllBlocksCleared(tier))
        self.twin.clear(pod, tier)

    def drop(self) -> None:
        pod = self.any_pod()
        self.index.drop(pod)
        self.twin.pods.pop(pod, None)

    # --- material ---

    def expected(self, chain: list[int]) -> dict[str, Hit]:
        return self.twin.match(self.tokens(chain).tolist(), self.size)

    def any_pod(self) -> str:
        """In a full index one pod only: several would give up blocks for each other's sake."""
        if self.full:
            return PODS[0]
        return self.rng.choices(PODS, (6, 3, 1, 1))[0]

    def _chain(self) -> tuple[list[int], list[int]]:
        if not self.chains:
            self.grow()
        chain = self.rng.choice(self.chains)
        return chain, self.twin.path(self.tokens(chain).tolist(), self.size)

    def tokens(self, chain: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
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
