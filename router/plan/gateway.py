"""The shipped core before virtual pods: it looks up, decides and learns as in a gateway, by a virtual clock."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np

from indexer.blocks import Keys, KeySpace, Tokens
from indexer.events import BlockRemoved, BlockStored
from indexer.feed import Feed
from router.core.decision import Core
from router.core.demand import Demand, End, Placement
from router.core.fleet import Pod, Rank, RankId
from router.core.settings import Bounds, CoreSettings
from router.errors import Busy
from router.pieces import InPieces, Pieces
from router.plan.profiles import PodPlan
from router.plan.publisher import At, EventPath, Publisher, Stretch
from router.plan.traces import Turn
from scorer.board import Board
from scorer.cost import FleetRate, PrefillRate
from scorer.hold import Held, PodBounds, overdue

_MODEL = "m"
_HELD_MAX = 10_000  # batches that wait for others
_NOBODY: frozenset[str] = frozenset()
_SEED = 1  # of keys
_NO_BOUNDS = Bounds(requests=sys.maxsize, prefill_tokens=None, pods=PodBounds())


class SentOn(NamedTuple):
    """A request has gone to the pod of this number. `item`: the caller's own. `pieces`: its prompt goes in some."""

    item: object
    pod: int
    placement: Placement
    pieces: InPieces | None = None

    @property
    def tokens(self) -> int | None:
        """Of the piece that goes; None: it goes whole."""
        return None if self.pieces is None or self.pieces.whole else self.pieces.end


class VirtualGateway:
    """One worker."""

    def __init__(
        self, settings: CoreSettings, pods: PodPlan, size: int, tokens_per_s: float, board: Board | None = None
    ) -> None:
        """`size`: tokens a block; `tokens_per_s`: of prefill, assumed before anything was seen.

        Nobody is refused, however many come: how long they wait is what is asked.
        """
        self._size = size
        self._space = KeySpace(_SEED)
        hold = settings.hold._replace(waiting_max=sys.maxsize, pods=_NO_BOUNDS.pods)
        self.core = Core(replace(settings, bounds=_NO_BOUNDS, hold=hold), self._space, board)
        self._pieces = Pieces(self.core) if settings.piece_tokens else None
        self._ranks: list[Rank] = []
        self._publishers: list[Publisher] = []
        self._keys: dict[int, tuple[int, int]] = {}  # block -> (the key before it, its key)
        rate = FleetRate(tokens_per_s)
        for number in range(pods.pods):
            pod = Pod(f"pod-{number}", "", healthy=True, block_size=size, blocks=pods.kv_tokens // size)
            name = RankId(pod.name, 0)
            feed = Feed(self.core.index, name, _HELD_MAX)
            feed.replay_ended(True, 0.0)
            load = self.core.load_of(name, PrefillRate(tokens_per_s, rate))
            pod.ranks.append(Rank(name, pod, load, feed))
            self.core.fleet.join(pod)
            self.core.fleet.learned_models(pod, [{"id": _MODEL}])
            self._ranks.append(pod.ranks[0])
        self._numbers = {rank.id: number for number, rank in enumerate(self._ranks)}

    def listen(self, path: EventPath, at: At, rng: random.Random) -> None:
        """Hear of events as frames that come later, or never; else all are believed at once."""
        self._publishers = [Publisher(rank.feed, path, at, rng) for rank in self._ranks if rank.feed is not None]

    def send(self, turn: Turn, item: object, now: float) -> SentOn | None:
        """Which pod a request goes to; None: it waits, and `serve` will give `item` back."""
        demand = self._demand(turn)
        try:
            return self._route(demand, item, None, now)
        except Busy as busy:
            held = self.core.hold.put((demand, item), None, 0, busy.cost_s, now)
        return None if held is not None else self._route(demand, item, overdue(), now)

    def serve(self, now: float) -> list[SentOn]:
        """Who waited, and goes now."""
        sent: list[SentOn] = []

        def offer(held: Held) -> bool:
            asked, item = cast("tuple[Demand | SentOn, object]", held.item)
            try:
                sent.append(self._go(asked, item, held, now))
            except Busy:
                return False
            return True

        while self.core.hold.waiting and self.core.serve_held(now, offer):
            pass
        return sent

    def go_on(self, sent: SentOn, now: float) -> SentOn | None:
        """A piece was computed: what goes now; None: it waits, and `serve` will give it back."""
        assert sent.pieces is not None and self._pieces is not None
        self._pieces.computed(sent.pieces, now)
        try:
            return self._go(sent, sent.item, None, now)
        except Busy as busy:
            held = self.core.hold.put((sent, sent.item), None, 0, busy.cost_s, now)
        return None if held is not None else self._go(sent, sent.item, overdue(), now)

    def began(self, placement: Placement, now: float) -> None:
        """The first token is here."""
        self.core.first_byte(placement, True, now)

    def ended(self, placement: Placement, tokens: int, cached: int, now: float) -> None:
        """The answer is out; the pod tells how many of its prompt's `tokens` were cached."""
        self.core.finish(placement, End("served", 200, usage=(tokens, cached)), now)

    def changed(self, number: int, stored: Sequence[Stretch], removed: Sequence[int], now: float) -> None:
        """What becomes of a pod's cache."""
        if self._publishers:
            self._publishers[number].publish(stored, removed, now)
            return
        index, name = self.core.index, self._ranks[number].id
        for each in stored:
            index.apply(name, BlockStored(each.blocks, each.parent, each.tokens, each.size))
        if removed:
            index.apply(name, BlockRemoved(removed))

    def _demand(self, turn: Turn) -> Demand:
        keys = self.keys_of(turn.blocks[: turn.tokens // self._size])
        return Demand(
            _MODEL, turn.tokens, keys={self._size: keys}, is_alone=True, tells_prefill=True, answer=turn.answer
        )

    def _route(self, demand: Demand, item: object, held: Held | None, now: float) -> SentOn:
        core = self.core
        core.index.expire(now)
        placement = core.route(demand, core.look_up(demand, None, now), _NOBODY, now, None, held)
        pieces = None if self._pieces is None else self._pieces.begin(placement, now)
        return SentOn(item, self._numbers[placement.rank.id], placement, pieces)

    def _go(self, asked: Demand | SentOn, item: object, held: Held | None, now: float) -> SentOn:
        """A request, or what comes next of one that goes in pieces. Raises `Busy`."""
        if isinstance(asked, Demand):
            return self._route(asked, item, held, now)
        assert asked.pieces is not None and self._pieces is not None
        self._pieces.turn(asked.pieces, held, now)
        return asked

    def keys_of(self, blocks: Sequence[int]) -> Keys:
        """Of whole blocks, from the first one on. Each is made once, as long as what is before it is the same."""
        kept, key = self._keys, self._space.root(self._size)
        keys: list[int] = []
        for block in blocks:
            known = kept.get(block)
            if known is None or known[0] != key:
                content = block.to_bytes(4, "little") * self._size
                known = kept[block] = (key, self._space.follow([content], self._size, key)[0])
            key = known[1]
            keys.append(key)
        return np.array(keys, np.uint64)


def tokens_of(blocks: Sequence[int], size: int) -> Tokens:
    """Tokens that nothing but these blocks have."""
    return np.repeat(np.array(blocks, np.uint32), size)
