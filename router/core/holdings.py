"""Who holds how much of a prompt: looked up for a decision, and entered as expected after it. Pure.

Known here are blocks, by events and predictions, and texts, by our own picks; other workers tell what they have just
sent, and other gateways' hits come with the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from indexer.blocks import Grain, Keys
from indexer.index import Prediction, PrefixIndex
from indexer.match import MISS, Hit, Holder
from indexer.prefixes import PrefixStore
from router.core.demand import Demand, Expected
from router.core.fleet import Rank, RankId
from router.core.settings import IndexSettings
from scorer.board import Board

_LATE = 2.0  # a prefill may take so many times what is predicted
_TEXT: Grain = 0  # in place of a grain

Hits: TypeAlias = Mapping[Holder, Hit]


@dataclass(slots=True, eq=False)
class Holders:
    """Who holds how much of a prompt, as of the moment of the look-up: not to be kept over an await.

    `known`: of each of the demand's `versions`, the hits by grain (or by text) as they are known here. `others`: those
    of ranks of which another gateway may know more. `kept`: mappings that were made before still held, for all of it.
    """

    known: Mapping[Demand, Mapping[Grain, Hits]]
    others: Mapping[RankId, Hit] | None = None
    kept: bool = False

    def here(self, demand: Demand, rank: Rank) -> Hit:
        """What a rank holds of its version, as it is known here."""
        hits = self.known[demand].get(_TEXT if demand.text is not None else rank.grain or 0)
        return MISS if hits is None else hits.get(rank.id, MISS)


class Holdings:
    """See the module. Sync; time comes in as `now`."""

    def __init__(self, index: PrefixIndex, texts: PrefixIndex, store: PrefixStore, given: IndexSettings) -> None:
        """`index` knows blocks, `texts` where texts were sent; `store` keeps mappings of `index`."""
        self._index = index
        self._texts = texts
        self._store = store
        self._given = given

    def look_up(self, demand: Demand, others: Mapping[RankId, Hit] | None, board: Board | None, now: float) -> Holders:
        """Who holds it now. `others`: as other gateways know, where they were asked; `board`: of other workers."""
        kept, known = True, {}
        for each in demand.versions:
            hits: dict[Grain, Hits] = {}
            known[each] = hits
            if each.text is not None:
                if board is not None:
                    self._heed(board, self._texts, each.text, now)
                hits[_TEXT] = self._texts.match(each.text).hits
            for grain, keys in each.keys.items():
                if board is not None:
                    self._heed(board, self._index, keys, now)
                ending = each.endings.get(grain)
                match = None if ending is None else self._store.find_mapping(ending, demand.pods, now)
                if match is None:
                    kept, match = False, self._index.match(keys)
                    if ending is not None:
                        self._store.cache_pod_mapping(ending, demand.pods, match, now)
                hits[grain] = match.hits
        return Holders(known, others, kept)

    def expect(self, demand: Demand, rank: Rank, hit: Hit, board: Board | None, now: float) -> Expected:
        """A prompt goes to a rank that holds `hit` of it, as known here: it will hold all. Other workers are told."""
        given = self._given
        text, keys = demand.text, demand.keys.get(rank.grain or 0)
        if text is not None:
            book, prediction = self._texts, self._expect_all(self._texts, rank, text, hit, now)
        elif keys is None:
            return Expected(self._index, None, now)
        elif not rank.tells:
            book, prediction = self._index, self._expect_all(self._index, rank, keys, hit, now)
        elif hit.blocks < len(keys):
            book, prediction = self._index, self._index.predict(rank.id, keys, hit.blocks, now + given.predicted_ttl_s)
        else:
            return Expected(self._index, None, now)
        if prediction is not None and board is not None:
            self._tell(board, demand, rank, hit.blocks, now)
        return Expected(book, prediction, now + given.predicted_ttl_s)

    def _expect_all(self, book: PrefixIndex, rank: Rank, keys: Keys, hit: Hit, now: float) -> Prediction | None:
        """Where nothing confirms, what is used again lives on; a failure takes back what was new only."""
        ttl_s, start = self._given.blind_ttl_s, hit.blocks
        if start and book.believed_until(rank.id, int(keys[0])) < now + ttl_s / 2:
            start = 0
        if start == len(keys):
            return None
        prediction = book.predict(rank.id, keys, start, now + ttl_s)
        return prediction._replace(rows=prediction.rows[hit.blocks - start :])

    def _heed(self, board: Board, book: PrefixIndex, keys: Keys, now: float) -> None:
        """Believe of a prompt what other workers have sent."""
        sent = board.sent(keys, now)
        if sent is None:
            return
        held = book.match(keys).hits.get(sent.rank, MISS).blocks
        if held < sent.blocks:
            book.predict(sent.rank, keys[: sent.blocks], held, sent.expires)

    def _tell(self, board: Board, demand: Demand, rank: Rank, held: int, now: float) -> None:
        """Let other workers know where a prompt goes; believed until events tell all of them, if they do."""
        keys, given = demand.text, self._given
        if keys is None:
            keys = demand.keys[rank.grain or 0]
        if demand.text is not None or not rank.tells:
            ttl_s = given.blind_ttl_s
        else:
            ttl_s = min(given.predicted_ttl_s, _LATE * rank.load.backlog_s(now) + given.predicted_grace_s)
        board.tell(rank.id, keys, held, now + ttl_s)
