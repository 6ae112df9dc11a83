"""One request, as the core sees it: what it asks, what was decided, what was taken for it, and how it ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from indexer.blocks import Grain, Keys, size_of
from indexer.index import Prediction, PrefixIndex
from indexer.mappings import Ending
from indexer.match import Hit, Holder
from router.core.fleet import Pod, Rank, RankId
from router.core.token_states import Origin, Witness
from scorer.chains import Chain
from scorer.load import Ticket
from scorer.pick import Pick
from scorer.sessions import LiveSession

NOT_DONE = 300
"""A status from here on says that what was asked for was not done."""
TEXT_BLOCK_TOKENS = 32
"""What one block of text is taken to be worth in tokens."""


class Apart(NamedTuple):
    """What sets a prompt's blocks apart from those of the same tokens, and the keys that they would have without it."""

    adapter: str | None
    salt: str | None
    plain: Mapping[Grain, Keys]


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """What a request asks of the fleet. `keys` and `endings` are by grain, empty if it is not tokenized.

    It is made once, of a body; the same body again has the same one, so nothing of the moment is in it.
    """

    model: str | None
    tokens: int = 0  # of the prompt; an estimate if it could not be tokenized
    further: int = 0  # tokens of further prompts in the same request: load, nothing more
    keys: Mapping[Grain, Keys] = field(default_factory=dict)
    endings: Mapping[Grain, Ending] = field(default_factory=dict)  # where this prompt's mappings are kept
    by_version: Mapping[str | None, Demand] | None = None  # the same to pods of versions that write it differently
    text: Keys | None = None  # of the text's blocks, where nothing is known of the tokens
    reason: str | None = None  # why the prefix is not known
    origin: Origin | None = None  # where its tokens came from; None: the client gave them
    pods: frozenset[str] | None = None  # only these
    is_alone: bool = False  # the cached tokens that the pod will report are those of this one prompt
    asks_full_report: bool = False  # the pod will tell again of the blocks that it reuses
    tells_cached: bool = True  # the response's usage tells cached tokens, if the pod does at all
    tells_prefill: bool = False  # the first byte of the answer will come with the first token
    reads_cache: bool = True  # if not, the pod computes all of it, whatever it holds
    answer: int | None = None  # tokens that a pod must have room for behind the prompt; None: that is not known
    session: str | None = None  # as the body names it
    apart: Apart | None = None  # None: it has neither adapter nor salt

    def of(self, rank: Rank) -> Demand:
        """What is asked of this rank: its vLLM may make other tokens of the prompt."""
        return self if self.by_version is None else self.by_version.get(rank.pod.version, self)

    @property
    def blocks(self) -> tuple[Keys, int] | None:
        """By which it is recognised when it is continued: keys, and tokens a block."""
        for grain, keys in self.keys.items():
            return keys, size_of(grain)
        return None if self.text is None else (self.text, TEXT_BLOCK_TOKENS)

    @property
    def is_counted(self) -> bool:
        """The usage of its response is about a prompt whose tokens are known."""
        return bool(self.keys) and self.reason is None and self.tells_cached

    @property
    def versions(self) -> Sequence[Demand]:
        """All that are asked of somebody."""
        return (self,) if self.by_version is None else (self, *self.by_version.values())

    @property
    def most_tokens(self) -> int:
        """Of the versions that write the prompt differently."""
        if self.by_version is None:
            return self.tokens
        return max(self.tokens, *(each.tokens for each in self.by_version.values()))


@dataclass(slots=True, eq=False)
class Try:
    """One attempt that has ended: at whom, how (a status, or a word for what went wrong), and when."""

    at: RankId
    how: int | str
    ended: float


@dataclass(slots=True, eq=False)
class Trace:
    """The ids by which one request is known to who traces requests, where that is wanted."""

    trace_id: int
    parent: int | None  # the client's span
    span: int
    sampled: bool
    attempts: list[tuple[int, Decision]] = field(default_factory=list)  # span and decision of each


