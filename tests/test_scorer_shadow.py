"""Another policy that looks on: what it would have picked is counted, and goes nowhere."""

from __future__ import annotations

import time

import pytest

from router.core.decision import Core
from router.endpoints.answers import decision_answer, shadow_answer
from router.metrics.metrics import Metrics
from scorer.policies import POLICIES, PolicyName
from tests.fakes.cores import NOBODY, SERVED, asked, core_of, decide, route


def play(core: Core) -> list[str]:
    """Prompts, some of them again; the pods that they went to."""
    went = []
    for number in range(60):
        placement = route(core, asked(core, number % 7, 480), NOBODY, float(number))
        went.append(placement.pod.name)
        if number % 3:
            core.finish(placement, SERVED, number + 0.5)
    return went


@pytest.mark.parametrize("name", POLICIES)
def test_it_changes_nothing(name: PolicyName) -> None:
    """Whatever looks on: picks, loads and prices are the same as without."""
    alone, beside = core_of(3), core_of(3, scoring={"shadow": name})
    assert play(beside) == play(alone)
    loads, others = (
        [(rank.load.requests, rank.load.prefill_tokens) for rank in core.fleet.ranks] for core in (alone, beside)
    )
    assert loads == others
    assert [each.pick.prices for each in beside.decisions] == [each.pick.prices for each in alone.decisions]
    assert beside.shadow is not None and beside.shadow.picks == 60


def test_its_share_is_told() -> None:
    """Of the policy itself all; of one that follows something else, some; each decision says whom it would have
    picked. Who only asks for a score is not counted."""
    same, other = core_of(3, scoring={"shadow": "predicted-ttft"}), core_of(3, scoring={"shadow": "round-robin"})
    for core in (same, other):
        play(core)
        decide(core, asked(core, 1), NOBODY, 99.0)
    assert shadow_answer(same.shadow) == {"policy": "predicted-ttft", "picks": 60, "same": 60, "share": 1.0}
    told = shadow_answer(other.shadow)
    assert told is not None and told["picks"] == 60 and 0 < told["share"] < 1
    answers = [decision_answer(decision, time.monotonic()) for decision in other.decisions]
    assert sum(answer["shadow"] == answer["pick"] for answer in answers) == told["same"]
    assert [answer["shadow"] for answer in answers[:4]] == ["pod-0", "pod-1", "pod-2", "pod-0"]


def test_without_one_nothing_is_told() -> None:
    """No series, and no share; nor one before the first pick."""
    core = core_of(2)
    play(core)
    assert shadow_answer(core.shadow) is None and "shadow" not in decision_answer(core.decisions[0], 0.0)
    assert b"shadow" not in Metrics(core, core.store.stats).text()
    core = core_of(2, scoring={"shadow": "random"})
    assert shadow_answer(core.shadow) == {"policy": "random", "picks": 0, "same": 0, "share": None}


def test_its_labels_are_bounded() -> None:
    """One policy, two results."""
    core = core_of(2, scoring={"shadow": "least-load"})
    play(core)
    told = Metrics(core, core.store.stats).text().decode()
    lines = [line for line in told.splitlines() if line.startswith("warmroute_shadow_picks_total{")]
    assert len(lines) == 2 and sum(float(line.split()[-1]) for line in lines) == 60.0
    assert all('policy="least-load"' in line for line in lines)


def test_a_pod_that_left_is_forgotten() -> None:
    """By who looks on, too: a pod of its name is another one."""
    core = core_of(1, scoring={"policy": "approximate", "shadow": "approximate"})
    route(core, asked(core, 1, 480), NOBODY, 0.0)
    pod = core.fleet.pods["pod-0"]
    assert decide(core, asked(core, 1, 480), NOBODY, 1.0).pick.best.matched > 0
    core.leave(pod)
    pod.models = None
    core.fleet.join(pod)
    core.fleet.learned_models(pod, [{"id": "m"}])
    assert decide(core, asked(core, 1, 480), NOBODY, 2.0).pick.best.matched == 0
