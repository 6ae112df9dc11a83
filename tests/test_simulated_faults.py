"""A pod's feed under faults, in simulated time: what is believed of it is right two seconds after the last."""

from __future__ import annotations

import pytest

from indexer.feed import DOUBTED, TRUNCATED
from indexer.trust import RESYNC_INTERVAL_S
from tests.fakes.pod_world import Scene

HEALED_S = 2.0


def is_healed(scene: Scene) -> bool:
    """Every check so long after a fault was right to the block, and the feed knows it."""
    return scene.worst_since(HEALED_S) == (0, 0) and scene.side.feed.state == "exact"


def test_without_faults_every_prediction_is_right() -> None:
    """The ground truth: what follows is due to faults."""
    scene = Scene(seed=1)
    scene.run(60)
    assert is_healed(scene) and len(scene.errors) > 100
    assert scene.side.feed.counts.removed > 100 and scene.side.feed.counts.cleared >= 0


@pytest.mark.parametrize("seed", range(3))
def test_one_percent_of_frames_lost_for_ten_minutes(seed: int) -> None:
    """Each loss is a gap that a replay closes; nothing is ever forgotten for it."""
    scene = Scene(seed)
    scene.side.link.lost = 0.01
    scene.run(600)
    scene.side.link.lost = 0.0
    scene.run(5)
    assert scene.side.feed.counts.gap > 20 and not scene.side.feed.counts.forgotten
    assert is_healed(scene)


@pytest.mark.parametrize("seed", range(5))
def test_lost_repeated_and_late_frames(seed: int) -> None:
    """All at once, and the answers of replays are lost, too."""
    scene = Scene(100 + seed)
    link = scene.side.link
    link.lost, link.repeated, link.late, link.replay_lost = 0.02, 0.05, 0.02, 0.02
    scene.run(60)
    link.lost = link.repeated = link.late = link.replay_lost = 0.0
    scene.fault()
    scene.run(5)
    assert scene.side.feed.counts.duplicate > 0
    assert is_healed(scene)


@pytest.mark.parametrize("seed", range(5))
def test_a_connection_cut_for_thirty_seconds(seed: int) -> None:
    """What was missed meanwhile is asked for when it is up again."""
    scene = Scene(200 + seed)
    scene.run(10 + seed)
    scene.cut(30)
    scene.run(5)
    assert is_healed(scene) and not scene.side.feed.counts.forgotten


@pytest.mark.parametrize("seed", range(5))
def test_a_pod_killed_and_started_again(seed: int) -> None:
    """Nothing of the old process is believed; also when it dies twice, and when frames are lost around it."""
    scene = Scene(300 + seed)
    scene.side.link.lost = 0.05 * (seed % 2)
    scene.run(10 + seed)
    for down_s in (3.0, 0.5):
        scene.kill(down_s)
        scene.run(4)
    scene.side.link.lost = 0.0
    scene.fault()
    scene.run(5)
    assert scene.side.feed.counts.restart >= 2
    assert is_healed(scene)


@pytest.mark.parametrize("seed", range(4))
def test_a_history_that_is_cut_off(seed: int) -> None:
    """More was missed than the pod kept: no stale block is believed, and the feed says so until it has caught up."""
    scene = Scene(400 + seed, buffer_steps=40, systems=0)
    scene.clears = 0.0
    scene.run(20)
    scene.cut(30)
    scene.run(3)
    feed = scene.side.feed
    assert feed.state == "degraded" and TRUNCATED in feed.reasons
    scene.run(300)
    assert scene.worst_since(HEALED_S)[0] == 0, "a block was believed that was gone"
    assert feed.state == "exact"
    scene.errors.clear()
    scene.run(20)
    assert scene.worst_since(HEALED_S) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_what_no_fault_explains_is_found_by_the_pods_own_reports(seed: int) -> None:
    """Blocks vanish from the index behind the feed's back: the reports show it, and the history is read again."""
    scene = Scene(500 + seed)
    scene.clears = 0.0
    scene.run(20)
    feed = scene.side.feed
    assert feed.state == "exact"
    scene.side.index.clear("pod")
    scene.run(4)
    assert feed.counts.resyncs == 1
    scene.errors.clear()
    scene.run(4)
    assert is_healed(scene)


@pytest.mark.parametrize("seed", range(4))
def test_a_pod_that_says_nothing_of_what_it_lost(seed: int) -> None:
    """Stale blocks that no history mends: the feed is degraded while it lasts, and asks once an interval."""
    scene = Scene(600 + seed, systems=1)
    scene.clears = 0.0
    scene.run(20)
    feed = scene.side.feed
    for _ in range(100):
        scene.side.pod.lose_silently()
        scene.run(1)
    assert feed.state == "degraded" and DOUBTED in feed.reasons
    assert feed.counts.predictions_over > 100 > feed.counts.predictions_under
    assert feed.counts.resyncs == 2 == 1 + 100 // RESYNC_INTERVAL_S
    scene.run(60)
    assert feed.state == "exact"
