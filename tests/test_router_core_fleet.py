"""All pods and who serves what: in the order in which they joined, whoever told first."""

from __future__ import annotations

import pytest

from indexer.feed import Feed
from router.core.fleet import Fleet, Pod, RankId
from router.errors import BadRequest, UnknownModel
from tests.fakes.cores import MODEL, NOBODY, asked, core_of, route


def test_pods_are_named_in_the_order_in_which_they_joined() -> None:
    """Whoever tells its models first, and whoever tells them anew."""
    core = core_of(3)
    fleet = core.fleet
    names = [rank.id.pod for rank in fleet.serving(None)]
    for name in reversed(names):
        fleet.learned_models(fleet.pods[name], [{"id": "tuned"}])
    assert [rank.id.pod for rank in fleet.serving("tuned")] == names
    fleet.learned_models(fleet.pods[names[0]], [{"id": "other"}])
    fleet.learned_models(fleet.pods[names[0]], [{"id": "tuned"}])
    assert [rank.id.pod for rank in fleet.serving("tuned")] == names


def test_a_pod_is_well_until_it_misses_so_many_in_a_row() -> None:
    """Probes missed between answers, or beside requests that it serves, do not count; who was away comes back cold."""
    core = core_of(2)
    fleet, pod = core.fleet, core.fleet.pods["pod-0"]
    for name in fleet.pods:
        fleet.probed(fleet.pods[name], True, 0.0, 2)
    fleet.cold.clear()
    assert pod.fails("no connection to /health", listens=False) and not pod.listens
    fleet.probed(pod, False, 1.0, 2)
    assert pod.fit(1.0) and not pod.fails("no connection to /health")
    fleet.probed(pod, True, 2.0, 2)
    assert pod.unfit(2.0) == [] and pod.failures == 0
    pod.served_at = 3.5
    for since in (3.0, 3.2, 3.4):
        fleet.probed(pod, False, since, 2)
    assert pod.fit(3.5)
    pod.fails("it says 500 to /health", listens=False)
    for since in (4.0, 5.0):
        fleet.probed(pod, False, since, 2)
    assert not pod.fit(5.0) and pod.unfit(5.0) == ["it says 500 to /health"] and fleet.cold == {pod}
    fleet.probed(pod, True, 6.0, 2)
    assert pod.fit(6.0)


def test_a_pod_rests_and_wakes_up() -> None:
    """What is new is said once: nobody asks it meanwhile, and then it is cold."""
    fleet, pod = (core := core_of(1)).fleet, core.fleet.pods["pod-0"]
    fleet.cold.clear()
    assert not fleet.rests(pod, None) and fleet.rests(pod, "asleep") and not fleet.rests(pod, "asleep")
    assert not pod.fit(0.0) and not pod.usable and pod.unfit(0.0)[-1] == "it is asleep"
    assert fleet.rests(pod, None) and pod.fit(0.0) and fleet.cold == {pod}


def test_who_drains_or_leaves_is_asked_no_more() -> None:
    """By an operator's word, or by that of whoever told of the pod; each is lifted by itself."""
    pod = core_of(1).fleet.pods["pod-0"]
    pod.drain(True)
    pod.stands(ready=False, leaving=False)
    assert not pod.fit(0.0) and not pod.usable
    pod.drain(False)
    assert not pod.usable
    pod.stands(ready=True, leaving=True)
    assert not pod.fit(0.0) and "it is terminating" in pod.unfit(0.0)
    pod.stands(ready=True, leaving=False)
    assert pod.fit(0.0)


def test_figures_tell_of_a_restart() -> None:
    """A pod that started later than it said before is another one, and cold; what is missing changes nothing."""
    fleet, pod = (core := core_of(1)).fleet, core.fleet.pods["pod-0"]
    fleet.cold.clear()
    assert not fleet.measured(pod, {"started": 5.0, "block_size": 32.0, "blocks": 101.0})
    assert (pod.block_size, pod.blocks) == (32, 100)
    pod.evidence.usage = True
    assert not fleet.measured(pod, {}) and (pod.block_size, pod.blocks) == (32, 100)
    assert not fleet.measured(pod, {"started": 5.0}) and not fleet.cold and pod.evidence.usage
    assert fleet.measured(pod, {"started": 6.0}) and fleet.cold == {pod} and not pod.evidence.usage


