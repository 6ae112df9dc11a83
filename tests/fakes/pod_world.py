"""A pod, its feed and a router's side of it, in simulated time: everything that happens is drawn from one seed.

The pod keeps a small LRU cache of blocks and publishes what happens to it in vLLM's encoding; the link between loses,
repeats and delays frames; the reader does with a `Feed` what `router.events.reader` does over sockets.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from indexer.blocks import KeySpace
from indexer.feed import Feed
from indexer.index import PrefixIndex
from indexer.match import MISS

Block = tuple[int, ...]  # a block's content, from the prompt's start

SIZE = 4  # tokens a block
STEP_S = 0.1  # between two requests
DELAY_S = 0.02  # the longest time that a frame takes, unless it is delayed on purpose
REPLAY_POLL_S = 0.1  # vLLM looks for replay requests so often
REPLAY_TIMEOUT_S = 0.5
REPLAY_RETRIES = 3
CHECK_S = 0.06  # after a step: its events have arrived by then
TURNS_MEAN = 12
TALK_MAX = 60  # blocks
CHECK_EVERY = 4  # steps


class World:
    """Simulated time: what is due happens in order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + seconds, self._count, act))

    def run_until(self, end: float) -> None:
        while self._due and self._due[0][0] <= end:
            self.now, _, act = heapq.heappop(self._due)
            act()
        self.now = end


class Pod:
    """One process: a cache of `blocks_max` blocks, least recently used out first, and what it published so far."""

    def __init__(self, world: World, blocks_max: int, buffer_steps: int) -> None:
        self._world = world
        self._blocks_max = blocks_max
        self._salt = world.rng.getrandbits(64)  # of its hashes
        self._cache: OrderedDict[tuple[int, ...], None] = OrderedDict()  # content from the prompt's start
        self._cleared = False
        self.published = 0
        self.buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)

    def cached(self, tokens: list[int]) -> int:
        """The leading blocks of a prompt that are cached."""
        ends = range(SIZE, len(tokens) + 1, SIZE)
        return next((n for n, end in enumerate(ends) if tuple(tokens[:end]) not in self._cache), len(ends))

    def serve(self, tokens: list[int]) -> tuple[int, bytes] | None:
        """Compute a prompt: its blocks are in the cache then. Returns the batch that tells of it, if there is news."""
        held, blocks = self.cached(tokens), len(tokens) // SIZE
        chain = [tuple(tokens[: (n + 1) * SIZE]) for n in range(blocks)]
        for block in chain[:held]:  # in use: they stay
            self._cache.move_to_end(block)
        gone = [self._cache.popitem(last=False)[0] for _ in range(len(self._cache) + blocks - held - self._blocks_max)]
        for block in reversed(chain):  # a sequence's tail is evicted before its beginning
            self._cache[block] = None
            self._cache.move_to_end(block)
        return self._publish(gone, chain, held, tokens) if held < blocks else None

    def clear(self) -> None:
        """Everything is gone; that is published with the next step, as vLLM does."""
        self._cache.clear()
        self._cleared = True

    def lose_silently(self) -> None:
        """Everything is gone, and no event will ever tell."""
        self._cache.clear()

    def _publish(self, gone: list[Block], chain: list[Block], held: int, tokens: list[int]) -> tuple[int, bytes]:
        events: list[object] = [{"type": "AllBlocksCleared"}] if self._cleared else []
        self._cleared = False
        events += [{"type": "BlockRemoved", "block_hashes": [self._hash(block)], "medium": "GPU"} for block in gone]
        events.append({
            "type": "BlockStored",
            "block_hashes": [self._hash(block) for block in chain[held:]],
            "parent_block_hash": self._hash(chain[held - 1]) if held else None,
            "token_ids": tokens[held * SIZE : len(chain) * SIZE],
            "block_size": SIZE,
            "lora_id": None,
            "medium": "GPU",
        })  # fmt: skip
        return self._batch(events)

    def _batch(self, events: list[object]) -> tuple[int, bytes]:
        frame = (self.published, msgspec.msgpack.encode([self._world.now, events, 0]))
        self.published += 1
        self.buffer.append(frame)
        return frame

    def _hash(self, block: tuple[int, ...]) -> int:
        return hash((self._salt, block)) & 0xFFFF_FFFF_FFFF_FFFF


