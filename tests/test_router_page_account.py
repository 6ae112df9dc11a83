"""What workers tell of themselves, made one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from router.causes.names import Missed, Why
from router.causes.sentences import misses_of
from router.core.demand import Story
from router.page.account import added_up, by_class, decisions_of, found, last_requests, served_lately
from tests.fakes.cores import NOBODY, asked, core_of, route


def account(*times: float, **more: Any) -> dict[str, Any]:
    """Of a worker that decided at these times, newest first."""
    told = {"window": [1, 2], "waiting": 1, "requests": {"all": 3}, "missed": None, "alerts": [], **more}
    told["summary"] = misses_of([Why(10, 8, 6, 5, (Missed("evicted", 5, "at noon", "it was evicted"),))])
    return {**told, "decisions": [{"id": str(at), "at": at} for at in times]}


def test_added_up() -> None:
    """Numbers are added wherever they stand, what nobody knows stays unknown, and the newest decisions are of all."""
    one = added_up([account(9.0, 3.0), account(8.0, 7.0, missed={"evicted": 4}), account()], 3)
    assert [each["at"] for each in one["decisions"]] == [9.0, 8.0, 7.0]
    assert (one["window"], one["waiting"], one["requests"]) == ([3, 6], 3, {"all": 9})
    assert one["missed"] == {"evicted": 4}
    assert one["summary"]["prompt_tokens"] == 30 and "50% of prompt tokens" in one["summary"]["missed"][0]["sentence"]
    served = [account(served={"a/0": [1, 2.0]}), account(served={"a/0": [3, 4.0], "b/1": [5, 6.0]})]
    assert added_up(served, 3)["served"] == {"a/0": [4, 6.0], "b/1": [5, 6.0]}
    assert added_up([account(), account()], 3)["missed"] is None


def test_alerts_of_all() -> None:
    """Each once, since the first of the workers that tell of it knows it."""
    late, early = ({"name": "a", "subject": "x", "since": since, "for_s": 1.0} for since in (5.0, 3.0))
    [told] = added_up([account(alerts=[late]), account(alerts=[early]), account()], 3)["alerts"]
    assert (told["name"], told["since"]) == ("a", 3.0)


def test_by_class() -> None:
    """Errors are the client's, or ours and the pods'."""
    requests = Counter({("m", "a", 200): 5, ("m", "b", 503): 2, ("m", "", 429): 1, ("m", "", 499): 1})
    assert by_class(requests) == {"all": 9, "4xx": 2, "5xx": 2}


def test_decisions_are_found_again() -> None:
    """By number, as long as they are kept; numbers that nobody has find none."""
    core = core_of(decisions={"kept": 2})
    for seed in range(3):
        route(core, asked(core, seed, 160 + seed), NOBODY, 1.0 + seed)
    told = decisions_of(last_requests(core, 5), 4, 100.0)
    assert [(line["id"], line["at"], line["tokens"]) for line in told] == [("4-3", 103.0, 162), ("4-2", 102.0, 161)]
    newest = found(core, 3)
    assert newest is core.decisions[-1] and newest.demand.tokens == 162
    assert [found(core, number) is None for number in (0, 1, 2, 3, 4)] == [True, True, False, False, True]


def test_how_requests_ended() -> None:
    """One that was decided anew is one line, on its way until it is over; pods have served what went well."""
    core = core_of(pods=1)
    told = Story(b"r1", "/v1/completions", 1.0, first_at=1.25)
    for at in (1.0, 1.1):
        route(core, asked(core, 1), NOBODY, at)
        core.decisions[-1].story = told
    route(core, asked(core, 2), NOBODY, 1.2)
    core.decisions[-1].story = Story(b"r2", "/v1/completions", 1.2, ended_at=2.0, status=503, error="no_fit_pod")
    failed, going = decisions_of(last_requests(core, 9), 0, 0.0)
    assert (going["id"], going["outcome"], going["missed"]) == ("0-2", None, None)
    assert failed["outcome"] == {"status": 503, "error": "no_fit_pod", "ttft_s": None}
    assert served_lately(last_requests(core, 9), 0.0) == {}
    told.ended_at, told.status, told.usage = 2.0, 200, (160, 32)
    told.why = Why(160, 0, 0, 32, (Missed("first_seen", 100, ""), Missed("evicted", 28, "")))
    _, line = decisions_of(last_requests(core, 9), 0, 0.0)
    assert line["outcome"]["ttft_s"] == 0.25 and line["missed"] == ["first_seen", 100]
    assert served_lately(last_requests(core, 9), 0.0) == {"pod-0/0": [160, 32, 0.25, 1]}
    assert served_lately(last_requests(core, 9), 1.15) == {}  # it is of before
