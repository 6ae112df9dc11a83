"""What a decision compares: who holds what of a prompt, and how each pod is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from indexer.blocks import Grain, size_of
from indexer.index import PrefixIndex
from indexer.match import MISS, Hit, Holder
from indexer.rule import Rule
from indexer.trust import Trust
from router.core.demand import TEXT_BLOCK_TOKENS, Demand
from router.core.fleet import Fleet, Rank
from router.core.holdings import Holders
from scorer.candidates import Candidates
from scorer.chains import Chains
from scorer.crowd import MANY, Alike, Crowd, Regulars, Rivals
from scorer.hold import Held
from scorer.load import PodLoad
from scorer.pick import Pick

_LOOK_S = 0.1  # between two looks at what changes little
_LOOKED_MAX = 32  # ranks at one look, so that no decision pays for more: about 0.1 ms
_LINES_MAX = 4
_FULL_S = 30.0  # a pod that has given up something within this time has no room

_Found: TypeAlias = tuple[int, Hit, int, int]
"""Who holds something of a prompt: number, hit, tokens of the prompt as it reads it, tokens a block."""


@dataclass(slots=True, eq=False)
class _Line:
    """Ranks beside each other, by column: what belongs to them, and what changes little from one decision to the next,
    as of the last look at each."""

    ranks: Sequence[Rank]
    numbers: Mapping[Holder, int]
    loads: Mapping[PodLoad, int]  # likewise
    trusts: Sequence[Trust]
    grains: Sequence[Grain | None]
    speeds: Sequence[tuple[float, float]]  # seconds: per token, and per token for each one before it
    factors: list[float]
    rooms: list[float]
    again: list[float]
    fills: list[float]
    states: Sequence[str]  # of their feeds
    regulars: Regulars | None = None  # where they are many: then what is priced is there

    @classmethod
    def of(cls, ranks: Sequence[Rank], moved: set[PodLoad]) -> _Line:
        """`moved`: where loads of many enter themselves when they change."""
        line = cls(
            ranks,
            {rank.id: number for number, rank in enumerate(ranks)},
            {rank.load: number for number, rank in enumerate(ranks)},
            [rank.trust for rank in ranks],
            [rank.grain for rank in ranks],
            [(rank.load.rate.per_token, rank.load.rate.per_position) for rank in ranks],
            [rank.load.rate.factor for rank in ranks],
            [rank.room for rank in ranks],
            [rank.again for rank in ranks],
            [rank.fill for rank in ranks],
            [rank.stood for rank in ranks],
        )
        if len(ranks) >= MANY:
            for load in line.loads:
                load.moved = moved
            line.regulars = Regulars(ranks, line.loads, line.speeds, line.factors, line.rooms, line.again, line.fills)
        return line


@dataclass(slots=True, eq=False)
class _Fit:
    """Those of `ranks` that are `fit`, `since` then, as long as nothing changes: `until` some pod's time comes."""

    ranks: Sequence[Rank]
    fit: Sequence[Rank]
    changes: int  # of the fleet's standing
    since: float
    until: float

    @classmethod
    def of(cls, ranks: Sequence[Rank], changes: int, now: float) -> _Fit:
        times = [time for rank in ranks for time in (rank.pod.suspect_until, rank.pod.breaker.blocked_until)]
        until = min((time for time in times if time > now), default=float("inf"))
        return cls(ranks, [rank for rank in ranks if rank.pod.fit(now)], changes, now, until)