@dataclass
class Link:
    """What goes wrong between pod and router. Shares are of frames; `up`: connected."""

    lost: float = 0.0
    repeated: float = 0.0
    late: float = 0.0
    late_s: float = 0.5
    replay_lost: float = 0.0
    up: bool = True
    last_fault: float = 0.0


@dataclass
class Side:
    """The router's side: one feed, its index, and a reader that replays as `router.events.reader` does."""

    world: World
    link: Link
    pod: Pod
    index: PrefixIndex
    feed: Feed
    space: KeySpace
    _run: int = 0  # the replay that counts; an older one is cancelled
    replays: Counter[str] = field(default_factory=Counter)

    def send(self, frame: tuple[int, bytes]) -> None:
        """The pod publishes; the frame arrives, or not."""
        link, rng, world = self.link, self.world.rng, self.world
        if not link.up:
            return
        if rng.random() < link.lost:
            link.last_fault = world.now
            return
        delay = rng.random() * DELAY_S
        if rng.random() < link.late:
            link.last_fault = world.now + link.late_s
            delay += rng.random() * link.late_s
        world.after(delay, lambda: self._arrive(frame))
        if rng.random() < link.repeated:
            world.after(rng.random() * 2 * link.late_s, lambda: self._arrive(frame))

    def connected(self) -> None:
        self._replay_if(self.feed.connected(self.world.now))

    def mend(self) -> None:
        """What the router's housekeeping does."""
        self._replay_if(self.feed.mend(self.world.now))

    def predicted(self, tokens: list[int]) -> int:
        keys = self.space.chain(np.array(tokens, np.uint32), SIZE)
        return self.index.match(keys).hits.get("pod", MISS).blocks

    def _arrive(self, frame: tuple[int, bytes]) -> None:
        if self.link.up:
            self._replay_if(self.feed.frame(*frame, self.world.now))

    def _replay_if(self, start: int | None) -> None:
        if start is not None:
            self._run += 1
            self._ask(self._run, start, REPLAY_RETRIES)

    def _ask(self, run: int, start: int, retries: int) -> None:
        self.replays["asked"] += 1
        if not self.link.up:
            self.world.after(REPLAY_TIMEOUT_S, lambda: self._answered(run, start, [], False, retries))
            return
        self.world.after(self.world.rng.random() * REPLAY_POLL_S, lambda: self._answer(run, start, retries))

    def _answer(self, run: int, start: int, retries: int) -> None:
        """The pod looks at the request: it sends what it still has, unless the connection is gone."""
        link, rng = self.link, self.world.rng
        if not link.up:
            self.world.after(REPLAY_TIMEOUT_S, lambda: self._answered(run, start, [], False, retries))
            return
        frames = [f for f in self.pod.buffer if f[0] >= start]
        kept = [f for f in frames if f is frames[-1] or rng.random() >= link.replay_lost]
        self.world.after(rng.random() * DELAY_S, lambda: self._answered(run, start, kept, True, retries))

    def _answered(self, run: int, start: int, frames: list[tuple[int, bytes]], complete: bool, retries: int) -> None:
        if run != self._run:
            return
        for frame in frames:
            anew = self.feed.replayed(*frame, self.world.now)
            if anew is not None:
                self._replay_if(anew)
                return
        again = self.feed.missing() if complete else start
        if again is not None and retries:
            self._ask(run, again, retries - 1)
            return
        self._replay_if(self.feed.replay_ended(complete, self.world.now))


