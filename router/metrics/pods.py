"""Families of each pod: whether it is there and fit, what it holds, what is on the way to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from indexer.rule import Rule
from router.core.breaker import STATES
from router.core.decision import Core
from router.core.fleet import Pod
from router.metrics.families import MetricFamily, Steps, escaped, gauge, word

_FEED_STATES = ("exact", "degraded", "blind")
_TIERS = ("gpu", "predicted", "cpu", "disk")  # as an index tells them
_PODS = 8  # in one step


def of_pods(core: Core, failures: Mapping[str, int], now: float) -> Steps:
    """`failures`: attempts given up, by pod."""
    each = _families()
    up, fit, states, blocks, requests, prefill, backlogs, speeds, breakers, restarts, failed, rules = each
    exact = held_blocks = room = live = capacity = 0
    words: dict[Rule, str] = {}
    for place, pod in enumerate(list(core.fleet.pods.values())):
        if place % _PODS == 0:
            yield None
        name = escaped(pod.name)
        of, ranks, last = f'{{pod="{name}"}}', pod.ranks, f'{{pod="{name}",'
        held = [core.index.holding(rank.id) for rank in ranks]
        by_tier = [sum(tier) for tier in zip(*held, strict=True)] if len(held) > 1 else list(held[0])
        blocks.samples.extend(
            [(f'warmroute_pod_blocks{last}tier="{tier}"}}', n) for tier, n in zip(_TIERS, by_tier, strict=False)]
        )
        worst = max([rank.state for rank in ranks], key=_FEED_STATES.index)
        states.samples.extend([(f'warmroute_pod_state{last}state="{s}"}}', int(s == worst)) for s in _FEED_STATES])
        up.samples.append((f"warmroute_pod_up{of}", int(pod.answers)))
        why = unfitness(pod, now)
        fit.samples.append((f'warmroute_pod_fit{last}reason="{why or "fit"}"}}', int(why is None)))
        loads = [rank.load for rank in ranks]
        requests.samples.append((f"warmroute_pod_inflight_requests{of}", sum([x.own_requests for x in loads])))
        prefill.samples.append(
            (f"warmroute_pod_inflight_prefill_tokens{of}", sum([x.own_prefill_tokens for x in loads]))
        )
        backlogs.samples.append((f"warmroute_pod_backlog_seconds{of}", max([x.backlog_s(now) for x in loads])))
        speeds.samples.append(
            (f"warmroute_pod_prefill_tokens_per_second{of}", min([x.rate.tokens_per_s for x in loads]))
        )
        breakers.samples.append((f"warmroute_breaker_state{of}", STATES.index(pod.breaker.state(now))))
        restarts.samples.append((f"warmroute_pod_restarts_total{of}", restarts_of(pod)))
        failed.samples.append((f"warmroute_pod_failures_total{of}", failures.get(pod.name, 0)))
        rules.samples.extend(
            [(f'warmroute_hit_rule{last}rule="{rule}"}}', sure) for rule, sure in _rules(pod, words).items()]
        )
        exact += worst == "exact"
        for rank in ranks:
            if rank.capacity:
                live, capacity = live + rank.lives.tokens(now), capacity + rank.capacity
        if pod.blocks:
            held_blocks, room = held_blocks + by_tier[0], room + pod.blocks * len(ranks)
    yield from each
    text = "Share of the pods whose feed is exact."
    yield gauge("warmroute_node_cache_consistency", text, exact / len(up.samples) if up.samples else 0.0)
    text = "Share of the pods' own KV-cache blocks that are known to be held, of pods that tell how many they have."
    yield gauge("warmroute_cache_utilization", text, min(1.0, held_blocks / room) if room else 0.0)
    text = "Tokens in pods' caches that live sessions use, against what these hold."
    yield gauge("warmroute_working_set_ratio", text, live / capacity if capacity else 0.0)


def _families() -> tuple[MetricFamily, ...]:
    def one(name: str, text: str, added: bool = False) -> MetricFamily:
        kind = "counter" if name.endswith("_total") else "gauge"
        return MetricFamily(f"warmroute_{name}", kind, text, "sum" if added else "max", [])  # type: ignore[arg-type]

    return (
        one("pod_up", "1: it answers probes.")._replace(join="min"),
        one("pod_fit", "1: requests may go there; 0: not, for this reason."),
        one("pod_state", "1 for the state it is in."),
        one("pod_blocks", "Blocks a pod is known to hold."),
        one("pod_inflight_requests", "Requests on the way.", True),
        one("pod_inflight_prefill_tokens", "Prefill promised.", True),
        one("pod_backlog_seconds", "Prefill that waits there."),
        one("pod_prefill_tokens_per_second", "As learned, in the middle of a usual prompt."),
        one("breaker_state", "0 closed, 1 half-open, 2 open."),
        one("pod_restarts_total", "Times that it was started anew, as its events or its metrics show."),
        one("pod_failures_total", "Attempts there that were given up before the first byte.", True),
        one("hit_rule", "By which rule a pod reuses what it holds: 1 if that is proven and believed."),
    )


def unfitness(pod: Pod, now: float) -> str | None:
    """Why no request should go there, in a word; None: it is fit."""
    if not pod.healthy:
        return "unanswered" if pod.unanswered is not None else "unprobed"
    if pod.rest is not None:
        return pod.rest
    if pod.leaving or not pod.ready:
        return "leaving" if pod.leaving else "not_ready"
    if pod.draining:
        return "draining"
    if pod.suspect_until > now:
        return "suspect"
    if pod.breaker.blocked_until > now:
        return "ejected" if pod.breaker.tripped else "avoided"
    return None


def restarts_of(pod: Pod) -> int:
    """What its events show and what its metrics show is mostly the same restart."""
    return max([pod.restarts, *[rank.feed.counts.restart for rank in pod.ranks if rank.feed is not None]])


def _rules(pod: Pod, words: dict[Rule, str]) -> dict[str, int]:
    """`words`: of rules that have been met."""
    sure: dict[str, int] = {}
    for rank in pod.ranks:
        trust = rank.trust
        rule = words.get(trust.calibration.rule) or words.setdefault(
            trust.calibration.rule, word(str(trust.calibration.rule))
        )
        sure[rule] = sure.get(rule, 1) & int(trust.rule is not None and trust.calibration.proven)
    return sure
