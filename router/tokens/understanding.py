"""What a body means: gathered piece by piece, then a `Demand` that nobody changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from indexer.blocks import Grain, Keys
from indexer.mappings import Ending
from router.core.demand import Demand
from router.core.token_states import Origin, Shape
from router.prompts.prompt import Prompt
from router.tokens.given import Encoded, LookupResult

_KWARGS = ("chat_template_kwargs", "chat_template", "documents", "reasoning_effort", "add_generation_prompt")


class Understood(NamedTuple):
    """One body's meaning. `known`: how many of its tokens were before; `timing_us`: of what was done, by stage."""

    prompt: Prompt
    demand: Demand
    known: LookupResult = "partial"
    timing_us: Mapping[str, int] = {}
    broken: int = 0
    """Pods that broke off when they were asked for its tokens, maybe because of it."""


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

    def add(self, encoded: Encoded, grain: Grain) -> None:
        """The tokens, and the keys of one grain."""
        self.tokens, self.known = encoded.count, encoded.lookup
        self.timing_us["tokenize"] = round(encoded.tokenize_us)
        self.timing_us["keys"] = round(encoded.keys_us)
        self.endings[grain] = encoded.ending
        self.keys[grain] = encoded.ending.keys

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
            prompt.answer_tokens if self.reason is None else None,
        )


def unknown(prompt: Prompt, reason: str | None, tokens: int = 0) -> Understood:
    """The meaning of a body of which no tokens are wanted; `tokens`: about as much work it is."""
    return Understood(prompt.understood(), Gathered(tokens, reason=reason).demand(prompt))


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
