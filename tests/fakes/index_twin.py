"""A slow index that is plainly right: dicts and sets, one entry a copy. The real one must never answer otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from indexer.events import BlockRemoved, BlockStored, Tier
from indexer.index import Holding
from indexer.ledger import LATELY_MAX
from indexer.match import Hit

PLANES = ("gpu", "predicted", "cpu", "disk")


@dataclass
class TwinPod:
    """`tiers`: engine hash -> [node, copies]; `predicted`: node -> when it expires; `waiting`: orphans in order."""

    tiers: dict[Tier, dict[int, list[int]]] = field(default_factory=dict)
    predicted: dict[int, float] = field(default_factory=dict)
    waiting: list[BlockStored] = field(default_factory=list)
    removed: Counter[tuple[Tier, int]] = field(default_factory=Counter)  # while their store waits
    lately: dict[int, int] = field(default_factory=dict)  # engine hash -> node that its own cache has given up
    layered: bool = False

    def planes(self) -> list[set[int]]:
        """The nodes held in each of PLANES."""
        tiers: tuple[Tier, ...] = ("gpu", "cpu", "disk")
        gpu, cpu, disk = ({node for node, _ in self.tiers.get(tier, {}).values()} for tier in tiers)
        return [gpu, set(self.predicted), cpu, disk]

    def find(self, engine_hash: int, first: Tier) -> int:
        """The node that a hash names, 0 if none; its own tier counts most."""
        order = [first, *self.tiers]
        return next((self.tiers[t][engine_hash][0] for t in order if engine_hash in self.tiers.get(t, {})), 0)

    def named(self, engine_hash: int, tier: Tier) -> int:
        """The node of a hash that is known, or was lately; 0 if it is not."""
        return self.find(engine_hash, tier) or self.lately.get(engine_hash, 0)


class Twin:
    """A node is a block with all before it: a number for each (parent node, tokens of the block); 0 is the root."""

    def __init__(self, orphans_max: int) -> None:
        self.pods: dict[str, TwinPod] = {}
        self._nodes: dict[tuple[int, tuple[int, ...]], int] = {}
        self._orphans_max = orphans_max

    def pod(self, name: str) -> TwinPod:
        return self.pods.setdefault(name, TwinPod())

    def path(self, tokens: Sequence[int], block_size: int, node: int = 0) -> list[int]:
        """The nodes of the full blocks of `tokens` behind `node`."""
        nodes = []
        for start in range(0, len(tokens) // block_size * block_size, block_size):
            block = tuple(tokens[start : start + block_size])
            node = self._nodes.setdefault((node, block), len(self._nodes) + 1)
            nodes.append(node)
        return nodes

    def match(self, tokens: Sequence[int], block_size: int) -> dict[str, Hit]:
        nodes = self.path(tokens, block_size)
        hits = {}
        for name, pod in self.pods.items():
            planes = pod.planes()
            counts, run, near, lower = [0] * len(PLANES), 0, None, list[tuple[int, int]]()
            for node in nodes:
                best = next((plane for plane, held in enumerate(planes) if node in held), None)
                if best is None:
                    break
                if best > 1 and near is None:
                    near = run
                if node in planes[2] or node in planes[3]:
                    start = lower.pop()[0] if lower and lower[-1][1] == run else run
                    lower.append((start, run + 1))
                run += 1
            near = run if near is None else near
            blocks = next((end for start, end in lower if start <= near < end), near)
            for node in nodes[:blocks]:
                counts[next(plane for plane, held in enumerate(planes) if node in held)] += 1
            if blocks:
                hits[name] = Hit(blocks, *counts)
                if pod.layered and lower:
                    hits[name] = hits[name]._replace(near=near, lower=tuple(lower))
        return hits

    def holding(self, name: str) -> Holding:
        pod = self.pods.get(name, TwinPod())
        gpu, cpu, disk = (len(pod.tiers.get(tier, {})) for tier in ("gpu", "cpu", "disk"))
        return Holding(gpu, len(pod.predicted), cpu, disk, sum(len(event.hashes) for event in pod.waiting))

    def store(self, name: str, event: BlockStored, room: int | None = None) -> int:
        """Returns how many blocks were stored, orphans adopted thereby included. `room`: only so many of the event."""
        pod = self.pod(name)
        pod.layered = pod.layered or event.tier != "gpu"
        ready, gone, stored = [event], [], 0
        while ready:
            arrived = ready.pop(0)
            now = self._store_content(pod, arrived, room)
            stored += len(now)
            for parent in now:
                adopted = [e for e in pod.waiting if e.parent == parent]
                pod.waiting = [e for e in pod.waiting if e.parent != parent]
                ready += adopted
                gone += self._no_longer_waiting(pod, adopted)
        for tier, engine_hash in gone:
            self._copy_gone(pod, tier, engine_hash)
        return stored

    def remove(self, name: str, event: BlockRemoved) -> int:
        """Returns how many removals took a copy away."""
        pod, removed = self.pod(name), 0
        for engine_hash in event.hashes:
            if self._copy_gone(pod, event.tier, engine_hash):
                removed += 1
                continue
            block = (event.tier, engine_hash)
            waiting = sum(e.hashes.count(engine_hash) for e in pod.waiting if e.tier == event.tier)
            if pod.removed[block] < waiting:
                pod.removed[block] += 1
        return removed

    def clear(self, name: str, tier: Tier) -> None:
        """The pod holds nothing in `tier`; all is forgotten where nothing else is held."""
        pod = self.pod(name)
        if not any(held for other, held in pod.tiers.items() if other != tier):
            self.pods[name] = TwinPod()
            return
        pod.tiers.pop(tier, None)
        if tier == "gpu":
            pod.tiers["gpu"] = {}
            pod.predicted, pod.waiting, pod.removed = {}, [], Counter()

    def predict(self, name: str, nodes: Sequence[int], expires: float) -> None:
        predicted = self.pod(name).predicted
        for node in nodes:
            predicted[node] = max(expires, predicted.get(node, 0.0))

    def settle(self, name: str, nodes: Sequence[int], expires: float) -> None:
        predicted = self.pods[name].predicted if name in self.pods else {}
        for node in nodes:
            if predicted.get(node, 0.0) > expires:
                predicted[node] = expires

    def expire(self, now: float) -> None:
        for pod in self.pods.values():
            pod.predicted = {node: at for node, at in pod.predicted.items() if at > now}

    def _store_content(self, pod: TwinPod, event: BlockStored, room: int | None) -> list[int]:
        """The engine hashes that are held now; an orphan holds nothing yet."""
        tier = pod.tiers.setdefault(event.tier, {})
        if event.tier != "gpu":
            return self._store_lower(pod, event, tier, room)
        node = 0
        if event.parent is not None:
            node = pod.find(event.parent, event.tier)
            if not node:
                self._wait(pod, event)
                return []
        nodes = self.path(event.tokens.tolist(), event.block_size, node)[:room]
        for node, engine_hash in zip(nodes, event.hashes, strict=False):
            pod.predicted.pop(node, None)
            for other in pod.tiers.values():
                if other is not tier and other.get(engine_hash, [node])[0] != node:
                    del other[engine_hash]
            known = tier.get(engine_hash)
            if known is not None and known[0] == node:
                known[1] += 1
            else:
                tier[engine_hash] = [node, 1]
        return event.hashes[: len(nodes)]

    def _store_lower(self, pod: TwinPod, event: BlockStored, tier: dict[int, list[int]], room: int | None) -> list[int]:
        """What is known of a hash, or was lately, goes before the tokens that the event tells."""
        node = pod.find(event.parent, event.tier) if event.parent is not None else 0
        told, stored = len(event.tokens), []
        if told and event.parent is not None and not node and not all(pod.named(h, event.tier) for h in event.hashes):
            self._wait(pod, event)
            return []
        for place, engine_hash in enumerate(event.hashes[:room] if told else event.hashes):
            known = pod.named(engine_hash, event.tier)
            if not known and told:
                tokens = event.tokens.tolist()[place * event.block_size : (place + 1) * event.block_size]
                known = self.path(tokens, event.block_size, node)[0]
            node = known
            if known:
                tier.setdefault(engine_hash, [known, 0])[1] += 1
                stored.append(engine_hash)
        return stored

    def _wait(self, pod: TwinPod, event: BlockStored) -> None:
        pod.waiting.append(event)
        while sum(len(e.hashes) for e in pod.waiting) > self._orphans_max:
            parent = pod.waiting[0].parent
            forgotten = [e for e in pod.waiting if e.parent == parent]
            pod.waiting = [e for e in pod.waiting if e.parent != parent]
            self._no_longer_waiting(pod, forgotten)

    @staticmethod
    def _no_longer_waiting(pod: TwinPod, events: list[BlockStored]) -> list[tuple[Tier, int]]:
        """The removals that came for blocks of which no store waits any more."""
        gone = []
        for block in {(e.tier, h): None for e in events for h in e.hashes}:
            if not any(e.tier == block[0] and block[1] in e.hashes for e in pod.waiting):
                gone += [block] * pod.removed.pop(block, 0)
        return gone

    @staticmethod
    def _copy_gone(pod: TwinPod, tier: Tier, engine_hash: int) -> bool:
        known = pod.tiers.get(tier, {}).get(engine_hash)
        if known is None:
            return False
        if tier == "gpu" and len(pod.tiers) > 1:
            pod.lately.pop(engine_hash, None)
            pod.lately[engine_hash] = known[0]
            while len(pod.lately) > LATELY_MAX:
                del pod.lately[next(iter(pod.lately))]
        known[1] -= 1
        if not known[1]:
            del pod.tiers[tier][engine_hash]
        return True
