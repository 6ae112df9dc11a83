"""The conditions themselves: from what is known now, and what came in the last minute, to what is wrong. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from indexer.feed import Feed
from router.alerts.past import Tally
from router.config.settings import AlertsConfig
from router.core.decision import Core
from router.core.fleet import Pod
from router.metrics.histograms import DECISION_SECONDS, ERROR_TOKENS, quantile

ALERTS = {
    "hit_ratio_low": "Pods have cached fewer of the last minute's prompt tokens than alerts.hit_ratio_min.",
    "decision_slow": "One decision in a hundred of the last minute took longer than alerts.decision_p99.",
    "evictions_high": "Index and prefix store give up more entries a second than alerts.evictions_max.",
    "memory_high": "More of the memory limit is used than alerts.memory_max.",
    "pod_not_exact": "What is known of a pod's cache is not sure: its feed is blind or degraded, for alerts.patience; "
    "or it has none, though other pods of its model have.",
    "gap_not_repaired": "Events of a pod were missed, and its replay did not bring them, for alerts.patience.",
    "predictions_wrong": "More of the predictions than alerts.prediction_error_max were off by over 64 tokens.",
    "no_fit_pod": "No pod may be asked at all, or none that serves a model.",
    "breaker_open": "A pod is ejected, as requests fail there.",
    "retry_budget_spent": "In the last minute requests were not tried again, as the budget for that was spent.",
    "no_state": "The gateway knows nothing of what any pod holds, though they have feeds, for alerts.patience.",
}
"""Names, and what each means. The names do not change."""

_CLOSE_TOKENS = 64


class Wrong(NamedTuple):
    """A condition that holds. `subject`: the pod or model that it is about, "" for the gateway itself."""

    name: str
    subject: str
    why: str
    lasting: bool = False
    """It is an alert only after `alerts.patience`."""


class Minute(NamedTuple):
    """What is looked at of the last minute."""

    counted: Tally
    length_s: float
    cached_tokens: int
    asked_tokens: int
    memory_used: int
    memory_limit: int


def of_gateway(minute: Minute, given: AlertsConfig) -> Iterator[Wrong]:
    """Those of the gateway itself. Where fewer requests came than `alerts.requests_min`, shares say nothing."""
    counted, answers, decisions = minute.counted, sum(minute.counted.errors), sum(minute.counted.decisions)
    if minute.asked_tokens and answers >= given.requests_min:
        ratio = minute.cached_tokens / minute.asked_tokens
        if ratio < given.hit_ratio_min:
            yield Wrong("hit_ratio_low", "", f"{ratio:.0%} of {minute.asked_tokens} prompt tokens were cached")
    p99 = quantile(0.99, DECISION_SECONDS, counted.decisions)
    if p99 is not None and decisions >= given.requests_min and p99 > given.decision_p99:
        yield Wrong("decision_slow", "", f"p99 of {decisions} decisions is {p99 * 1e3:.0f} ms")
    evictions = counted.evictions / minute.length_s
    if evictions > given.evictions_max:
        yield Wrong("evictions_high", "", f"{evictions:.1f} entries are given up a second")
    if minute.memory_limit and minute.memory_used > given.memory_max * minute.memory_limit:
        share = minute.memory_used / minute.memory_limit
        yield Wrong("memory_high", "", f"{share:.0%} of {minute.memory_limit / 2**20:.0f} MiB is used")
    off = sum(counted.errors[ERROR_TOKENS.index(_CLOSE_TOKENS) + 1 :])
    if answers >= given.requests_min and off > given.prediction_error_max * answers:
        yield Wrong("predictions_wrong", "", f"{off} of {answers} predictions were off by over {_CLOSE_TOKENS} tokens")
    if counted.retries_refused:
        yield Wrong("retry_budget_spent", "", f"{counted.retries_refused} retries were not allowed")


def of_fleet(core: Core, now: float) -> Iterator[Wrong]:
    """Those of all pods together."""
    fleet = core.fleet
    fit = {name for name, pod in fleet.pods.items() if pod.fit(now)}
    if not fit:
        yield Wrong("no_fit_pod", "", f"none of {len(fleet.pods)} pods is fit" if fleet.pods else "there are no pods")
    for model in fleet.base_models() if fit else ():
        names = {rank.pod.name for rank in fleet.serving(model)}
        if fit.isdisjoint(names):
            yield Wrong("no_fit_pod", model, f"none of its {len(names)} pods is fit")
    feeds = [rank.feed for rank in fleet.ranks if rank.feed is not None]
    if feeds and not any(feed.heard for feed in feeds):
        yield Wrong("no_state", "", f"nothing was heard of any of {len(feeds)} feeds", True)


def models_with_feeds(core: Core) -> set[str]:
    """Those of which a pod has a feed: another one without has been forgotten. Where none has, that is on purpose."""
    return {name for pod in core.fleet.pods.values() if any(rank.feed for rank in pod.ranks) for name in pod.served}


def of_pod(pod: Pod, replays_failed: int, with_feeds: Collection[str]) -> Iterator[Wrong]:
    """Those of one pod. `replays_failed`: in the last minute; `with_feeds`: see `models_with_feeds`."""
    if pod.breaker.tripped:
        yield Wrong("breaker_open", pod.name, pod.breaker.reason or "requests fail")
    for rank in pod.ranks:
        if rank.state != "exact" and (rank.feed is not None or not pod.served.keys().isdisjoint(with_feeds)):
            yield Wrong("pod_not_exact", pod.name, f"{rank.state}: {_why_inexact(pod, rank.feed)}", True)
            break
    open_gaps = [feed for rank in pod.ranks if (feed := rank.feed) is not None and (feed.replaying or feed.behind)]
    lost = [feed for rank in pod.ranks if (feed := rank.feed) is not None and feed.truncated and feed.counts.gap]
    if replays_failed:
        yield Wrong("gap_not_repaired", pod.name, f"{replays_failed} replays have failed in the last minute")
    elif open_gaps or lost:
        why = "a replay has not come to its end" if open_gaps else "what was missed is gone from its history"
        yield Wrong("gap_not_repaired", pod.name, why, True)


def _why_inexact(pod: Pod, feed: Feed | None) -> str:
    if feed is None:
        return "it has no event feed, and other pods of its model have"
    if pod.silent:
        return pod.unanswered or "it does not answer"
    return "; ".join(feed.reasons)
