"""Families of the pods' KV events: what came, what was missing, and how far a feed is believed. Pure."""

from __future__ import annotations

from indexer.feed import Feed
from router.core.fleet import Fleet
from router.metrics.families import MetricFamily, Steps, escaped

_PODS = 8  # in one step


def of_events(fleet: Fleet, began: float, now: float) -> Steps:
    """`began`: when this gateway was started; since then at most, a feed was not heard."""
    each = _families()
    lag, heard, synced, events, gaps, missed, replays, orphans, drops, resyncs, predictions, errors = each
    for place, pod in enumerate(list(fleet.pods.values())):
        if place % _PODS == 0:
            yield None
        feeds = [rank.feed for rank in pod.ranks if rank.feed is not None]
        if not feeds:
            continue
        counts, name = [feed.counts for feed in feeds], escaped(pod.name)
        of, last = f'{{pod="{name}"}}', f'{{pod="{name}",'
        lag.samples.append((f"warmroute_event_lag_seconds{of}", max([feed.lag_s for feed in feeds])))
        since = min([began if feed.last_heard is None else feed.last_heard for feed in feeds])
        heard.samples.append((f"warmroute_event_last_heard_seconds{of}", max(0.0, now - since)))
        synced.samples.append((f"warmroute_feed_sync{of}", int(pod.answers and all(map(_is_synced, feeds)))))
        events.samples.extend([
            (f'warmroute_events_total{last}type="stored"}}', sum([c.stored for c in counts])),
            (f'warmroute_events_total{last}type="removed"}}', sum([c.removed for c in counts])),
            (f'warmroute_events_total{last}type="cleared"}}', sum([c.cleared for c in counts])),
            (f'warmroute_events_total{last}type="ignored"}}', sum([c.ignored for c in counts])),
            (f'warmroute_events_total{last}type="unknown"}}', sum([c.unknown_events for c in counts])),
        ])  # fmt: skip
        gaps.samples.append((f"warmroute_event_gaps_total{of}", sum([c.gap for c in counts])))
        missed.samples.append((f"warmroute_event_missed_total{of}", sum([c.missed for c in counts])))
        replays.samples.extend([
            (f'warmroute_event_replays_total{last}result="complete"}}', sum([c.replay_complete for c in counts])),
            (f'warmroute_event_replays_total{last}result="failed"}}', sum([c.replay_failed for c in counts])),
        ])  # fmt: skip
        orphans.samples.append((f"warmroute_event_orphans_total{of}", sum([c.orphans for c in counts])))
        drops.samples.append((f"warmroute_event_drops_total{of}", sum([feed.dropped for feed in feeds])))
        resyncs.samples.append((f"warmroute_event_resyncs_total{of}", sum([c.resyncs for c in counts])))
        predictions.samples.extend([
            (f'warmroute_predictions_total{last}result="equal"}}', sum([c.predictions_equal for c in counts])),
            (f'warmroute_predictions_total{last}result="over"}}', sum([c.predictions_over for c in counts])),
            (f'warmroute_predictions_total{last}result="under"}}', sum([c.predictions_under for c in counts])),
        ])  # fmt: skip
        errors.samples.append((f"warmroute_event_decode_errors_total{of}", sum([c.decode_errors for c in counts])))
    yield from each


def _is_synced(feed: Feed) -> bool:
    """All that its publisher has sent is known."""
    return feed.heard and not (feed.replaying or feed.behind or feed.truncated or feed.unfinished)


def _families() -> tuple[MetricFamily, ...]:
    def one(name: str, text: str, heard_by_all: bool = False) -> MetricFamily:
        if not name.endswith("_total"):
            return MetricFamily(f"warmroute_{name}", "gauge", text, "max", [])
        return MetricFamily(f"warmroute_{name}", "counter", text, "max" if heard_by_all else "sum", [])

    return (
        one("event_lag_seconds", "Age of the newest batch when it came."),
        one("event_last_heard_seconds", "Since a batch came; before the first, since the gateway was started."),
        one("feed_sync", "1: the pod is there, and all that its publisher has sent is known.")._replace(join="min"),
        one("events_total", "Blocks, by what events said.", True),
        one("event_gaps_total", "Gaps in feeds."),
        one("event_missed_total", "Batches that were missing at gaps."),
        one("event_replays_total", "Replays asked for."),
        one("event_orphans_total", "Blocks that came without their parent.", True),
        one("event_drops_total", "Batches that came and could not wait."),
        one("event_resyncs_total", "Histories asked for again."),
        one("predictions_total", "Predictions against the pod's own reports; over: stale blocks, under: unknown ones."),
        one("event_decode_errors_total", "Frames and events not understood.", True),
    )
