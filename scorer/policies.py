"""The named policies: each prices the candidates of one request; the lowest price is picked.

One is made at the start, and asked for every request. Nothing in here is chance: what is drawn, is drawn by what comes
in, so the same requests in the same order go to the same pods.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import xxhash

from indexer.blocks import Keys
from scorer.candidates import Candidate, Candidates
from scorer.crowd import Alike, Crowd, Floats, Priced, Rivals
from scorer.history import History, hash_blocks

PolicyName: TypeAlias = Literal[
    "predicted-ttft",
    "weighted",
    "affinity-until-saturated",
    "overlap",
    "least-load",
    "round-robin",
    "random",
    "session",
    "power-of-two",
    "approximate",
]

_EVEN = 0.05  # of a cache: pods are no fuller than others for so much
_TURNS_MAX = 4.0  # as large as what is new of a prompt, that are taken to follow it
_FAR = 1e6  # above every other price: not drawn
_LEAST_LOADED = "least loaded"
HOLDS_LONGEST = "holds the longest prefix"
_BITS = (1 << 64) - 1


class Weights(NamedTuple):
    """What a share in [0, 1] counts for in a blend: of the prefix, of the queue, of the memory in use."""

    prefix: float = 3.0
    queue: float = 2.0
    kv: float = 2.0


_USUAL = Weights()


@dataclass(slots=True, frozen=True)
class Settings:
    """`beta`: how much of the fleet's work counts beside this request's own wait (0-1 at low load, 4-8 at the knee).

    `eviction`: how much it counts that what a pod gives up may have to be computed again.
    `request_s`: seconds that each request in flight is taken to delay another's first token by its decode steps.
    `saturated_s`: a pod is saturated when so much prefill waits there.
    `weights` and what follows are of `weighted`, by the names that the Gateway API's endpoint picker has for them:
    tokens a block, blocks of a prompt that are looked at, blocks that are remembered of each pod, and what any hit at
    all is worth beside its length.
    """

    policy: PolicyName = "predicted-ttft"
    beta: float = 1.0
    request_s: float = 0.002
    eviction: float = 4.0
    saturated_s: float = 2.0
    weights: Weights = _USUAL
    hash_block_size: int = 64
    max_prefix_blocks_to_match: int = 256
    lru_capacity_per_server: int = 31_250
    cache_hit_bonus: float = 0.0


class AskedPrompt(NamedTuple):
    """What some policies know of a request beside its candidates. `session`: 0 where there is none to know it by."""

    keys: Keys
    """Of its prompt's blocks, in order."""
    size: int
    """Tokens a block."""
    session: int


