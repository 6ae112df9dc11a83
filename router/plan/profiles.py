"""What a pod's time is made of, for some usual models on usual accelerators. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PodProfile(NamedTuple):
    """One pod; times in seconds.

    A token of prefill takes `token_s`, and as much again when `position` tokens are before it. A step takes `step_s`,
    and `kv_s` for every token that running answers read, and `answer_s` for each of them. `front_s` pass before a
    request is in its pod's line.
    """

    token_s: float
    position: float
    step_s: float
    kv_s: float
    answer_s: float
    kv_tokens: int = 480_000
    step_tokens: int = 8192
    running_max: int = 256
    front_s: float = 0.0

    def prefill_s(self, start: float, end: float) -> float:
        """Seconds to compute the tokens from `start` to `end` of a prompt."""
        return self.token_s * (end - start) * (1.0 + (start + end) * 0.5 / self.position)

    def decode_s(self, answers: int, kv_read: float) -> float:
        """Seconds of a step beside its prefill."""
        return self.step_s + self.kv_s * kv_read + self.answer_s * answers


class PodPlan(NamedTuple):
    """All pods of a run. `kv_tokens`: of each one's cache; `slow_half`: by which factor the first half of them is
    slower; `factors`: of each pod, over again where there are more."""

    pods: int
    profile: PodProfile
    kv_tokens: int
    slow_half: float = 1.0
    factors: Sequence[float] = ()

    def slowness(self, number: int) -> float:
        """Of one pod."""
        if self.factors:
            return self.factors[number % len(self.factors)]
        return self.slow_half if 2 * number + 1 < self.pods else 1.0


POD_PROFILES = {
    "70b": PodProfile(1 / 9_000, 53_000.0, 0.0180, 34e-9, 0.00003),
    "32b": PodProfile(1 / 13_000, 30_500.0, 0.0130, 55e-9, 0.00003),
    "8b": PodProfile(1 / 28_000, 30_500.0, 0.0070, 57e-9, 0.00002),
}