class Clients:
    """Conversations that grow turn by turn and end; new ones start, some from a text that others began with, too."""

    def __init__(self, rng: random.Random, count: int = 12, systems: int = 3) -> None:
        self._rng = rng
        self._systems = [self._text(5 * SIZE) for _ in range(systems)] if systems else [[]]
        self.talks = [self._new() for _ in range(count)]

    def next(self) -> list[int]:
        number = self._rng.randrange(len(self.talks))
        talk = self.talks[number]
        if self._rng.random() < 1 / TURNS_MEAN or len(talk) > TALK_MAX * SIZE:
            talk = self._new()
        self.talks[number] = [*talk, *self._text(self._rng.randrange(1, 6 * SIZE))]
        return self.talks[number]

    def _new(self) -> list[int]:
        return [*self._rng.choice(self._systems), *self._text(SIZE)]

    def _text(self, length: int) -> list[int]:
        return [self._rng.randrange(150_000) for _ in range(length)]


class Scene:
    """All of it together. `errors`: at each check, (time, seconds since the last fault, blocks over, blocks under)."""

    def __init__(self, seed: int, blocks_max: int = 300, buffer_steps: int = 10_000, systems: int = 3) -> None:
        self.world = World(seed)
        self.blocks_max, self.buffer_steps = blocks_max, buffer_steps
        self.clients = Clients(self.world.rng, systems=systems)
        space = KeySpace(seed)
        index = PrefixIndex(space, 20_000, pods_max=2)
        pod = Pod(self.world, blocks_max, buffer_steps)
        self.side = Side(self.world, Link(), pod, index, Feed(index, "pod", 1000), space)
        self.serving = True
        self.clears = 0.002  # share of steps before which the pod's cache is reset
        self._steps = 0
        self.errors: list[tuple[float, float, int, int]] = []
        self.world.after(0.0, self.side.connected)
        self.world.after(STEP_S, self._step)

    def run(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

    def fault(self) -> None:
        self.side.link.last_fault = self.world.now

    def cut(self, seconds: float) -> None:
        """The connection is gone for so long; the pod goes on."""
        self.side.link.up = False
        self.run(seconds)
        self.side.link.up = True
        self.fault()
        self.world.after(0.1, self.side.connected)

    def kill(self, down_s: float = 3.0) -> None:
        """SIGKILL, and a new process some time later."""
        self.serving, self.side.link.up = False, False
        self.run(down_s)
        self.side.pod = Pod(self.world, self.blocks_max, self.buffer_steps)
        self.serving = self.side.link.up = True
        self.fault()
        self.world.after(0.1, self.side.connected)

    def worst_since(self, seconds: float) -> tuple[int, int]:
        """The largest errors (over, under), in blocks, of the checks at least so long after the last fault."""
        late = [(over, under) for _, since, over, under in self.errors if since >= seconds]
        assert late, "nothing was checked"
        return max(over for over, _ in late), max(under for _, under in late)

    def _step(self) -> None:
        self.world.after(STEP_S, self._step)
        if not self.serving:
            return
        side, pod, tokens = self.side, self.side.pod, self.clients.next()
        if self.world.rng.random() < self.clears:
            pod.clear()
        predicted, reported = side.predicted(tokens), pod.cached(tokens)
        side.feed.counted(predicted * SIZE, reported * SIZE)
        side.mend()
        frame = pod.serve(tokens)
        if frame is not None:
            side.send(frame)
        self._steps += 1
        if self._steps % CHECK_EVERY == 0:
            self.world.after(CHECK_S, lambda: self._check(pod))

    def _check(self, pod: Pod) -> None:
        """Every conversation's prediction against the pod's truth, while nothing is under way."""
        side = self.side
        while side.index.sweep():
            pass
        if not side.link.up or pod is not side.pod:
            return
        off = [side.predicted(talk) - pod.cached(talk) for talk in self.clients.talks]
        since = self.world.now - side.link.last_fault
        self.errors.append((self.world.now, since, max(0, *off), max(0, *(-each for each in off))))