def test_a_rank_is_logged_by_its_pods_name() -> None:
    """Logs say which pod it is, and which rank where it is not the first; nothing of how that is kept."""
    assert [f"{RankId('pod-0', rank)}: x" for rank in (0, 2)] == ["pod-0: x", "pod-0 rank 2: x"]
    assert "%s" % (RankId("pod-0", 0),) == "pod-0"  # noqa: UP031


def test_the_model_of_requests_that_name_none() -> None:
    """The first base model that all pods serve, as far as they have told; none where they serve different ones."""
    core = core_of(2)
    fleet, (one, other) = core.fleet, core.fleet.pods.values()
    assert fleet.unnamed == MODEL
    fleet.learned_models(one, [{"id": "adapter", "parent": "b"}, {"id": "b"}, {"id": "a"}])
    assert fleet.unnamed is None and not fleet.is_of_one_model
    fleet.learned_models(other, [{"id": "a"}, {"id": "adapter", "parent": "a"}])
    assert fleet.unnamed == "a"
    fleet.leave(one.name)
    fleet.leave(other.name)
    assert fleet.unnamed is None and fleet.is_of_one_model


def test_probes_are_believed_until_more_than_a_share_of_pods_is_silent() -> None:
    """Half of two is not more than a half."""
    for share, panics in ((0.5, False), (0.49, True)):
        fleet = Fleet(panic_share=share)
        for name in ("a", "b"):
            fleet.join(pod := Pod(name, f"http://{name}"))
            fleet.learned_models(pod, [{"id": MODEL}])
            fleet.probed(pod, True, 0.0, 1)
        fleet.pods["b"].fails("it is late", listens=True)
        fleet.probed(fleet.pods["b"], False, 1.0, 1)
        assert fleet.panics is panics and fleet.pods["b"].healthy is panics and fleet.pods["a"].healthy


def test_figures_and_words_that_mean_nothing_are_not_taken() -> None:
    """No blocks but the one that none uses, blocks of less than a token, versions that are none."""
    fleet, pod = (core := core_of(1)).fleet, core.fleet.pods["pod-0"]
    fleet.measured(pod, {"block_size": 32.0, "blocks": 101.0})
    fleet.measured(pod, {"block_size": 0.0, "blocks": 1.0})
    assert (pod.block_size, pod.blocks) == (32, 100)
    fleet.measured(pod, {"block_size": 1.0, "blocks": 2.0})
    assert (pod.block_size, pod.blocks) == (1, 1)
    for said, version in (("0.11.2", "0.11.2"), (7, None), ("0.12.0", "0.12.0"), ('0.12.0"\n{', None)):
        fleet.learned_version(pod, said)
        assert pod.version == version


def test_what_names_stood_for_is_remembered_of_the_newest() -> None:
    """However many adapters a pod has had: of all that it serves now, and of some that it has served."""
    fleet, pod = (core := core_of(1)).fleet, core.fleet.pods["pod-0"]
    fleet.learned_models(pod, [{"id": MODEL, "root": "weights"}])
    for number in range(2000):
        cards = [{"id": MODEL, "root": "weights"}, {"id": f"a{number}", "root": f"/a{number}", "parent": MODEL}]
        assert not fleet.learned_models(pod, cards)
        assert pod.roots[MODEL] == "weights" and pod.roots[f"a{number}"] == f"/a{number}"
    assert len(pod.roots) <= 1000
    assert fleet.learned_models(pod, [{"id": MODEL, "root": "other weights"}])


def test_which_adapter_a_name_stands_for() -> None:
    """As long as somebody serves it; a base model is none, nor is what nobody knows."""
    fleet, pod = (core := core_of(2)).fleet, core.fleet.pods["pod-1"]
    fleet.learned_models(pod, [{"id": MODEL}, {"id": "tuned", "parent": MODEL}])
    assert [fleet.adapter_of(name) for name in ("tuned", MODEL, "other", None)] == ["tuned", None, None, None]
    fleet.leave("pod-1")
    assert fleet.adapter_of("tuned") is None and fleet.served("tuned") is None