class Policy:
    """What all have in common; prices are the least that a policy has of its own."""

    alike = 0.0
    """Prices within this share are a tie."""
    knows_request = False
    """It is told what was asked."""
    binds_late = False
    """Prices are seconds: who is best placed at a busy pod may wait for it."""
    knows_crowds = False
    """It prices arrays, too."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def view(self, candidates: Candidates, asked: AskedPrompt | None) -> Candidates:
        """The candidates as this policy sees them; those that are given are not changed."""
        return candidates

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        """Of each; not below 0. `turn`: how many picks were made before."""
        raise NotImplementedError

    def prices_of_many(self, crowd: Crowd) -> Floats:
        """The same floats as for the candidates one by one. Only of a policy that knows crowds."""
        raise NotImplementedError

    def most(self, one: Candidate, crowd: Crowd) -> float:
        """The price of one is no higher. Only of a policy that knows crowds."""
        raise NotImplementedError

    def least(self, group: Alike, crowd: Crowd) -> float:
        """The price of nobody in a group is lower. Only of a policy that knows crowds."""
        raise NotImplementedError

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        """Why it was this one, of those with these `prices`: of few kinds, as it is a label."""
        raise NotImplementedError

    def sent(self, candidates: Candidates, chosen: int, asked: AskedPrompt | None) -> None:
        """The pick was acted on."""

    def forget(self, name: Hashable) -> None:
        """A candidate has left."""


class PredictedTtft(Policy):
    """Seconds until the first token if sent there, counting what this request costs the fleet: `backlog +
    cost(uncached) + beta * cost(uncached) of the fleet + eviction * again * cost(evicted + growth) + requests *
    request_s`. Its own wait is at the pod's speed, the fleet's work at the fleet's. `again` is how likely what is given
    up is asked for once more; `growth`: where prompts continue others, what is new of one will be followed by more, for
    which there is less room in a pod that is fuller than others."""

    alike = 0.1
    """Speeds of equal pods are not measured any better."""
    binds_late = True
    knows_crowds = True

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        settings, tokens = self.settings, float(candidates.tokens)
        beta, request_s = settings.beta, settings.request_s
        prices = [
            backlog_s + requests * request_s + token_s * (tokens - worth) * (1.0 + beta / factor)
            for worth, requests, backlog_s, token_s, factor in zip(
                candidates.worths,
                candidates.requests,
                candidates.backlogs_s,
                candidates.tokens_s,
                candidates.factors,
                strict=True,
            )
        ]
        emptiest = min(candidates.fills) + _EVEN
        if min(candidates.rooms) < tokens or max(candidates.fills) > emptiest:
            self._add_evictions(prices, candidates, emptiest)
        return prices

    def _add_evictions(self, prices: list[float], candidates: Candidates, emptiest: float) -> None:
        """Pods that are no fuller than `emptiest` have room for what follows the prompt."""
        tokens, eviction = float(candidates.tokens), self.settings.eviction
        growth = min(_TURNS_MAX, candidates.turns) * (tokens - candidates.longest)
        columns = zip(
            candidates.matched, candidates.tokens_s, candidates.rooms, candidates.again, candidates.fills, strict=True
        )
        for number, (matched, token_s, room, again, fill) in enumerate(columns):
            if fill > emptiest or room < tokens:
                given_up = growth * (fill - emptiest) if fill > emptiest else 0.0
                if room < tokens - matched:
                    given_up += tokens - matched - room
                prices[number] += token_s * (eviction * again) * given_up

    def prices_of_many(self, crowd: Crowd) -> Floats:
        settings, regulars, tokens = self.settings, crowd.regulars, float(crowd.tokens)
        work_s = crowd.tokens_s * (tokens - crowd.worths) * regulars.shares(settings.beta)
        prices: Floats = crowd.backlogs_s + crowd.requests * settings.request_s + work_s
        lacks_room, emptiest = regulars.least_room < tokens, crowd.emptiest + _EVEN
        if lacks_room or crowd.fullest > emptiest:
            growth = min(_TURNS_MAX, crowd.turns) * (tokens - crowd.longest)
            given_up = growth * np.maximum(crowd.fills - emptiest, 0.0)
            if lacks_room:
                given_up += np.maximum(tokens - crowd.matched - crowd.rooms, 0.0)
            prices += crowd.tokens_s * regulars.dear(settings.eviction) * given_up
        return prices

    def most(self, one: Candidate, crowd: Crowd) -> float:
        settings, tokens, emptiest = self.settings, float(crowd.tokens), crowd.emptiest + _EVEN
        work_s = one.token_s * (tokens - one.worth) * (1.0 + settings.beta / one.factor)
        growth = min(_TURNS_MAX, crowd.turns) * (tokens - crowd.longest)
        given_up = growth * max(0.0, one.fill - emptiest) + one.evicted + 1.0  # tokens, which are whole
        lost_s = one.token_s * (settings.eviction * one.again) * given_up
        return one.backlog_s + one.requests * settings.request_s + work_s + lost_s

    def least(self, group: Alike, crowd: Crowd) -> float:
        return crowd.regulars.least_s(self.settings.beta, crowd.tokens - group.worth, group.middle)

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        longest = candidates.longest
        if not longest:
            return "least loaded: nobody holds a prefix"
        if candidates.matched[chosen] == longest:
            return HOLDS_LONGEST
        return self._advantage(candidates, prices, chosen, candidates.holder)

    def _advantage(self, candidates: Rivals, prices: Priced, chosen: int, holder: int) -> str:
        """Over the holder of the longest prefix: by what it gains most."""
        request_s, beta = self.settings.request_s, self.settings.beta

        def parts(number: int) -> tuple[float, float, float]:
            wait_s = candidates.backlogs_s[number] + candidates.requests[number] * request_s
            computed = candidates.tokens - candidates.worths[number]
            work_s = candidates.tokens_s[number] * computed * (1.0 + beta / candidates.factors[number])
            return wait_s, work_s, prices[number] - wait_s - work_s

        less_wait, less_work, less_lost = (h - c for h, c in zip(parts(holder), parts(chosen), strict=True))
        if less_wait >= max(less_work, less_lost):
            return "less loaded than the holder of the longest prefix"
        if less_lost >= less_work:
            return "gives up less than the holder of the longest prefix"
        return "computes it sooner than the holder of the longest prefix"


class Approximate(PredictedTtft):
    """As `predicted-ttft`, for pods that tell nothing: what a pod holds is what it was sent, as far as it has room."""

    knows_request = True
    knows_crowds = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._history = History()

    def view(self, candidates: Candidates, asked: AskedPrompt | None) -> Candidates:
        given, size = self.settings, self.settings.hash_block_size
        matched = [0] * len(candidates)
        if asked is not None:
            size = _block_size(asked, size)
            blocks = hash_blocks(asked.keys, asked.size, given.hash_block_size, len(asked.keys))
            found = self._history.matched(blocks, [pod.name for pod in candidates.pods])
            matched = [min(size * count, candidates.tokens) for count in found]
        return Candidates(
            candidates.tokens, matched, [float(tokens) for tokens in matched], candidates.requests,
            candidates.prefill_tokens, candidates.backlogs_s, candidates.tokens_s, candidates.factors,
            candidates.rooms, candidates.again, candidates.fills, candidates.pods, candidates.turns,
        )  # fmt: skip

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        return (
            super().reason(candidates, prices, chosen, asked).replace("holds", "was sent").replace("holder", "receiver")
        )

    def sent(self, candidates: Candidates, chosen: int, asked: AskedPrompt | None) -> None:
        if asked is None:
            return
        given, capacity = self.settings, candidates.pods[chosen].capacity
        blocks = hash_blocks(asked.keys, asked.size, given.hash_block_size, len(asked.keys))
        size = _block_size(asked, given.hash_block_size)
        most = given.lru_capacity_per_server if capacity is None else capacity // size
        self._history.sent(blocks, candidates.pods[chosen].name, most)

    def forget(self, name: Hashable) -> None:
        self._history.forget(name)


class Weighted(Policy):
    """A blend of shares, as the Gateway API's endpoint picker has it by default: of the prompt's first blocks those
    that a pod was sent before, how few requests it has beside the others, how little of its memory is in use."""

    knows_request = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._history = History()

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        given, weights = self.settings, self.settings.weights
        shares = self._prefixes(candidates, asked)
        fewest, most = min(candidates.requests), max(candidates.requests)
        spread, memory = most - fewest, [pod.used for pod in candidates.pods]
        whole = weights.prefix + weights.queue + weights.kv + given.cache_hit_bonus
        return [
            whole
            - weights.prefix * share
            - (given.cache_hit_bonus if share else 0.0)
            - weights.queue * ((most - requests) / spread if spread else 1.0)
            - weights.kv * (1.0 - used)
            for share, requests, used in zip(shares, candidates.requests, memory, strict=True)
        ]

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        shares = self._prefixes(candidates, asked)
        longest = max(shares)
        if not longest:
            return "least loaded: nobody was sent a prefix of it"
        if shares[chosen] == longest:
            return "was sent the longest prefix"
        return "less loaded than the receiver of the longest prefix"

    def sent(self, candidates: Candidates, chosen: int, asked: AskedPrompt | None) -> None:
        if asked is not None:
            self._history.sent(self._blocks(asked), candidates.pods[chosen].name, self.settings.lru_capacity_per_server)

    def forget(self, name: Hashable) -> None:
        self._history.forget(name)

    def _prefixes(self, candidates: Rivals, asked: AskedPrompt | None) -> list[float]:
        blocks = [] if asked is None else self._blocks(asked)
        if not blocks:
            return [0.0] * len(candidates)
        return [count / len(blocks) for count in self._history.matched(blocks, [pod.name for pod in candidates.pods])]

    def _blocks(self, asked: AskedPrompt) -> list[int]:
        given = self.settings
        return hash_blocks(asked.keys, asked.size, given.hash_block_size, given.max_prefix_blocks_to_match)


class AffinityUntilSaturated(Policy):
    """The holder of the longest prefix, however short, of the pods that are not saturated; of these, if all are, the
    one with the least to do."""

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        tokens, bound_s = max(1, candidates.tokens), self.settings.saturated_s
        return [
            1.0 - worth / tokens if backlog_s < bound_s else _FAR + backlog_s
            for worth, backlog_s in zip(candidates.worths, candidates.backlogs_s, strict=True)
        ]

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        bound_s = self.settings.saturated_s
        if candidates.backlogs_s[chosen] >= bound_s:
            return "least loaded: all are saturated"
        longest = max(candidates.worths)
        if not longest:
            return "not saturated, and nobody holds a prefix"
        if candidates.worths[chosen] == longest:
            return HOLDS_LONGEST
        if not candidates.worths[chosen]:
            return "not saturated, as all are that hold a prefix"
        return "holds the longest prefix of those that are not saturated"


class Overlap(Policy):
    """Who has to compute least of the prompt, whatever else there is to do; of those, who has the fewest requests."""

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        return [candidates.tokens - worth for worth in candidates.worths]

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        return HOLDS_LONGEST if candidates.worths[chosen] else "nobody holds a prefix"


class LeastLoad(Policy):
    """Requests in flight, and the seconds of prefill that they still need. Knows nothing of caches."""

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        return _loads(candidates)

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        return _LEAST_LOADED


class RoundRobin(Policy):
    """Places until it is a candidate's turn. Knows nothing of pods."""

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        count = len(candidates)
        return [float((place - turn) % count) for place in range(count)]

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        return "turn"