@dataclass(slots=True, eq=False)
class Story:
    """One request, from its body to its end, as operators hear of it: filled in on its way. Times are monotonic."""

    id: bytes
    path: str
    began: float
    tries: list[Try] = field(default_factory=list)
    first_at: float | None = None  # the first byte of its answer
    ended_at: float | None = None
    status: int | None = None  # that the client got; None: none was sent
    error: str | None = None  # what went wrong, in a word; None: the answer went out whole
    usage: tuple[int, int | None] | None = None  # as `End` has it
    why: object | None = None  # what is found out afterwards: why so much of its prompt was not cached
    trace: Trace | None = None


@dataclass(slots=True, eq=False)
class Decision:
    """One pick, with all that it was made from, as it was then.

    `rank` was picked; `matched_tokens` are promised of it: none where only the text is known. `states`: of the feeds of
    `ranks`, at most a moment old. `known`: who holds how much, those too that are no candidates. `story`: of the
    request, where somebody tells it.
    """

    at: float
    demand: Demand
    rank: Rank
    matched_tokens: int
    ranks: Sequence[Rank]
    hits: Sequence[Hit]
    pick: Pick
    reason: str
    states: Sequence[str]
    known: Mapping[Demand, Mapping[Grain, Mapping[Holder, Hit]]]
    shadow: int | None = None  # whom another policy would have picked
    waited: tuple[float, str] | None = None  # seconds, and for what at last
    pieces: int = 0  # that went before the request
    story: Story | None = None


@dataclass(slots=True, eq=False)
class Expected:
    """What a rank is believed to hold soon, since a prompt goes there."""

    book: PrefixIndex  # where it was entered
    prediction: Prediction | None  # None: nothing was new
    expires: float


@dataclass(slots=True, eq=False)
class Placement:
    """A decision that was acted on: what must be given back."""

    decision: Decision
    rank: Rank  # that was picked
    ticket: Ticket
    expected: Expected
    hit: Hit  # as known here
    quiet: bool  # the rank had nothing else in flight
    pod: Pod
    epoch: int  # of the pod's breaker
    removed: int = 0  # blocks that the rank had given up
    adapter: str | None = None
    chain: Chain | None = None
    use: int | None = None  # as other workers know it
    witness: Witness | None = None  # until it is judged
    session: LiveSession | None = None
    waits: bool = False  # to be judged by what the pod's events tell of it
    held_then: int | None = None  # tokens that the pod held when the last piece of it went there; None: it went whole
    given_back: bool = False
    refused: bool = False  # the pod did no work on it
    judged: bool = False  # the pod's breaker knows how it went
    suspected: tuple[float, float] = (0.0, 0.0)  # until when the pod was before, and is, suspect: where it is disputed

    @property
    def promised(self) -> int:
        """Tokens that the pod was to have cached when the request came there."""
        return self.decision.matched_tokens if self.held_then is None else self.held_then


How = Literal["served", "refused", "disputed", "failed", "full", "cut", "void"]


@dataclass(slots=True, eq=False)
class End:
    """How an attempt ended.

    `served`: an answer of the pod went out whole, with `status`. `refused`: it can't take the request now, and may say
    when. `disputed`: `status` may be the client's fault or the pod's own. `failed`: nothing came from it. `full`: all
    of our connections to it are in use. `cut`: it broke off. `void`: it was ended by the client or by us, or says
    nothing of the pod otherwise.
    """

    how: How
    status: int | None = None
    retry_after_s: float | None = None
    usage: tuple[int, int | None] | None = None
    """Tokens of the prompt, and of those the cached ones, as the pod has them."""

    @property
    def is_done(self) -> bool:
        """The pod has done what it was asked for."""
        return self.how == "served" and self.status is not None and self.status < NOT_DONE


class BreakerChange(NamedTuple):
    """A breaker has opened, or closed."""

    pod: str
    open: bool
    reason: str