def test_what_pods_call_a_base_model() -> None:
    """Its id first, then where each pod has loaded it from, if it says so; not what others have."""
    core = core_of(3)
    fleet, (one, other, third) = core.fleet, core.fleet.pods.values()
    fleet.learned_models(one, [{"id": MODEL, "root": "/a"}, {"id": "tuned", "root": "/t", "parent": MODEL}])
    fleet.learned_models(other, [{"id": MODEL, "root": "/b"}])
    third.models = None
    assert fleet.names_of(MODEL) == [MODEL, "/a", "/b"]


def test_what_changes_how_prompts_are_read_is_noticed_once() -> None:
    """Another version, or another way in which blocks are made, begins an epoch: what was kept of it is no more."""
    core = core_of(2)
    fleet, (one, other) = core.fleet, core.fleet.pods.values()
    fleet.notice_grains()
    epoch = fleet.epoch
    assert fleet.versions(MODEL) == (None,) and fleet.grains(MODEL) == [16]
    for pod in (one, other):
        fleet.learned_version(pod, "0.20.0")
        fleet.learned_version(pod, "0.20.0")
    assert fleet.epoch == epoch + 2 and fleet.versions(MODEL) == ("0.20.0",)
    fleet.learned_version(other, "0.21.0")
    assert fleet.versions(MODEL) == fleet.versions(MODEL) == ("0.20.0", "0.21.0")
    other.block_size = 32
    for _ in range(2):
        fleet.notice_grains()
        assert fleet.epoch == epoch + 4 and fleet.grains(MODEL) == [16, 32]
    with pytest.raises(UnknownModel):
        fleet.versions("other")


def test_since_which_version_nothing_cached_is_reported() -> None:
    """Before it, a pod that reports nothing may mean 0; who tells no version may be as old."""
    pod = core_of(1).fleet.pods["pod-0"]
    for version, hides in (("0.9.2", True), ("0.23.9", True), ("0.24.0", False), ("1.0.0", False), (None, True)):
        pod.version = version
        assert pod.hides_zero is hides


def test_how_much_of_a_cache_is_in_use() -> None:
    """By what was sent from here, where its size is known; else as the pod says; never more than all."""
    core = core_of(1)
    (rank,) = core.fleet.serving(MODEL)
    assert rank.used == 0.0
    core.fleet.measured(rank.pod, {"kv_usage": 0.3})
    assert rank.used == 0.3
    core.fleet.measured(rank.pod, {"kv_usage": 0.3, "blocks": 101.0})
    route(core, asked(core, 1, 400), NOBODY, 0.0)
    assert rank.capacity == 1600 and rank.used == 0.25
    route(core, asked(core, 2, 4000), NOBODY, 0.0)
    assert rank.used == 1.0


def test_a_pod_that_is_believed_without_an_answer_says_so() -> None:
    """Where too many pods are silent at once, it is asked on; why it might not be is still told."""
    fleet = Fleet(panic_share=0.5)
    fleet.join(pod := Pod("a", "http://a"))
    assert pod.unfit(0.0) == ["it has not been probed yet"]
    fleet.learned_models(pod, [{"id": MODEL}])
    fleet.probed(pod, True, 0.0, 1)
    pod.fails("it is late", listens=True)
    fleet.probed(pod, False, 1.0, 1)
    assert fleet.panics and pod.fit(1.0) and pod.unfit(1.0) == ["it is late"]


def test_a_pod_tells_how_many_adapters_it_can_have_loaded() -> None:
    """One that does not tell is taken to have room for any."""
    fleet, pod = (core := core_of(1)).fleet, core.fleet.pods["pod-0"]
    (rank,) = pod.ranks
    pod.engine_names = {"adapters": "a, b"}
    fleet.measured(pod, {})
    assert rank.adapters.takes("c") and not rank.adapters.has("a")
    fleet.measured(pod, {"lora_max": 2.0})
    assert rank.adapters.has("a") and rank.adapters.has("b") and not rank.adapters.takes("c")


