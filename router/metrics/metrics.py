"""What is counted and measured of requests: plain numbers, which families are made of when somebody asks.

Labels are bounded: pods come from discovery, models are those that pods serve (others count as `unknown`). Counts of
those that have left end after a while.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping

from indexer.prefixes import PrefixStats
from router.config.settings import SeriesConfig
from router.core.decision import Core
from router.core.fair_queue import RESULTS
from router.core.fleet import Fleet
from router.metrics import caches, engines, events, generations, pods, requests, tokenizers
from router.metrics.families import OTHER, STEP, UNKNOWN_MODEL, Steps, Tells, text_of
from router.metrics.histograms import DECISION_SECONDS, ERROR_TOKENS, REQUEST_SECONDS, Histogram, Window
from router.server.long_answers import at_once, in_turns

STAGES = ("render", "tokenize", "keys", "lookup", "score")
CAUSES = (
    "first_seen", "changed", "evicted", "routed_away", "other_adapter", "other_salt", "tier", "block_edge",
    "feed_not_exact", "wrong_tokens", "pod_gone", "no_cache_read",
)  # fmt: skip
"""Why prompt tokens were not read from a cache."""
FAILURES = (
    "connect_failed", "connect_timeout", "pool_full", "response_timeout", "broken_response", "stale_connection",
    "status_404", "status_429", "status_500", "status_502", "status_503", "status_504",
)  # fmt: skip
"""Why attempts are given up, as far as it is known beforehand."""


class Departures:
    """Which names left the fleet so long ago that their series end."""

    def __init__(self, fleet: Fleet, kept_s: float) -> None:
        self._fleet = fleet
        self._kept_s = kept_s
        self._gone: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._gone)

    def is_over(self, name: str, now: float) -> bool:
        """Was this name seen for the first time as that of nobody so long ago?"""
        if name in ("", UNKNOWN_MODEL, OTHER) or name in self._fleet.pods or self._fleet.is_known(name):
            self._gone.pop(name, None)
            return False
        return now - self._gone.setdefault(name, now) > self._kept_s

    def forget(self, now: float) -> None:
        """No series speak of those any more that are over."""
        for name in [name for name, since in self._gone.items() if now - since > self._kept_s]:
            del self._gone[name]


class Metrics:
    """All series of one process; `scrape` makes the text of them."""

    def __init__(
        self,
        core: Core,
        store: Callable[[], PrefixStats],
        clock: Callable[[], float] = time.monotonic,
        questions: Mapping[str, int] | None = None,
        given: SeriesConfig | None = None,
    ) -> None:
        """`questions`: to the pods' /tokenize, by what came of them."""
        self.core = core
        self.store = store
        self.clock = clock
        self.began = clock()
        self.questions = questions or {}
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.durations = Histogram(REQUEST_SECONDS)
        self.first_bytes = Histogram(REQUEST_SECONDS)
        self.generations = generations.Generations()
        self.stages = {stage: Histogram(DECISION_SECONDS) for stage in STAGES}
        self.decisions = Histogram(DECISION_SECONDS)  # from a prompt to the pick, all stages together
        self.lookups = Histogram(DECISION_SECONDS)
        self.stores = Histogram(DECISION_SECONDS)  # of batches of events, some of them
        self.prefix_lookups: Counter[str] = Counter({"hit": 0, "partial": 0, "miss": 0})
        self.errors = Histogram(ERROR_TOKENS)
        self.window = Window()
        self.predicted_tokens = 0
        self.actual_tokens = 0
        self.reachable_tokens = 0
        self.captured_tokens = 0
        self.missed_tokens: Counter[str] = Counter(dict.fromkeys(CAUSES, 0))
        self.retries: Counter[str] = Counter(dict.fromkeys(FAILURES, 0))
        self.failures: Counter[str] = Counter()  # attempts given up, by pod
        self.retries_refused = 0  # by the budget
        self.admissions: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))  # how waiting for room ended
        self.queue_waits = Histogram(REQUEST_SECONDS)
        self.streams = 0  # that are open
        self.picks: Counter[str] = Counter()
        self.loop_lags = Histogram(REQUEST_SECONDS)
        given = given or SeriesConfig()
        self._series_max = given.series_max
        self._departures = Departures(core.fleet, given.departed_kept)
        self._joined: list[Tells] = []

    def join(self, part: Tells) -> None:
        """Have the series of another part in the scrape."""
        self._joined.append(part)

    def steps(self) -> Steps:
        """All families, as of now."""
        now = self.clock()
        yield from requests.of_requests(self)
        yield from self.generations.collect(self.core.fleet.base_models())
        yield from caches.of_caches(self, now)
        yield from tokenizers.of_tokenizers(self.core.fleet, self.questions)
        yield from pods.of_pods(self.core, self.failures, now)
        yield from engines.of_engines(self.core.fleet)
        yield from events.of_events(self.core.fleet, self.began, now)
        for part in self._joined:
            yield from part.collect()

    async def scrape(self) -> bytes:
        """The Prometheus text format; others have their turns meanwhile."""
        return await in_turns(text_of(self.steps()))

    def text(self) -> bytes:
        """The same at once."""
        return at_once(text_of(self.steps()))

    def count(self, model: str | None, pod: str, code: int) -> None:
        """One answer went out. `pod` is "" where none was asked."""
        key = (model or UNKNOWN_MODEL, pod, code)
        if key not in self.requests:
            if not self.core.fleet.is_known(key[0]):
                key = (UNKNOWN_MODEL, pod, code)
            if key not in self.requests and len(self.requests) >= self._series_max:
                key = (OTHER, "", code)
        self.requests[key] += 1

    def gave_up(self, pod: str, reason: str) -> None:
        """An attempt has failed before its first byte."""
        self.retries[reason] += 1
        self.failures[pod] += 1

    def end_departed(self, now: float) -> Generator[None, None, None]:
        """End the series of pods and models that left long ago."""
        for place, key in enumerate(list(self.requests)):
            if self._departures.is_over(key[0], now) or self._departures.is_over(key[1], now):
                del self.requests[key]
            if place % STEP == 0:
                yield
        for pod in list(self.failures):
            if self._departures.is_over(pod, now):
                del self.failures[pod]
        self.generations.end({model for model in self.generations.models if self._departures.is_over(model, now)})
        self._departures.forget(now)

    def understood(self, timing_us: Mapping[str, int]) -> None:
        """The tokens of a prompt became known; how long each stage took."""
        for stage, spent_us in timing_us.items():
            self.stages[stage].observe(spent_us * 1e-6)

    def looked_up(self, result: str, spent_s: float, keys_s: float) -> None:
        """A prompt that has keys was looked up; to make these had taken so long."""
        self.prefix_lookups[result] += 1
        self.stages["lookup"].observe(spent_s)
        self.lookups.observe(spent_s + keys_s)
