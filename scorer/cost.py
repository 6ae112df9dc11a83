"""What a prefill costs a pod, in seconds, learned from what it has shown.

    seconds = base + factor * n * (per_token + per_position * middle)

for `n` tokens of which the middle one has `middle` tokens before it: attention costs more the longer the context. The
base (what every request costs) and both slopes are one least-squares fit over the fleet (`FleetRate`); each pod has a
`factor` beside it (`PrefillRate`), which leans on 1 as long as little was seen of the pod, and again when nothing new
was seen of it for long: so no pod is believed slow for ever because nothing is sent to it.
"""

from __future__ import annotations

_FORGET = 0.995  # of the fleet's older samples: about the last 200 count
_DECAY = 0.95  # of a pod's own: about the last 20 count; and once for each round of samples of all pods
_TURN = 0.03  # of one sample in what is the mean of all pods
_LEAN_S = 0.25  # seconds of prefill, weighed against those that were seen of one pod
_LEAN_TOKENS = 2048.0  # a prefill of so many tokens, at the assumed speed, is what is "seen" at first,
_LEAN_COUNT = 0.05  # with the weight of so many
_LEAN_BASE, _LEAN_POSITION = 5.0, 0.05  # weights of 0 s for either: most of a prefill is for its tokens
_MIDDLE = 1024.0  # of prompts, before any was seen
_NOISE_S = 0.1  # a sample's error is this and a share of what it was predicted to take
_TOKENS_MIN = 64  # fewer say nothing of the speed, but what every request costs
_FACTOR_MAX = 8.0  # of the predicted time that one sample may claim: a stalled pod is no slow pod
_SLACK_S = 0.05  # and this much more: what is over at once may well take eight times as long
_PREFILL_SHARE_MIN = 0.25  # of a measured time: speeds assumed too fast route badly, too slow hardly matter
_COUNT_MAX = 8.0  # requests that a mean of several counts for, at most
_FITS_AT_ONCE, _FIT_EVERY = 50, 8  # samples: until so many each is fitted at once, then every eighth
_UNITS = (1.0, 1e3, 1e7)  # of the three unknowns: so that sums of squares are of one size
_SHAPES = ((1,), (0, 1), (1, 2), (0, 1, 2))  # which unknowns may be above 0: a token always costs something
_SHRINK = (0.05, 1e-6, 0.02)  # of each: where prompts are alike and can't tell, the tokens cost it all
_SINGULAR = 1e-15
_FLEET_VALUES, _POD_VALUES = 18, 5
_LEARNED_MAX = 1e15  # what is more was not learned
_SLOWEST = 1e4