def test_models_that_are_told_again_change_nothing() -> None:
    """Pods make some of it anew for each answer; what requests hang on begins an epoch."""
    fleet, pod = (core := core_of(1)).fleet, core.fleet.pods["pod-0"]
    fleet.learned_models(pod, [{"id": MODEL, "root": "/a", "created": 1}])
    epoch = fleet.epoch
    fleet.learned_models(pod, [{"id": MODEL, "root": "/a", "created": 2}])
    assert fleet.epoch == epoch
    fleet.learned_models(pod, [{"id": MODEL, "root": "/a", "created": 2, "max_model_len": 100}])
    assert fleet.epoch == epoch + 1 and fleet.shortest == 100


def test_what_a_pod_says_of_itself_reaches_its_events() -> None:
    """Its adapters, which events name by number; a drafter; that it caches nothing. Pods without events have none."""
    for feeds in (True, False):
        fleet, pod = (core := core_of(1, feeds=feeds)).fleet, core.fleet.pods["pod-0"]
        (rank,) = pod.ranks
        fleet.learned_models(pod, [{"id": MODEL}, {"id": "tuned", "parent": MODEL}])
        fleet.measured(pod, {})
        assert rank.trust.caches and rank.trust.calibration.proven
        fleet.measured(pod, {"caches": 0.0})
        assert not rank.trust.caches
        fleet.measured(pod, {"drafter": 1.0})
        assert rank.trust.caches and rank.trust.calibration.proven is not feeds
        assert rank.feed is None or rank.feed.adapters == ["tuned"]


def test_the_history_of_a_pod_that_was_started_anew_is_asked_for() -> None:
    """Its feed may not have noticed yet; of a pod without events, what its reports have shown is forgotten."""
    for feeds in (True, False):
        fleet, pod = (core := core_of(1, feeds=feeds)).fleet, core.fleet.pods["pod-0"]
        (rank,) = pod.ranks
        rank.trust.proofs = 5
        fleet.restarted(pod)
        if rank.feed is not None:
            assert rank.feed.mend(1.0) == 0 and rank.feed.mend(1.0) is None
        else:
            assert rank.trust.proofs == 0


def test_counters_prove_what_was_foretold_of_one_rank() -> None:
    """Where a pod has several, nobody knows whose they are; figures count how often it was started anew."""
    for ranks, equal in ((1, 1), (2, 0)):
        fleet, pod = (core := core_of(1, ranks=ranks)).fleet, core.fleet.pods["pod-0"]
        for asked_tokens, queries, hits in ((0, 0.0, 0.0), (160, 160.0, 96.0)):
            pod.evidence.unreported(asked_tokens, 96)
            pod.evidence.predicted_tokens = 96
            fleet.measured(pod, {"cache_queries": queries, "cache_hits": hits, "started": 1.0})
        told = [rank.feed.counts.predictions_equal for rank in pod.ranks if rank.feed is not None]
        assert told == [equal] * ranks
        fleet.measured(pod, {"started": 2.0})
        assert pod.restarts == 1


def test_a_request_without_a_model_is_told_which_there_are() -> None:
    """Where pods serve different ones; it is fine where one is everybody's."""
    core = core_of(2)
    core.fleet.check_unnamed()
    core.fleet.learned_models(core.fleet.pods["pod-1"], [{"id": "other"}])
    with pytest.raises(BadRequest, match=f"Known models: {MODEL}, other."):
        core.fleet.check_unnamed()


def test_of_a_silent_pod_nothing_is_exact() -> None:
    """What was not known before is known no better."""
    core = core_of(2)
    exact, blind = (pod.ranks[0] for pod in core.fleet.pods.values())
    blind.feed = Feed(core.index, RankId("never heard", 0), 100)
    assert (exact.state, blind.state) == ("exact", "blind")
    for rank in (exact, blind):
        rank.pod.believe(False)
    assert (exact.state, blind.state) == ("degraded", "blind")