class Comparison:
    """See the module."""

    def __init__(self, fleet: Fleet, index: PrefixIndex, chains: Chains, weights: tuple[float, float, float]) -> None:
        """`chains`: what is asked for; `weights`: what a block is worth, by its tier: gpu, cpu, disk."""
        self._chains = chains
        self._fleet = fleet
        self._index = index
        self._weights = weights
        self._looked_at = float("-inf")  # at the first of them
        self._unseen: list[Rank] = []  # since then
        self._news = False  # all were looked at since the last decision
        self._free, self._contexts = 0.0, 0  # tokens that fit into those looked at, and what lives in them
        self._turns = chains.mix.turns  # as of the last look
        self._next = 1.0  # tokens of a prompt with what it is taken to grow by
        self._room_each = float("inf")  # tokens that each context may grow by, until all caches are full
        self._moved: set[PodLoad] = set()  # since the last decision
        self._line = _Line.of((), self._moved)  # of the last decision
        self._lines: list[_Line] = []  # of the last ones, the newest first
        self._fit: dict[str | None, _Fit] = {}  # of each model,
        self._epoch = 0  # as the fleet served them then

    def fit(self, model: str | None, ranks: Sequence[Rank], now: float) -> Sequence[Rank]:
        """Those of a model's `ranks`, as the fleet has them (in a list that does not change), whose pods are fit."""
        fleet = self._fleet
        if self._epoch != fleet.epoch:
            self._epoch = fleet.epoch
            self._fit.clear()
        known, changes = self._fit.get(model), fleet.standing.changes
        if (
            known is None
            or known.ranks is not ranks
            or known.changes != changes
            or not known.since <= now < known.until
        ):
            known = self._fit[model] = _Fit.of(ranks, changes, now)
        return known.fit

    def candidates(
        self, demand: Demand, holders: Holders, ranks: Sequence[Rank], now: float
    ) -> tuple[Rivals, list[Hit]]:
        """All of `ranks` (at least one) beside each other, and what each of them holds of the prompt."""
        self.look(now)
        line = self._line = self._line_of(ranks)
        hits = [MISS] * len(ranks)
        tokens, regulars = demand.most_tokens, line.regulars
        found = _found(demand, holders, line) if demand.reads_cache else ()
        if regulars is not None:
            crowd = Crowd(regulars, tokens, self._turns, now)
            self._enter_many(crowd, hits, found, line)
            return crowd, hits
        candidates = _few(line, tokens, self._turns, now)
        self._enter(candidates, hits, found, line)
        return candidates, hits

    def delay(self, candidates: Rivals, later_s: Mapping[PodLoad, float], least: int) -> None:
        """A prefill starts so much later there: of those of the last decision that have more than so many tokens to
        compute."""
        for load, seconds in later_s.items():
            number = self._line.loads.get(load)
            if number is not None and candidates.tokens - candidates.worths[number] > least:
                candidates.backlogs_s[number] += seconds

    def _line_of(self, ranks: Sequence[Rank]) -> _Line:
        """Them beside each other. Each model has its own, and few are asked for by turns."""
        if self._news:
            self._lines.clear()
            self._news = False
        if self._moved:
            for line in self._lines:
                if line.regulars is not None:
                    for load in self._moved:
                        line.regulars.heed(load)
            self._moved.clear()
        for line in self._lines:
            if ranks is line.ranks or ranks == line.ranks:  # ranks are equal to themselves alone
                return line
        line = _Line.of(ranks, self._moved)
        self._lines = [line, *self._lines[: _LINES_MAX - 1]]
        return line

    @property
    def states(self) -> Sequence[str]:
        """Of the feeds of the last decision's ranks, as of the last look. Nobody changes it: decisions keep it."""
        return self._line.states

    def placed(self, number: int, tokens: int, begins: bool) -> None:
        """So many tokens more will be held by one of the last decision's ranks, and what follows if a context begins:
        who comes before the next look must know. Decisions keep the columns that they saw."""
        rank = self._line.ranks[number]
        if not (capacity := rank.capacity):
            return
        rank.fill += (tokens + (self._ahead if begins else 0.0)) / capacity
        for line in self._lines:
            place = line.numbers.get(rank.id)
            if place is None:
                continue
            if line.regulars is not None:
                line.regulars.fill(place, rank.fill)
            else:
                line.fills = line.fills.copy()
                line.fills[place] = rank.fill

    def _enter(self, candidates: Candidates, hits: list[Hit], found: Iterable[_Found], line: _Line) -> None:
        """What those found hold, and need not compute for it."""
        last_hit, last_rule, last_size, last_tokens = MISS, None, 0, 0
        matched, worth, middle = 0, 0.0, 0.0
        trusts, speeds, asked = line.trusts, line.speeds, candidates.tokens
        all_matched, worths, tokens_s = candidates.matched, candidates.worths, candidates.tokens_s
        for number, hit, tokens, size in found:
            rule = trusts[number].rule
            if hit is not last_hit or rule is not last_rule or size != last_size or tokens != last_tokens:
                last_hit, last_rule, last_size, last_tokens = hit, rule, size, tokens  # mostly all have the same
                matched, worth = self._reused(hit, rule, tokens, size)
                worth += asked - tokens  # what it has not got to compute either
                middle = (matched + tokens) / 2
            hits[number] = hit
            all_matched[number], worths[number] = matched, worth
            per_token, per_position = speeds[number]
            tokens_s[number] = per_token + per_position * middle

    def _enter_many(self, crowd: Crowd, hits: list[Hit], found: Iterable[_Found], line: _Line) -> None:
        """As `_enter`, those at once that have the same."""
        last_hit, last_rule, last_size, last_tokens = MISS, None, 0, 0
        trusts = line.trusts
        groups: list[Alike] = []
        numbers: list[int] = []
        for number, hit, tokens, size in found:
            rule = trusts[number].rule
            if hit is not last_hit or rule is not last_rule or size != last_size or tokens != last_tokens:
                last_hit, last_rule, last_size, last_tokens = hit, rule, size, tokens
                matched, worth = self._reused(hit, rule, tokens, size)
                numbers = []
                groups.append(Alike(numbers, matched, worth + (crowd.tokens - tokens), (matched + tokens) / 2))
            hits[number] = hit
            numbers.append(number)
        for group in groups:
            crowd.hold(group)

    def _reused(self, hit: Hit, rule: Rule | None, tokens: int, size: int) -> tuple[int, float]:
        """Tokens of a hit that are reused by a rule, and what they are worth."""
        matched = rule.blocks(hit, tokens, size) * size if rule is not None else 0
        if hit.gpu + hit.predicted == hit.blocks:
            return matched, float(matched)
        gpu, cpu, disk = self._weights
        return matched, matched * (gpu * (hit.gpu + hit.predicted) + cpu * hit.cpu + disk * hit.disk) / hit.blocks

    def look(self, now: float) -> None:
        """At what changes little from one decision to the next, speeds and room, if it is time: at some ranks of a
        large fleet, in turns."""
        if not self._unseen:
            if self._looked_at <= now < self._looked_at + _LOOK_S:
                return
            self._looked_at, self._unseen = now, list(self._fleet.ranks)
            self._free, self._contexts = 0.0, 0
            self._turns = self._chains.mix.turns
            self._next = max(1.0, self._chains.mix.tokens + self._chains.ahead)
        ahead = self._ahead
        for rank in self._unseen[-_LOOKED_MAX:]:
            rank.load.rate.look()
            rank.stood = rank.state
            if rank.pod.blocks is not None and rank.feed is not None:
                self._look_at_room(rank, rank.pod.blocks, ahead, now)
        del self._unseen[-_LOOKED_MAX:]
        if not self._unseen:
            self._news = True
            self._room_each = self._free / max(1, self._contexts)

    @property
    def _ahead(self) -> float:
        """Tokens that a context is taken to grow by: together, by no more than the caches have room for."""
        return min(self._chains.ahead, self._room_each)

    def _look_at_room(self, rank: Rank, blocks: int, ahead: float, now: float) -> None:
        """Of a pod that has given up something a moment ago there is none: what seems free is in use. `ahead`: tokens
        that each context is taken to grow by."""
        size, removed, held = rank.block_size or 0, self._index.removed(rank.id), self._index.held(rank.id)
        if removed != rank.removed:
            rank.removed, rank.removed_at = removed, now
        full = now < rank.removed_at + _FULL_S
        rank.room = 0.0 if full else float((blocks - held) * size)
        contexts = rank.lives.contexts(now)
        self._free += max(0.0, rank.room)
        self._contexts += contexts
        taken = held * size + contexts * ahead
        rank.fill = 1.0 if full else min(1.0, taken / max(1, blocks * size))
        parts, chance = rank.recency.gives_up(held * size, self._next, now), self._chains.reuse.chance
        rank.again = sum([tokens * chance(idle_s) for tokens, idle_s in parts]) / self._next