class FleetRate:
    """What all pods have in common: `base_s`, `per_token` (s), `per_position` (s for each token before it)."""

    __slots__ = ("_squares", "_targets", "base_s", "factor", "middle", "per_position", "per_token", "pods", "samples")

    def __init__(self, tokens_per_s: float) -> None:
        """`tokens_per_s`: the speed to assume before anything was seen."""
        self.base_s = 0.0
        self.per_token = 1.0 / tokens_per_s
        self.per_position = 0.0
        self.middle = _MIDDLE  # of prompts, about
        self.factor = 1.0  # of the pods, as they were measured: else fit and factors could drift apart together
        self.samples = 0
        self.pods = 0
        seconds, tokens = _LEAN_TOKENS / tokens_per_s, _LEAN_TOKENS / _UNITS[1]
        weight = _LEAN_COUNT * (seconds + _NOISE_S) ** -2
        self._squares = [[_LEAN_BASE, 0.0, 0.0], [0.0, weight * tokens * tokens, 0.0], [0.0, 0.0, _LEAN_POSITION]]
        self._targets = [0.0, weight * tokens * seconds, 0.0]

    @property
    def learned(self) -> list[float]:
        """All that was learned, as numbers; for `relearn`."""
        found = [self.base_s, self.per_token, self.per_position, self.middle, self.factor, float(self.samples)]
        return [*found, *(value for row in self._squares for value in row), *self._targets]

    def relearn(self, values: list[float]) -> None:
        """Believe what was learned before, unless something was learned since."""
        if self.samples or len(values) != _FLEET_VALUES or not _are_learned(values) or not 0 < values[1] <= 1:
            return
        self.base_s, self.per_token, self.per_position, self.middle, self.factor = values[:5]
        self.samples = int(values[5])
        self._squares = [values[6:9], values[9:12], values[12:15]]
        self._targets = values[15:]

    def token_s(self, middle: float) -> float:
        """Seconds of one token with `middle` tokens before it."""
        return self.per_token + self.per_position * middle

    def learn(self, tokens: float, middle: float, seconds: float, factor: float, count: float) -> None:
        """A pod of this `factor` took `seconds`; `count`: of so many requests this is the mean."""
        forget = _FORGET**count
        share = max(_TURN, 1.0 / (1.0 + self.samples))
        self.factor += share * (factor - self.factor)
        self.middle += share * (middle - self.middle)
        predicted_s = self.base_s + factor * tokens * self.token_s(middle)
        weight = count * (predicted_s + _NOISE_S) ** -2
        if self.samples >= _FITS_AT_ONCE:  # before, factors are not known well enough
            seconds = max(0.0, (seconds - self.base_s) * self.factor / factor + self.base_s)
        self._add(weight, tokens / _UNITS[1], tokens * middle / _UNITS[2], seconds, forget)
        self.samples += 1
        if self.samples < _FITS_AT_ONCE or self.samples % _FIT_EVERY == 0:
            self._fit()

    def learn_base(self, seconds: float) -> None:
        """A request with next to nothing to compute took so long beside what it computed."""
        weight = (self.base_s + _NOISE_S) ** -2
        self._squares[0][0] += weight
        self._targets[0] += weight * max(0.0, seconds)

    def _add(self, weight: float, one: float, two: float, seconds: float, forget: float) -> None:
        """One more row (1, one, two) that sums up to `seconds`; written out, as most requests come by."""
        base, token, position = self._squares
        weight_one, weight_two = weight * one, weight * two
        base[0] = forget * base[0] + weight
        base[1] = token[0] = forget * base[1] + weight_one
        base[2] = position[0] = forget * base[2] + weight_two
        token[1] = forget * token[1] + weight_one * one
        token[2] = position[1] = forget * token[2] + weight_one * two
        position[2] = forget * position[2] + weight_two * two
        targets = self._targets
        targets[0] = forget * targets[0] + weight * seconds
        targets[1] = forget * targets[1] + weight_one * seconds
        targets[2] = forget * targets[2] + weight_two * seconds

    def _fit(self) -> None:
        """The best of the shapes in which nothing is negative."""
        least = float("inf")
        for shape in _SHAPES:
            found = _solve(self._squares, self._targets, shape)
            if found is None:
                continue
            error = sum(
                found[one] * (sum(found[other] * self._squares[one][other] for other in shape) - 2 * self._targets[one])
                for one in shape
            )
            if error < least:
                least = error
                self.base_s, self.per_token, self.per_position = (
                    value / unit for value, unit in zip(found, _UNITS, strict=True)
                )


