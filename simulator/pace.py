"""How long a step takes on the simulated accelerator."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.scheduler import Work


@dataclass(frozen=True, slots=True)
class Pace:
    """Speeds of one pod; `time_scale` 0.1 makes everything ten times faster."""

    prefill_tokens_per_s: float = 8_000.0
    attention_tokens: float = 0.0
    """Context at which a token costs twice what it costs at position 0; 0: cost does not grow with context."""
    step_base_s: float = 0.008
    step_sequence_s: float = 0.0002
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.prefill_tokens_per_s <= 0:
            raise ValueError("prefill speed must be above 0 tokens/s")
        if min(self.attention_tokens, self.step_base_s, self.step_sequence_s, self.time_scale) < 0:
            raise ValueError("times and scales must not be negative")

    def step_s(self, work: Work) -> float:
        """Seconds of one step: a base, a part per sequence, and the uncached tokens of prompts."""
        prefill = sum(self._prefill_s(first, count) for first, count in work.prefill)
        return self.time_scale * (self.step_base_s + self.step_sequence_s * work.sequences + prefill)

    def _prefill_s(self, first: int, count: int) -> float:
        seconds = count / self.prefill_tokens_per_s
        if self.attention_tokens:
            seconds *= 1 + (first + count / 2) / self.attention_tokens
        return seconds