def _few(line: _Line, tokens: int, turns: float, now: float) -> Candidates:
    """Those of which nobody holds anything yet."""
    loads, count, middle = line.loads, len(line.ranks), tokens / 2
    return Candidates(
        tokens,
        [0] * count,
        [0.0] * count,
        [load.requests for load in loads],
        [load.prefill_tokens for load in loads],
        [load.backlog_s(now) if load.prefill_tokens or load.stated_s else 0.0 for load in loads],
        [per_token + per_position * middle for per_token, per_position in line.speeds],
        line.factors,
        line.rooms,
        line.again,
        line.fills,
        line.ranks,
        turns,
    )


def _found(demand: Demand, holders: Holders, line: _Line) -> Iterable[_Found]:
    """Those that hold something of the prompt."""
    if holders.others or demand.by_version is not None:
        return _best(demand, holders, line.ranks)
    numbers, grains, by_text, tokens = line.numbers, line.grains, demand.text is not None, demand.tokens
    found: list[_Found] = []
    for grain, hits in holders.known[demand].items():
        size = TEXT_BLOCK_TOKENS if by_text else size_of(grain)
        for name, hit in hits.items():
            number = numbers.get(name)
            if number is not None and (by_text or grains[number] == grain):
                found.append((number, hit, tokens, size))
    return found


