"""What Prometheus sees. The hot path adds to plain numbers; families are made of them when they are scraped.

Labels are bounded: pods come from discovery, models are those that pods serve (others count as `unknown`). Counts of
those that have left end after a while. A scrape is made in steps: with 512 pods all of it takes 100 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from indexer.prefixes import PrefixStats
from router.config.settings import SeriesConfig
from router.core.breaker import STATES
from router.core.decision import Core
from router.core.fair_queue import RESULTS
from router.core.fleet import Fleet
from router.core.token_states import SOURCES
from router.server.long_answers import at_once, in_turns

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_DECISION_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 2.0)
_ERROR_TOKENS = (0, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
STAGES = ("render", "tokenize", "keys", "lookup", "score")
_STATES = ("exact", "degraded", "blind")
_TOKENIZER_STATES = ("unverified", "exact", "degraded", "pod")  # pod: it is not done here
_WINDOW_S = 60  # of the hit ratio
_STEP = 256  # samples that are made, or looked at, in one step: well under 1 ms
_UNKNOWN = "unknown"  # any model that no pod serves
OTHER = "other"  # any model for which there are no more series

Steps = Iterator[Metric | None]
"""Families, and None where others may have their turn."""


class Histogram:
    """Counts by bucket, and a sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, and the sum, as Prometheus wants them."""
        total, buckets = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum


class Window:
    """Cached and asked-for prompt tokens of the last minute, by whole seconds: constant work, constant room."""

    def __init__(self) -> None:
        self._slots = [(-1, 0, 0)] * _WINDOW_S

    def add(self, now: float, cached: int, tokens: int) -> None:
        second = int(now)
        at, had_cached, had_tokens = self._slots[second % _WINDOW_S]
        if at != second:
            had_cached = had_tokens = 0
        self._slots[second % _WINDOW_S] = (second, had_cached + cached, had_tokens + tokens)

    def totals(self, now: float) -> tuple[int, int]:
        """Tokens: cached, and asked for."""
        since = int(now) - _WINDOW_S
        live = [slot for slot in self._slots if slot[0] > since]
        return sum(slot[1] for slot in live), sum(slot[2] for slot in live)

    def ratio(self, now: float) -> float:
        """Share of prompt tokens that were cached; 0 without any."""
        cached, tokens = self.totals(now)
        return cached / tokens if tokens else 0.0


class Departures:
    """Names of pods and models that series speak of: which left the fleet so long ago that their series end."""

    def __init__(self, fleet: Fleet, kept_s: float) -> None:
        self._fleet = fleet
        self._kept_s = kept_s
        self._gone: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._gone)

    def is_over(self, name: str, now: float) -> bool:
        """Was this name seen for the first time as that of nobody so long ago?"""
        if name in ("", _UNKNOWN, OTHER) or name in self._fleet.pods or self._fleet.is_known(name):
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
        self._questions = questions or {}
        self._core = core
        self._store = store
        self.prefix_lookups: Counter[str] = Counter({"hit": 0, "partial": 0, "miss": 0})
        self._clock = clock
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.durations = Histogram(_SECONDS)
        self.first_bytes = Histogram(_SECONDS)
        self.stages = {stage: Histogram(_DECISION_SECONDS) for stage in STAGES}
        self.lookups = Histogram(_DECISION_SECONDS)
        self.errors = Histogram(_ERROR_TOKENS)
        self.window = Window()
        self.predicted_tokens = 0
        self.actual_tokens = 0
        self.retries: Counter[str] = Counter()
        self.retries_refused = 0  # by the budget
        self.admissions: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))  # how waiting for room ended
        self.picks: Counter[str] = Counter()
        given = given or SeriesConfig()
        self._series_max = given.series_max
        self._departures = Departures(core.fleet, given.departed_kept)
        self._joined: list[Collector] = []

    def join(self, collector: Collector) -> None:
        """Have the series of another part in the scrape."""
        self._joined.append(collector)

    def steps(self) -> Steps:
        """All families, as of now."""
        yield from self._of_requests()
        yield from self._of_caches()
        yield from self._of_tokenizers()
        yield from self._of_pods()
        yield from self._of_events()
        for collector in self._joined:
            yield from collector.collect()

    async def scrape(self) -> bytes:
        """The Prometheus text format; others have their turns meanwhile."""
        return await in_turns(text_of(self.steps()))

    def text(self) -> bytes:
        """The same at once."""
        return at_once(text_of(self.steps()))

    def count(self, model: str | None, pod: str, code: int) -> None:
        """One answer went out. `pod` is "" where none was asked."""
        key = (model if model is not None and self._core.fleet.is_known(model) else _UNKNOWN, pod, code)
        if key not in self.requests and len(self.requests) >= self._series_max:
            key = (OTHER, "", code)
        self.requests[key] += 1

    def end_departed(self, now: float) -> Generator[None, None, None]:
        """End the series of pods and models that left long ago."""
        for place, key in enumerate(list(self.requests)):
            if self._departures.is_over(key[0], now) or self._departures.is_over(key[1], now):
                del self.requests[key]
            if place % _STEP == 0:
                yield
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

    def _of_requests(self) -> Steps:
        labelled = [((model, pod, str(code)), n) for (model, pod, code), n in list(self.requests.items())]
        yield None
        yield from _counter("requests", "Answers sent.", ("model", "pod", "code"), labelled)
        yield _histogram("request_duration_seconds", "From a request's body to its answer's end.", self.durations)
        yield _histogram("time_to_first_byte_seconds", "From a request's body to its answer's head.", self.first_bytes)
        stages = HistogramMetricFamily("warmroute_decision_seconds", "Stages of a decision.", labels=("stage",))
        for stage, histogram in self.stages.items():
            stages.add_metric((stage,), *histogram.buckets())
        yield stages
        yield from _counter("retries", "Attempts given up before the first byte.", ("reason",), _by_one(self.retries))
        budget, queue = self._core.budget, self._core.queue
        yield from _counter(
            "retries_refused", "Retries that the budget did not allow.", (), [((), self.retries_refused)]
        )
        yield _gauge("retry_budget", "Retries that the budget has left.", budget.left)
        yield from _counter("admissions", "Requests that waited for room.", ("result",), _by_one(self.admissions))
        yield _gauge("admission_waiting", "Requests that wait for room.", queue.waiting)
        yield _gauge("admission_held", "Requests that wait for the pod that is best.", self._core.hold.waiting)
        with contextlib.suppress(RuntimeError):  # there is no loop
            yield _gauge("tasks", "Tasks of the event loop.", len(asyncio.all_tasks()))
        yield from _counter("picks", "Decisions.", ("reason",), _by_one(self.picks))
        shadow = self._core.shadow
        if shadow is not None:
            counts = {"same": shadow.same, "other": shadow.picks - shadow.same}
            values = [((shadow.name, result), count) for result, count in counts.items()]
            text = "Decisions of another policy that only looks on, by whether it would have picked the same."
            yield from _counter("shadow_picks", text, ("policy", "result"), values)

    def _of_caches(self) -> Steps:
        ratio, stats, index = self.window.ratio(self._clock()), self._store(), self._core.index
        yield _gauge("cache_hit_ratio", "Share of prompt tokens that pods had cached, last minute.", ratio)
        yield _gauge("cache_miss_ratio", "Share of prompt tokens that pods computed, last minute.", 1 - ratio)
        yield from _counter("predicted_cached_tokens", "Predicted at decisions.", (), [((), self.predicted_tokens)])
        yield from _counter("actual_cached_tokens", "As pods reported.", (), [((), self.actual_tokens)])
        yield _histogram("prediction_error_tokens", "Predicted against reported cached tokens.", self.errors)
        yield _histogram("cache_lookup_latency_seconds", "Prefix store and index, for one prompt.", self.lookups)
        yield from _counter("prefix_store_lookups", "Lookups of prompts.", ("result",), _by_one(self.prefix_lookups))
        yield _gauge("prefix_store_entries", "Text blocks kept.", stats.blocks)
        yield _gauge("prefix_store_bytes", "Bytes of text blocks and mappings.", stats.nbytes)
        yield from _counter("prefix_store_failures", "Faults of the store, done without.", (), [((), stats.failures)])
        evictions = [(("text", reason), n) for reason, n in stats.evictions.items()]
        yield from _counter("cache_evictions", "Entries given up.", ("cache", "reason"), evictions)
        yield from _counter(
            "pod_mapping_invalidations", "Mappings given up.", ("reason",), _by_one(Counter(stats.invalidations))
        )
        yield _gauge("global_index_size", "Blocks that the index has room taken for.", index.blocks)
        yield from _counter("index_refusals", "Blocks for which the index had no room.", (), [((), index.refusals)])
        shared = [(("share",), index.evictions)]
        yield from _counter("index_evictions", "Blocks given up for other pods' sake.", ("reason",), shared)
        yield _gauge("index_bytes", "Bytes of the index.", index.nbytes)

    def _of_tokenizers(self) -> Steps:
        states = GaugeMetricFamily("warmroute_tokenizer_state", "1 for the state it is in.", labels=("model", "state"))
        sources = GaugeMetricFamily(
            "warmroute_token_source", "1 for whose tokens prompts are routed by.", labels=("model", "source")
        )
        judged: Counter[tuple[str, str, str]] = Counter()
        compared: Counter[tuple[str, str]] = Counter()
        for model in self._core.fleet.base_models():
            yield None
            known = self._core.fleet.tokenizers.get(model)
            for state in _TOKENIZER_STATES:
                states.add_metric((model, state), float(state == (known.state if known is not None else "pod")))
            ladder = self._core.fleet.ladders.get(model)
            if ladder is not None:
                for source in SOURCES:
                    sources.add_metric((model, source), float(source == ladder.current))
                for each in ladder.states:
                    judged[(model, each.source, "confirmed")] = each.confirmed
                    judged[(model, each.source, "contradicted")] = each.contradicted
            if known is not None:
                compared[(model, "different")] = known.different
                compared[(model, "equal")] = known.compared - known.different
        yield states
        yield sources
        text = "Requests by what events and counts said of their tokens."
        yield from _counter("token_proofs", text, ("model", "source", "result"), judged.items())
        yield from _counter(
            "tokenizer_comparisons", "Of our token ids with pods'.", ("model", "result"), compared.items()
        )
        yield from _counter(
            "tokenizer_questions", "To the pods' /tokenize.", ("result",), _by_one(Counter(self._questions))
        )

    def _of_pods(self) -> Steps:
        blocks = GaugeMetricFamily("warmroute_pod_blocks", "Blocks a pod is known to hold.", labels=("pod", "tier"))
        states = GaugeMetricFamily("warmroute_pod_state", "1 for the state it is in.", labels=("pod", "state"))
        requests = GaugeMetricFamily("warmroute_pod_inflight_requests", "Requests on the way.", labels=("pod",))
        tokens = GaugeMetricFamily("warmroute_pod_inflight_prefill_tokens", "Prefill promised.", labels=("pod",))
        backlogs = GaugeMetricFamily("warmroute_pod_backlog_seconds", "Prefill that waits there.", labels=("pod",))
        speeds = GaugeMetricFamily(
            "warmroute_pod_prefill_tokens_per_second", "As learned, in the middle of a usual prompt.", labels=("pod",)
        )
        breakers = GaugeMetricFamily("warmroute_breaker_state", "0 closed, 1 half-open, 2 open.", labels=("pod",))
        now = self._clock()
        for pod in list(self._core.fleet.pods.values()):
            yield None
            held = [self._core.index.holding(rank.id) for rank in pod.ranks]
            for tier in ("gpu", "cpu", "disk", "predicted"):
                blocks.add_metric((pod.name, tier), sum(getattr(h, tier) for h in held))
            worst = max((rank.state for rank in pod.ranks), key=_STATES.index)
            for state in _STATES:
                states.add_metric((pod.name, state), float(state == worst))
            requests.add_metric((pod.name,), sum(rank.load.own_requests for rank in pod.ranks))
            tokens.add_metric((pod.name,), sum(rank.load.own_prefill_tokens for rank in pod.ranks))
            backlogs.add_metric((pod.name,), max(rank.load.backlog_s(now) for rank in pod.ranks))
            speeds.add_metric((pod.name,), min(rank.load.rate.tokens_per_s for rank in pod.ranks))
            breakers.add_metric((pod.name,), STATES.index(pod.breaker.state(now)))
        yield from (blocks, states, requests, tokens, backlogs, speeds, breakers)

    def _of_rules(self) -> Steps:
        text = "By which rule a pod reuses what it holds: 1 if that is proven and believed."
        rules = GaugeMetricFamily("warmroute_hit_rule", text, labels=("pod", "rule"))
        for pod in list(self._core.fleet.pods.values()):
            yield None
            sure: dict[str, bool] = {}
            for trust in [rank.trust for rank in pod.ranks]:
                rule = str(trust.calibration.rule)
                sure[rule] = sure.get(rule, True) and trust.rule is not None and trust.calibration.proven
            for rule, proven in sure.items():
                rules.add_metric((pod.name, rule), float(proven))
        yield rules

    def _of_events(self) -> Steps:
        events, gaps, replays, orphans, errors = Counter(), Counter(), Counter(), Counter(), Counter()  # type: ignore[var-annotated]
        predictions, resyncs, drops, missed = Counter(), Counter(), Counter(), Counter()  # type: ignore[var-annotated]
        lag = GaugeMetricFamily("warmroute_event_lag_seconds", "Age of the newest batch when it came.", labels=("pod",))
        for pod in list(self._core.fleet.pods.values()):
            yield None
            feeds = [rank.feed for rank in pod.ranks if rank.feed is not None]
            for feed in feeds:
                counts = feed.counts
                events[(pod.name, "stored")] += counts.stored
                events[(pod.name, "removed")] += counts.removed
                events[(pod.name, "cleared")] += counts.cleared
                events[(pod.name, "ignored")] += counts.ignored
                events[(pod.name, "unknown")] += counts.unknown_events
                gaps[pod.name] += counts.gap
                missed[pod.name] += counts.missed
                replays[(pod.name, "complete")] += counts.replay_complete
                replays[(pod.name, "failed")] += counts.replay_failed
                orphans[pod.name] += counts.orphans
                predictions[(pod.name, "equal")] += counts.predictions_equal
                predictions[(pod.name, "over")] += counts.predictions_over
                predictions[(pod.name, "under")] += counts.predictions_under
                resyncs[pod.name] += counts.resyncs
                drops[pod.name] += feed.dropped
                errors[pod.name] += counts.decode_errors
            if feeds:
                lag.add_metric((pod.name,), max(feed.lag_s for feed in feeds))
        yield lag
        yield from self._of_rules()
        yield from _counter("events", "Blocks, by what events said.", ("pod", "type"), events.items())
        yield from _counter("event_gaps", "Gaps in feeds.", ("pod",), _by_one(gaps))
        yield from _counter("event_missed", "Batches that were missing at gaps.", ("pod",), _by_one(missed))
        yield from _counter("event_replays", "Replays asked for.", ("pod", "result"), replays.items())
        yield from _counter("event_orphans", "Blocks that came without their parent.", ("pod",), _by_one(orphans))
        yield from _counter("event_drops", "Batches that came and could not wait.", ("pod",), _by_one(drops))
        yield from _counter("event_resyncs", "Histories asked for again.", ("pod",), _by_one(resyncs))
        text = "Predictions against the pod's own reports; over: stale blocks, under: unknown ones."
        yield from _counter("predictions", text, ("pod", "result"), predictions.items())
        yield from _counter("event_decode_errors", "Frames and events not understood.", ("pod",), _by_one(errors))


def text_of(families: Iterable[Metric | None]) -> Generator[None, None, bytes]:
    """The Prometheus text format, some samples at a time."""
    parts = []
    for family in families:
        if family is None:
            yield
            continue
        for start in range(0, len(family.samples) or 1, _STEP):
            piece = copy.copy(family)
            piece.samples = family.samples[start : start + _STEP]
            text = generate_latest(_Told(piece))
            parts.append(text if start == 0 else text.split(b"\n", 2)[2])  # help and type stand there once
            yield
    return b"".join(parts)


class _Told(Collector):
    """One family that is there already."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def _by_one(counter: Counter[str]) -> Iterable[tuple[tuple[str, ...], float]]:
    return (((name,), float(count)) for name, count in counter.items())


def _counter(name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> Steps:
    family = CounterMetricFamily(f"warmroute_{name}", text, labels=labels)
    for place, (label_values, value) in enumerate(list(values), 1):
        family.add_metric(label_values, value)
        if place % _STEP == 0:
            yield None
    yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"warmroute_{name}", text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets, total = histogram.buckets()
    return HistogramMetricFamily(f"warmroute_{name}", text, buckets=buckets, sum_value=total)