class Random(Policy):
    """Each as likely as the others. Knows nothing of pods."""

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        drawn = _drawn(turn, candidates.tokens) % len(candidates)
        return [0.0 if place == drawn else 1.0 for place in range(len(candidates))]

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        return "drawn"


class PowerOfTwo(Policy):
    """Of two that are drawn, the less loaded one."""

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        count, drawn = len(candidates), _drawn(turn, candidates.tokens)
        first = drawn % count
        second = (first + 1 + (drawn >> 32) % (count - 1)) % count if count > 1 else first
        loads = _loads(candidates)
        return [load if place in (first, second) else _FAR + load for place, load in enumerate(loads)]

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        return "the less loaded of two that were drawn"


class Session(Policy):
    """A session's requests go to one pod, whatever happens: each session has an order of all pods, and its pod is the
    first of those that there are. Who can't be known by a session goes where there is least to do."""

    knows_request = True

    def prices(self, candidates: Candidates, turn: int, asked: AskedPrompt | None) -> list[float]:
        if asked is None or not asked.session:
            return _loads(candidates)
        seed = asked.session & _BITS
        keys = [xxhash.xxh3_64_intdigest(str(pod.name).encode(), seed) for pod in candidates.pods]
        return [float(place) for place in _places(keys)]

    def reason(self, candidates: Rivals, prices: Priced, chosen: int, asked: AskedPrompt | None) -> str:
        return "its session's pod" if asked is not None and asked.session else "least loaded: its session is not known"