class PrefillRate:
    """One pod's speed. Samples are of requests that found no backlog: what waits measures the queue."""

    __slots__ = ("_at", "_positions", "_taken_s", "_tokens", "factor", "fleet", "per_position", "per_token", "samples")

    def __init__(self, tokens_per_s: float, fleet: FleetRate | None = None) -> None:
        """`fleet`: shared by all pods; without one, the pod is a fleet of its own."""
        self.fleet = fleet or FleetRate(tokens_per_s)
        self.fleet.pods += 1
        self.samples = 0
        self.factor = 1.0  # as of this pod's last sample, or the last look
        self._taken_s = 0.0
        self._tokens = 0.0  # for which that was, and the sum of the places they stand at
        self._positions = 0.0
        self._at = 0  # samples of the fleet at that time
        self.per_token = self.fleet.per_token  # of this pod, as of the last `look`
        self.per_position = self.fleet.per_position

    @property
    def learned(self) -> list[float]:
        """What was seen of this pod alone, as numbers; for `relearn`."""
        return [self.slowness(), self._taken_s, self._tokens, self._positions, float(self.samples)]

    def relearn(self, values: list[float]) -> None:
        """Believe what was seen of the pod before, unless something was seen since."""
        if self.samples or len(values) != _POD_VALUES or not _are_learned(values) or not 0 < values[0] <= _SLOWEST:
            return
        self.factor, self._taken_s, self._tokens, self._positions = values[:4]
        self.samples, self._at = int(values[4]), self.fleet.samples

    @property
    def token_s(self) -> float:
        """Predicted seconds of prefill a token, in the middle of a usual prompt."""
        return self.slowness() * self.fleet.token_s(self.fleet.middle)

    @property
    def tokens_per_s(self) -> float:
        return 1.0 / self.token_s

    def slowness(self) -> float:
        """The factor as of now."""
        if self._at != self.fleet.samples:
            self._fade()
        return self.factor

    def look(self) -> None:
        """Have in `per_token` and `per_position` what is believed now."""
        fleet = self.fleet
        if self._at != fleet.samples:
            self._fade()
        self.per_token, self.per_position = self.factor * fleet.per_token, self.factor * fleet.per_position

    def cost_s(self, tokens: float, start: int = 0) -> float:
        """Predicted seconds of prefill of `tokens` uncached tokens behind `start` cached ones."""
        fleet = self.fleet
        if self._at != fleet.samples:
            self._fade()
        return tokens * self.factor * (fleet.per_token + fleet.per_position * (start + tokens / 2))

    def learn(self, tokens: float, seconds: float, start: float = 0.0, count: float = 1.0) -> None:
        """`tokens` uncached tokens behind `start` cached ones took `seconds`, on a pod without other prefill.

        Of several prompts together, `start` is what puts the middle of such a prompt where theirs is: maybe below 0.

        `count`: of so many requests these are the means.
        """
        if seconds <= 0.0 or tokens <= 0:
            return
        fleet, factor, count = self.fleet, self.slowness(), min(count, _COUNT_MAX)
        middle = start + tokens / 2
        alike_s = tokens * fleet.token_s(middle)  # on a pod of factor 1
        seconds = min(seconds, _FACTOR_MAX * (fleet.base_s + alike_s * factor) + _SLACK_S)
        if tokens < _TOKENS_MIN:
            fleet.learn_base(seconds - alike_s * factor)
            return
        taken_s = max(seconds - fleet.base_s, _PREFILL_SHARE_MIN * seconds)
        fleet.learn(tokens, middle, seconds, factor, count)
        decay = _DECAY**count
        self._taken_s = decay * self._taken_s + count * taken_s
        self._tokens = decay * self._tokens + count * tokens
        self._positions = decay * self._positions + count * tokens * middle
        self.samples += 1
        self._at = fleet.samples
        self._lean()

    def leave(self) -> None:
        """The pod is gone."""
        self.fleet.pods -= 1

    def _fade(self) -> None:
        """What was seen of this pod counts less with every round of samples of all."""
        fade: float = _DECAY ** ((self.fleet.samples - self._at) / self.fleet.pods)
        self._taken_s *= fade
        self._tokens *= fade
        self._positions *= fade
        self._at = self.fleet.samples
        self._lean()

    def _lean(self) -> None:
        """By what the fleet's fit says now: what was seen of the pod stays what it was when the fit moves on.

        What leans on 1 is the ratio's logarithm: a pod that is five times slower is known as such by a few prefills,
        though the fleet would have done them in a moment.
        """
        expected_s = self.fleet.per_token * self._tokens + self.fleet.per_position * self._positions
        taken_s = self._taken_s
        self.factor = (taken_s / expected_s) ** (taken_s / (taken_s + _LEAN_S)) if expected_s > 0.0 else 1.0


def _are_learned(values: list[float]) -> bool:
    return all(0 <= value <= _LEARNED_MAX for value in values)


def _solve(squares: list[list[float]], targets: list[float], shape: tuple[int, ...]) -> list[float] | None:
    """Values of the unknowns of `shape`, in their units, the others 0; None if one would not be above 0."""
    rows = [[squares[one][other] for other in shape] + [targets[one]] for one in shape]
    size = len(shape)
    for place, one in enumerate(shape):
        rows[place][place] *= 1.0 + _SHRINK[one]
    for place, pivot in enumerate(rows):  # in their order: sums of squares need no other
        if abs(pivot[place]) < _SINGULAR:
            return None
        for row in rows:
            if row is not pivot:
                share = row[place] / pivot[place]
                for column in range(place, size + 1):
                    row[column] -= share * pivot[column]
    values = [0.0, 0.0, 0.0]
    for place, one in enumerate(shape):
        values[one] = rows[place][size] / rows[place][place]
        if values[one] <= 0.0:
            return None
    return values
