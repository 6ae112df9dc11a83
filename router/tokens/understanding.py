"""What a body means: gathered piece by piece, then a `Demand` that nobody changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from indexer.blocks import Grain, Keys
from indexer.mappings import Ending
from router.core.demand import Apart, Demand
from router.core.fleet import Fleet
from router.core.token_states import Origin, Shape, Witness
from router.prompts.prompt import Prompt, parse
from router.prompts.rendering import RenderError
from router.tokens.given import Encoded, LookupResult
from router.tokens.questions import NotTold

BYTES_A_TOKEN = 4
"""About so many, of text that is not tokenized: only its load counts."""

_KWARGS = ("chat_template_kwargs", "chat_template", "documents", "reasoning_effort", "add_generation_prompt")


def read_again(witness: Witness, fleet: Fleet) -> Prompt:
    """What a body said that was kept."""
    return with_model(parse(*witness), fleet)


def with_model(prompt: Prompt, fleet: Fleet) -> Prompt:
    """The same prompt; of a body that names no model, with the one that pods take it for."""
    return prompt if prompt.model is not None or fleet.unnamed is None else replace(prompt, model=fleet.unnamed)


class Understood(NamedTuple):
    """One body's meaning, of which nothing is as long as the body was.

    `known`: how many of its tokens were before; `timing_us`: of what was done, by stage.
    """

    demand: Demand
    streams: bool = False
    """The answer is to be a stream."""
    priority: int | None = None
    large: bool = False
    """See `Prompt`: it is read in a thread."""
    known: LookupResult = "partial"
    timing_us: Mapping[str, int] = {}
    broken: int = 0
    """Pods that broke off when they were asked for its tokens, maybe because of it."""

    @property
    def lasts(self) -> bool:
        """Does it hang on nothing but the body and the fleet? Or else on the time that there was, or what pods said."""
        demand = self.demand
        if demand.text is not None:
            return demand.origin is None and not self.large
        return all(each.endings and not each.reason for each in demand.versions)

    def again(self) -> Understood:
        """What the same body means when it comes again."""
        return self._replace(known="partial", timing_us={}, broken=0)


@dataclass(slots=True, eq=False)
class Gathered:
    """What is known of a prompt so far, by one version of vLLM."""

    tokens: int = 0
    further: int = 0
    keys: dict[Grain, Keys] = field(default_factory=dict)
    endings: dict[Grain, Ending] = field(default_factory=dict)
    by_version: Mapping[str | None, Demand] | None = None
    text: Keys | None = None
    reason: str | None = None
    origin: Origin | None = None
    known: LookupResult = "miss"
    broken: int = 0
    timing_us: dict[str, int] = field(default_factory=dict)
    apart: Apart | None = None

    def add(self, encoded: Encoded, grain: Grain) -> None:
        """The tokens, and the keys of one grain."""
        self.tokens, self.known = encoded.count, encoded.lookup
        self.timing_us["tokenize"] = round(encoded.tokenize_us)
        self.timing_us["keys"] = round(encoded.keys_us)
        self.endings[grain] = encoded.ending
        self.keys[grain] = encoded.ending.keys

    def is_of(self, other: Gathered) -> bool:
        """Are these the same tokens, of the same source?"""
        if self.reason != other.reason or self.origin is not other.origin or self.keys.keys() != other.keys.keys():
            return False
        return self.tokens == other.tokens and all(np.array_equal(keys, other.keys[g]) for g, keys in self.keys.items())

    def demand(self, prompt: Prompt) -> Demand:
        """All of it, with what the body says beside its prompt."""
        return Demand(
            prompt.model,
            self.tokens,
            self.further,
            self.keys,
            self.endings,
            self.by_version,
            self.text,
            self.reason,
            self.origin,
            prompt.pods,
            self.reason is None and prompt.is_alone,
            prompt.asks_full_report,
            prompt.tells_cached,
            prompt.tells_prefill,
            prompt.reads_cache,
            room_tokens(prompt, self.tokens) if self.reason is None else None,
            prompt.session,
            self.apart,
        )

    def meaning(self, prompt: Prompt) -> Understood:
        """The same, with what others than the decision want to know."""
        told = (self.known, self.timing_us, self.broken)
        return Understood(self.demand(prompt), prompt.stream, prompt.priority, bool(prompt.large), *told)


def in_versions(by_version: Mapping[str | None, Gathered], prompt: Prompt) -> Gathered:
    """What is known of a prompt by each of the versions of vLLM in use, of which there is at least one, as one.

    It is about the first of which the tokens are known; `by_version` has those that make others.
    """
    first = next((one for one in by_version.values() if one.keys), next(iter(by_version.values())))
    first.broken = sum(one.broken for one in {id(one): one for one in by_version.values()}.values())
    made: dict[int, Demand] = {}
    others: dict[str | None, Demand] = {}
    for version, one in by_version.items():
        if one is first or first.is_of(one):
            continue
        if id(one) not in made:
            one.tokens = one.tokens or first.tokens  # not known: about as many
            made[id(one)] = one.demand(prompt)
        others[version] = made[id(one)]
    first.by_version = others or None
    return first


def unknown(prompt: Prompt, reason: str | None, tokens: int = 0) -> Understood:
    """The meaning of a body of which no tokens are wanted; `tokens`: about as much work it is."""
    return Gathered(tokens, reason=reason).meaning(prompt)


def shape_of(prompt: Prompt) -> Shape:
    """The shape of a prompt of kind chat or text."""
    if prompt.kind != "chat":
        return "completion"
    fields = prompt.fields
    if not prompt.tells_cached:
        return "messages"
    if fields.get("continue_final_message"):
        return "continue"
    if any(fields.get(name) is not None for name in _KWARGS):
        return "kwargs"
    system = tools = reasoning = False
    for message in fields["messages"]:
        if type(message.get("content")) is list:
            return "parts"
        role = message["role"]
        tools = tools or role == "tool" or bool(message.get("tool_calls"))
        reasoning = reasoning or "reasoning" in message or "reasoning_content" in message
        system = system or role in ("system", "developer")
    if tools:
        return "tool history"
    if fields.get("tools"):
        return "tools"
    if reasoning:
        return "reasoning"
    return "system" if system else "plain"


def further_tokens(prompt: Prompt) -> int:
    """About how many tokens the prompts after the first have."""
    return sum(map(_about, prompt.prompts[1:]))


def room_tokens(prompt: Prompt, first: int) -> int | None:
    """Tokens that a pod must have room for behind the `first` prompt's, for this one and for the longest; None: no
    matter."""
    answer = prompt.answer_tokens
    if answer is None or len(prompt.prompts) < 2:
        return answer
    return answer + max(0, max(map(_about, prompt.prompts)) - first)


def _about(prompt: Collection[Any]) -> int:
    """Tokens of one that may not be tokenized yet: a text, or ids."""
    return len(prompt) // BYTES_A_TOKEN if isinstance(prompt, str) else len(prompt)


def why_unknown(error: RenderError | NotTold) -> str:
    """Why a prompt's tokens are not known, as a reason says it."""
    return f"not {'rendered' if isinstance(error, RenderError) else 'tokenized'}: {error.reason}"
