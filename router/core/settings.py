"""What the decision is set to. Pure: who puts the gateway together fills it in."""

from __future__ import annotations

from dataclasses import dataclass

from indexer.prefixes import PrefixLimits
from router.core.breaker import BreakerLimits
from scorer.hold import HoldLimits, PodBounds
from scorer.policies import Settings
from scorer.sessions import SessionLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What may be on its way at most; None: any number. `pods`: at each, or each rank, where a pod has several."""

    requests: int
    prefill_tokens: int | None
    pods: PodBounds

    @property
    def by_load(self) -> bool:
        """By more than the number of requests."""
        return self.prefill_tokens is not None or self.pods != PodBounds()


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """How much is remembered of what pods hold, and how long it is believed where no event tells; times in seconds."""

    blocks_max: int
    pods_max: int
    orphans_max: int
    text_blocks_max: int
    predicted_ttl_s: float  # from the decision on
    predicted_grace_s: float  # from the response's end on
    blind_ttl_s: float  # of what no event will ever tell
    prefixes: PrefixLimits
    maps: bool  # matches are kept with the prompts that they were made for


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """All of it; times in seconds."""

    index: IndexSettings
    tier_weights: tuple[float, float, float]  # what a block is worth: gpu, cpu, disk
    bounds: Bounds
    queue_max: int
    flow_queue_max: int
    hold: HoldLimits
    piece_tokens: int  # long cold prompts go in pieces of so many; 0: never
    breaker: BreakerLimits
    panic_share: float
    suspect_s: float  # a pod that could not be reached comes last for so long
    retry_after_max_s: float
    retry_share: float
    retry_floor: int
    scoring: Settings
    shadow: Settings | None  # another policy, whose picks are counted
    adapter_load_s: float  # to load a LoRA adapter that a pod has not loaded
    slow_start_s: float
    slow_start_factor: float
    decisions_kept: int
    sessions: SessionLimits
    losses_max: int  # blocks that pods gave up and nobody has looked at; 0: nobody will
    chain_keys_max: int  # of prompts that may be continued
