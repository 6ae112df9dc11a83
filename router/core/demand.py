"""What a request asks, as far as the decision needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from indexer.blocks import Grain, Keys
from indexer.mappings import Ending
from indexer.match import Hit, Match
from router.core.fleet import Rank, RankId
from router.core.token_states import Origin


@dataclass(slots=True)
class Asked:
    """One request, as far as the decision needs it. `keys` and `matches` are by grain, empty if not tokenized."""

    model: str | None
    tokens: int = 0  # of the prompt; an estimate if it could not be tokenized
    further: int = 0  # tokens of further prompts in the same request: load, nothing more
    keys: dict[Grain, Keys] = field(default_factory=dict)
    endings: dict[Grain, Ending] = field(default_factory=dict)  # where the prefix store keeps this prompt's mappings
    matches: dict[Grain, Match] = field(default_factory=dict)
    shared: Mapping[Grain, Mapping[RankId, Hit]] | None = None  # as other gateways know pods, where they do
    by_version: Mapping[str | None, Asked] | None = None  # the same to pods of versions that write it differently
    text: Keys | None = None  # of the text's blocks, where nothing is known of the tokens
    lookup: Literal["hit", "partial", "miss"] = "miss"
    reason: str | None = None  # why the prefix is not known
    broken: int = 0  # pods that broke off when they were asked for its tokens, maybe because of it
    origin: Origin | None = None  # where its tokens came from; None: the client gave them
    pods: frozenset[str] | None = None  # only these
    alone: bool = False  # the cached tokens that the pod will report are those of this one prompt
    full_report: bool = False  # the pod will tell again of the blocks that it reuses
    tells_cached: bool = True  # the response's usage tells cached tokens, if the pod does at all
    tells: bool = False  # the first byte of the answer will come with the first token
    reads_cache: bool = True  # if not, the pod computes all of it, whatever it holds
    answer: int | None = None  # tokens that a pod must have room for behind the prompt; None: its length is not known
    timing_us: dict[str, int] = field(default_factory=dict)

    def of(self, rank: Rank) -> Asked:
        """What is asked of this rank: its vLLM may make other tokens of the prompt."""
        return self if self.by_version is None else self.by_version.get(rank.pod.version, self)

    @property
    def most_tokens(self) -> int:
        """Of the versions that write the prompt differently."""
        if self.by_version is None:
            return self.tokens
        return max(self.tokens, *(each.tokens for each in self.by_version.values()))
