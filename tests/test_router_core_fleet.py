"""All pods and who serves what: in the order in which they joined, whoever told first."""

from __future__ import annotations

from tests.fakes.cores import core_of


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
