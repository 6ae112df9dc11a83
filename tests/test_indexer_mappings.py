"""Pod mappings are served while they hold, and removed for a reason that is counted."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.mappings import Ending, PodMappings, pod_set
from indexer.match import Hit, Match

TTL_S = 30.0


class Switch:
    """An index in which everything changed, or nothing."""

    changed = False

    def unchanged(self, match: Match) -> bool:
        return not self.changed


def a_match() -> Match:
    return Match({"p": Hit(1, 1)}, 2, 1, 1, 0, np.array([1, 2], np.uint32))


def an_ending(*keys: int) -> Ending:
    return Ending(np.array(keys or [1, 2], np.uint64), 32)


def counts(mappings: PodMappings) -> dict[str, int]:
    return {reason: count for reason, count in mappings.removed.items() if count}


def test_the_name_of_a_set_of_pods_is_canonical() -> None:
    """Order and repetition don't matter; all pods are not the empty set."""
    assert pod_set(["a", "b"]) == pod_set(("b", "a", "b"))
    assert pod_set(None) is None
    assert pod_set([]) != pod_set(None)


def test_a_mapping_is_served_until_its_time_is_over() -> None:
    """The time to live is an upper bound: at it, the mapping is gone."""
    mappings = PodMappings(Switch().unchanged, TTL_S)
    ending, match = an_ending(), a_match()
    mappings.put(ending, None, match, 100.0)
    assert mappings.find(ending, None, 129.9) is match
    assert mappings.find(ending, None, 130.0) is None
    assert counts(mappings) == {"ttl": 1}
    assert (len(mappings), mappings.nbytes) == (0, 0)


def test_a_mapping_goes_with_the_first_event_that_touches_it() -> None:
    """It is not served stale for a moment, though its time is not over."""
    index = Switch()
    mappings = PodMappings(index.unchanged, TTL_S)
    ending = an_ending()
    mappings.put(ending, None, a_match(), 0.0)
    index.changed = True
    assert mappings.find(ending, None, 0.1) is None
    index.changed = False
    assert mappings.find(ending, None, 0.2) is None
    assert counts(mappings) == {"event": 1}


def test_caching_again_replaces_and_renews() -> None:
    """One mapping for one set of pods, as old as its last match."""
    mappings = PodMappings(Switch().unchanged, TTL_S)
    ending, newer = an_ending(), a_match()
    mappings.put(ending, None, a_match(), 0.0)
    once = mappings.nbytes
    mappings.put(ending, None, newer, 20.0)
    assert (len(mappings), mappings.nbytes) == (1, once)
    assert mappings.find(ending, None, 45.0) is newer
    assert mappings.cleanup(45.0, 10) == (0, True)


def test_cleaning_up_goes_in_slices() -> None:
    """At most `limit` a call, oldest first, until no expired one is left."""
    mappings = PodMappings(Switch().unchanged, TTL_S)
    for number in range(7):
        mappings.put(an_ending(), None, a_match(), float(number))
    assert mappings.cleanup(34.5, 3) == (3, False)
    assert mappings.cleanup(34.5, 3) == (2, True)
    assert mappings.cleanup(34.5, 0) == (0, True)
    assert mappings.cleanup(100.0, 2) == (2, True)
    assert counts(mappings) == {"ttl": 7}


def test_blocks_are_invalidated_by_hand() -> None:
    """Every prompt that has the block, and no other."""
    mappings = PodMappings(Switch().unchanged, TTL_S)
    has, other = an_ending(1, 2, 3), an_ending(4, 5)
    for ending in (has, other):
        mappings.put(ending, None, a_match(), 0.0)
        mappings.put(ending, frozenset("a"), a_match(), 0.0)
    assert mappings.invalidate(np.array([3, 9], np.uint64)) == 2
    assert mappings.find(has, None, 1.0) is None
    assert mappings.find(other, None, 1.0) is not None
    assert counts(mappings) == {"manual": 2}


@pytest.mark.parametrize(("enabled", "live"), [(False, True), (True, False)])
def test_nothing_is_kept_where_it_may_not_be(enabled: bool, live: bool) -> None:
    """With mappings switched off, or at an evicted end of a prompt."""
    mappings = PodMappings(Switch().unchanged, TTL_S, enabled)
    ending = an_ending()
    ending.live = live
    mappings.put(ending, None, a_match(), 0.0)
    assert mappings.find(ending, None, 0.0) is None
    assert (len(mappings), mappings.nbytes, ending.mappings) == (0, 0, {})