def _best(demand: Demand, holders: Holders, ranks: Sequence[Rank]) -> Iterable[_Found]:
    """By the longer hit of what is known here and what other gateways know, of the version that each has."""
    for number, rank in enumerate(ranks):
        theirs = demand.of(rank)
        here, there = holders.here(theirs, rank), MISS
        if holders.others is not None:
            there = holders.others.get(rank.id, MISS)
        hit = there if there.blocks > here.blocks else here
        if hit is not MISS:
            yield number, hit, theirs.tokens, (rank.block_size or 0) if demand.text is None else TEXT_BLOCK_TOKENS


def slow_starts_s(ranks: Sequence[Rank], now: float) -> list[float]:
    """What is left of them. Among pods whose speeds are known, one whose is not is tried at once, with one request."""
    left_s = [rank.pod.slow_until - now for rank in ranks]
    known_s = [left for rank, left in zip(ranks, left_s, strict=True) if rank.load.rate.samples]
    if known_s and len(known_s) < len(ranks):
        least_s = min(known_s)
        for number, rank in enumerate(ranks):
            if not rank.load.rate.samples and not rank.load.requests:
                left_s[number] = min(left_s[number], least_s)
    return left_s


def waits_for_full(picked: Pick, ranks: Sequence[Rank], roomy: Sequence[Rank], held: Held | None, now: float) -> bool:
    """Whether the pick of all stands: it is one with room, or so much better that it is worth to wait for. Nobody waits
    for a full pod for longer than the best one with room is later."""
    allowed = set(roomy)
    if ranks[picked.best.number] in allowed:
        return True
    prices = picked.prices
    elsewhere = min([price for price, rank in zip(prices, ranks, strict=True) if rank in allowed])
    return (0.0 if held is None else now - held.since) < elsewhere - prices[picked.best.number]


def long_enough(ranks: Sequence[Rank], tokens: int) -> Sequence[Rank]:
    """Those whose context takes so much; if none does, those with the longest, whose refusal the client gets."""
    lengths = [rank.pod.context_tokens for rank in ranks]
    enough = min(tokens, max((length for length in lengths if length is not None), default=0))
    if None in lengths:  # it may take any length
        enough = tokens
    return [rank for rank, length in zip(ranks, lengths, strict=True) if length is None or length >= enough]


def reason_of(demand: Demand, best: Pick) -> str:
    """Why it is the pick, in words."""
    if demand.reason is None:
        return best.reason
    return f"{demand.reason}; its text: {best.reason}" if best.best.matched else demand.reason