def session_number(name: str) -> int:
    """Of a session that its client names; never 0."""
    return xxhash.xxh3_64_intdigest(name.encode()) or 1


POLICIES: dict[PolicyName, type[Policy]] = {
    "predicted-ttft": PredictedTtft,
    "weighted": Weighted,
    "affinity-until-saturated": AffinityUntilSaturated,
    "overlap": Overlap,
    "least-load": LeastLoad,
    "round-robin": RoundRobin,
    "random": Random,
    "session": Session,
    "power-of-two": PowerOfTwo,
    "approximate": Approximate,
}


def policy_of(settings: Settings) -> Policy:
    """The one that is named, with nothing behind it."""
    return POLICIES[settings.policy](settings)


def _loads(candidates: Candidates) -> list[float]:
    columns = zip(candidates.requests, candidates.prefill_tokens, candidates.tokens_s, strict=True)
    return [requests + prefill_tokens * token_s for requests, prefill_tokens, token_s in columns]


def _block_size(asked: AskedPrompt, hash_block_size: int) -> int:
    """Tokens a hash block, of whole blocks."""
    return max(1, hash_block_size // asked.size) * asked.size


def _places(keys: Sequence[int]) -> list[int]:
    """Of each, in the order of all."""
    places = [0] * len(keys)
    for place, number in enumerate(sorted(range(len(keys)), key=keys.__getitem__)):
        places[number] = place
    return places


def _drawn(turn: int, tokens: int) -> int:
    """64 bits that look like chance (splitmix64)."""
    mixed = (turn * 0x9E37_79B9_7F4A_7C15 + tokens) & _BITS
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58_476D_1CE4_E5B9) & _BITS
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D0_49BB_1331_11EB) & _BITS
    return mixed ^ (mixed >> 31)
