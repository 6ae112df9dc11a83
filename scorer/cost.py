"""What a prefill costs a pod, in seconds, learned from the first bytes of its streams.

A measured time is `base + tokens * token_s`. What the fleet's pods have in common is learned from all of them
(`FleetRate`); a pod's own speed (`PrefillRate`) leans on the fleet's as long as little was seen of it, and again when
nothing new was seen of it for long: so no pod is believed slow for ever because nothing is sent to it.
"""

from __future__ import annotations

_DECAY = 0.9  # of a pod's older samples: about the last ten count
_FLEET_DECAY = 0.97  # of the fleet's: about the last thirty
_FADE = 0.95  # of what is known of one pod, for each sample of another
_LEAN_TOKENS = 2048  # of the fleet's speed, weighed against the tokens that a pod's own speed was seen on
_BASE_FALLS, _BASE_RISES = 0.2, 0.02  # of a residual: nothing is quicker than the base, much that is slower waited
_BASE_TOKENS = 256  # a prefill of so many tokens says half as much of the base as an empty one
_TOKENS_MIN = 64  # fewer say nothing of the speed
_FACTOR_MAX = 8.0  # of the predicted time that one sample may claim: a stalled pod is no slow pod
_PREFILL_SHARE_MIN = 0.25  # of a measured time: speeds assumed too fast route badly, too slow hardly matter


class FleetRate:
    """Seconds a token, and the seconds that every request costs whatever its length, over all pods."""

    __slots__ = ("_seconds", "_tokens", "base_s", "samples")

    def __init__(self, tokens_per_s: float) -> None:
        """`tokens_per_s`: the speed to assume before anything was seen."""
        self.base_s = 0.0
        self.samples = 0
        self._tokens = float(_LEAN_TOKENS)
        self._seconds = _LEAN_TOKENS / tokens_per_s

    @property
    def token_s(self) -> float:
        return self._seconds / self._tokens

    def learn(self, tokens: int, seconds: float) -> float:
        """One request of `tokens` took `seconds`, of which this much was prefill (0: too short to tell)."""
        residual = seconds - tokens * self.token_s
        weight = (_BASE_FALLS if residual < self.base_s else _BASE_RISES) * _BASE_TOKENS / (_BASE_TOKENS + tokens)
        self.base_s = max(0.0, self.base_s + weight * (residual - self.base_s))
        if tokens < _TOKENS_MIN:
            return 0.0
        prefill = max(seconds - self.base_s, _PREFILL_SHARE_MIN * seconds)
        self.samples += 1
        self._tokens = _FLEET_DECAY * self._tokens + tokens
        self._seconds = _FLEET_DECAY * self._seconds + prefill
        return prefill


class PrefillRate:
    """One pod's seconds a token. Samples are of requests that found no other prefill: what waits measures the queue."""

    __slots__ = ("_at", "_seconds", "_tokens", "_value", "fleet", "samples")

    def __init__(self, tokens_per_s: float, fleet: FleetRate | None = None) -> None:
        """`fleet`: shared by all pods; without one, the pod is a fleet of its own."""
        self.fleet = fleet or FleetRate(tokens_per_s)
        self.samples = 0
        self._tokens = 0.0
        self._seconds = 0.0
        self._at = -1  # samples of the fleet when `_value` was made
        self._value = 0.0

    @property
    def token_s(self) -> float:
        """Predicted seconds of prefill a token."""
        if self._at != self.fleet.samples:
            self._fade()
            self._value = (self._seconds + _LEAN_TOKENS * self.fleet.token_s) / (self._tokens + _LEAN_TOKENS)
        return self._value

    @property
    def tokens_per_s(self) -> float:
        return 1.0 / self.token_s

    def cost_s(self, tokens: int) -> float:
        """Predicted seconds of prefill of `tokens` uncached tokens."""
        return tokens * self.token_s

    def learn(self, tokens: int, seconds: float) -> None:
        """`tokens` uncached tokens took `seconds` to the first byte, on a pod without other prefill."""
        if seconds <= 0.0 or tokens <= 0:
            return
        seconds = min(seconds, _FACTOR_MAX * (self.fleet.base_s + self.cost_s(tokens)))
        self._fade()
        prefill = self.fleet.learn(tokens, seconds)
        if not prefill:
            return
        self.samples += 1
        self._tokens = _DECAY * self._tokens + tokens
        self._seconds = _DECAY * self._seconds + prefill

    def _fade(self) -> None:
        """What was seen of this pod counts less with every sample of another."""
        if self._at >= 0:
            fade = _FADE ** (self.fleet.samples - self._at)
            self._tokens *= fade
            self._seconds *= fade
        self._at = self.fleet.samples
