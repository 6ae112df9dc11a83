"""What a prefill costs a pod, in seconds, learned from the first bytes of its streams."""

from __future__ import annotations

_WEIGHT = 0.15  # of a new sample: about the last dozen count
_WEIGHT_EARLY = 0.5  # of the first few samples: the configured speed is only a guess
_EARLY = 4
_WEIGHT_SLOWER_BASE = 0.02  # most of what is slower than the known base is waiting, not base
_TOKENS_MIN = 64  # fewer uncached tokens say more of the pod's step time than of its speed
_SHARE_QUIET = 0.25  # of the measured time that may have been backlog


class PrefillRate:
    """Seconds a token, and the seconds that every request costs whatever its length.

    Only requests that found the pod nearly idle teach: what waited measures the queue, not the speed. Speeds assumed
    too fast route badly, too slow hardly matter, so at least half of a measured time counts as prefill.
    """

    __slots__ = ("base_s", "samples", "token_s")

    def __init__(self, tokens_per_s: float) -> None:
        self.token_s = 1.0 / tokens_per_s
        self.base_s = 0.0
        self.samples = 0

    @property
    def tokens_per_s(self) -> float:
        return 1.0 / self.token_s

    def cost_s(self, tokens: int) -> float:
        """Predicted seconds of prefill of `tokens` uncached tokens."""
        return tokens * self.token_s

    def learn(self, tokens: int, seconds: float, backlog_s: float) -> None:
        """`tokens` uncached tokens took `seconds` to the first byte, behind a backlog of `backlog_s`."""
        if backlog_s > _SHARE_QUIET * seconds or seconds <= 0.0:
            return
        if tokens < _TOKENS_MIN:
            self._learn_base(seconds)
            return
        sample = max(seconds - backlog_s - self.base_s, seconds / 2) / tokens
        self.samples += 1
        weight = _WEIGHT_EARLY if self.samples <= _EARLY else _WEIGHT
        self.token_s += weight * (sample - self.token_s)

    def _learn_base(self, seconds: float) -> None:
        faster = not self.base_s or seconds < self.base_s
        weight = _WEIGHT_EARLY if faster else _WEIGHT_SLOWER_BASE
        self.base_s += weight * (seconds - self.base_s)
