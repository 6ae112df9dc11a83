"""One feed, as conversations: what a pod publishes, what is believed of it, and how sure it is."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from indexer.absence import LATE_S
from indexer.blocks import KeySpace
from indexer.feed import (
    BEHIND,
    BLOCK_SIZE,
    DISPUTED,
    DOUBTED,
    KEPT,
    ORPHANS,
    REPLAYING,
    TRUNCATED,
    UNCACHED,
    UNDECODABLE,
    UNKNOWN,
    UNPROVEN,
    Feed,
)
from indexer.feed_counts import FeedCounts
from indexer.index import Holding, PrefixIndex
from indexer.match import Hit
from indexer.rule import FIRST_PROOFS
from indexer.trust import LATE_BLOCKS, PROOFS, REPORTS

SPACE = KeySpace(0x5EED)
_CLEARED = ["AllBlocksCleared"]


def _feed(block_size: int | None = None, held_max: int = 100) -> tuple[Feed, PrefixIndex]:
    index = PrefixIndex(SPACE, blocks_max=1024, pods_max=2)
    return Feed(index, "pod", held_max, block_size), index


def _stored(tokens: list[int], parent: int | None = None, lora_id: int | None = None, size: int = 1) -> list[object]:
    """Blocks whose engine hashes are their first tokens."""
    return ["BlockStored", tokens[::size], parent, tokens, size, lora_id]


def _removed(*hashes: int) -> list[object]:
    return ["BlockRemoved", list(hashes)]


def _batch(clock: float, *events: object) -> bytes:
    return msgspec.msgpack.encode([clock, list(events), 0])


def _held(index: PrefixIndex, tokens: list[int], lora: str | None = None, size: int = 1) -> int:
    """Leading blocks of `tokens` on the pod."""
    match = index.match(SPACE.chain(np.array(tokens, np.uint32), size, lora=lora))
    return match.hits["pod"].blocks if "pod" in match.hits else 0


def test_blind_until_heard() -> None:
    """Nothing heard is not the same as nothing held."""
    feed, _ = _feed()
    assert feed.state == "blind" and feed.reasons and feed.last_heard is None
    assert feed.frame(0, _batch(5.0, _stored([1, 2])), now=3.0) is None
    assert feed.state == "exact" and feed.reasons == []
    assert (feed.last_number, feed.last_clock, feed.last_heard, feed.block_size) == (0, 5.0, 3.0, 1)


def test_stores_and_removals_reach_the_index() -> None:
    """In order, and counted."""
    feed, index = _feed()
    feed.frame(0, _batch(1.0, _stored([1, 2, 3])), 0.0)
    feed.frame(1, _batch(2.0, _removed(3), _stored([4], parent=2)), 0.0)
    assert _held(index, [1, 2, 3]) == 2 and _held(index, [1, 2, 4]) == 3
    feed.frame(2, _batch(3.0, _removed(99)), 0.0)
    assert feed.counts == FeedCounts(stored=4, removed=1, unknown_removals=1, in_order=3)
    assert feed.state == "exact"


def test_a_gap_is_closed_by_replay() -> None:
    """While it is open the feed is degraded; what came behind it waits."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, _stored([1])), 0.0)
    assert feed.frame(2, _batch(2.0, _stored([3], parent=2)), 0.0) == 0
    assert feed.state == "degraded" and feed.reasons == [REPLAYING] and _held(index, [1, 2, 3]) == 1
    for number, payload in enumerate((_batch(0.0, _stored([1])), _batch(1.0, _stored([2], parent=1)))):
        assert feed.replayed(number, payload, 0.0) is None
    assert feed.missing() is None and feed.replay_ended(True, 0.0) is None
    assert feed.state == "exact" and _held(index, [1, 2, 3]) == 3
    assert index.holding("pod").gpu == 3, "the batch that proved who speaks was not applied twice"


def test_what_replay_cannot_close_is_forgotten() -> None:
    """Empty is honest, stale lies; until the pod clears, some history stays unknown."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2])), 0.0)
    assert feed.frame(5, _batch(5.0, _stored([7]), _stored([9], parent=8)), 0.0) == 0
    feed.replay_ended(False, 0.0)
    assert _held(index, [1, 2]) == 0 and _held(index, [7]) == 1
    assert feed.state == "degraded" and set(feed.reasons) == {TRUNCATED, ORPHANS}
    assert feed.counts.forgotten == 1 and feed.counts.replay_failed == 1 and feed.counts.orphans == 1
    feed.frame(6, _batch(6.0, _CLEARED, _stored([1])), 0.0)
    assert feed.state == "exact" and _held(index, [1, 2]) == 1 and _held(index, [7]) == 0


def test_a_restarted_pod_holds_nothing_of_before() -> None:
    """A number seen before, with a later clock: another publisher."""
    feed, index = _feed()
    for number in range(3):
        feed.frame(number, _batch(float(number), _stored([number + 1])), 0.0)
    assert feed.frame(0, _batch(10.0, _stored([5])), 0.0) is None
    assert index.holding("pod") == Holding(1, 0, 0, 0, 0) and _held(index, [5]) == 1
    assert feed.state == "exact" and feed.counts.restart == 1


def test_a_duplicate_changes_nothing() -> None:
    """Not even the copies that are counted."""
    feed, index = _feed()
    payload = _batch(1.0, _stored([1]))
    feed.frame(0, payload, 0.0)
    feed.frame(0, payload, 0.0)
    feed.frame(1, _batch(2.0, _removed(1)), 0.0)
    assert _held(index, [1]) == 0 and feed.counts.duplicate == 1


def test_a_frame_that_is_no_batch() -> None:
    """It is counted, and the gap that it leaves is asked for; a replay that has it whole repairs it."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, _stored([1])), 0.0)
    assert feed.frame(1, b"\xc1", 0.0) == 0
    assert feed.counts.decode_errors == 1 and UNDECODABLE in feed.reasons
    assert feed.frame(2, b"", 0.0) is None, "a replay is under way"
    for number, payload in enumerate((_batch(0.0, _stored([1])), _batch(1.0, _stored([2], parent=1)))):
        feed.replayed(number, payload, 0.0)
    feed.replay_ended(True, 0.0)
    assert _held(index, [1, 2]) == 2 and feed.state == "degraded"
    feed.frame(2, _batch(2.0, _CLEARED), 0.0)
    assert feed.state == "exact"


def test_a_bad_event_degrades() -> None:
    """The events beside it count; an unknown type may say something of the pod's blocks, too."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, ["BlockMoved", 1], _stored([1])), 0.0)
    assert feed.reasons == [UNKNOWN] and feed.counts.unknown_events == 1
    feed.frame(1, _batch(1.0, ["BlockStored", 5], _stored([2], parent=1)), 0.0)
    assert feed.reasons == [UNKNOWN, UNDECODABLE] and feed.counts.decode_errors == 1 and _held(index, [1, 2]) == 2


def test_a_silent_pod_that_has_a_history() -> None:
    """Joining asks for everything; an empty answer with its end marker is an answer."""
    feed, index = _feed()
    assert feed.connected(0.0) == 0 and feed.state == "blind"
    assert feed.replayed(0, _batch(0.0, _stored([1, 2])), 0.0) is None
    feed.replay_ended(True, 0.0)
    assert feed.state == "exact" and _held(index, [1, 2]) == 2
    silent, _ = _feed()
    silent.connected(0.0)
    silent.replay_ended(True, 0.0)
    assert silent.state == "exact"
    unreachable, _ = _feed()
    unreachable.connected(0.0)
    unreachable.replay_ended(False, 0.0)
    assert unreachable.state == "blind"


def test_a_late_joiner_knows_what_it_lacks() -> None:
    """The oldest batches have left the pod's buffer: their blocks are unknown, and so is what hangs on them."""
    feed, index = _feed()
    assert feed.frame(9, _batch(9.0, _stored([3], parent=2)), 0.0) == 0
    feed.replayed(8, _batch(8.0, _stored([5, 6])), 0.0)
    feed.replay_ended(True, 0.0)
    assert set(feed.reasons) == {TRUNCATED, ORPHANS}
    assert _held(index, [5, 6]) == 2 and index.holding("pod").orphans == 1


def test_block_size_is_learned_and_checked() -> None:
    """A size other than the configured one is said for as long as it lasts."""
    feed, _ = _feed(block_size=2)
    feed.frame(0, _batch(0.0, _stored([1, 2, 3, 4], size=2)), 0.0)
    assert feed.state == "exact" and feed.block_size == 2
    feed.frame(1, _batch(1.0, _stored([1, 2, 3, 4], size=4)), 0.0)
    assert feed.reasons == [BLOCK_SIZE] and feed.block_size == 4
    feed.frame(2, _batch(2.0, _CLEARED), 0.0)
    feed.frame(3, _batch(3.0, _stored([1, 2, 3, 4], size=4)), 0.0)
    assert feed.reasons == [BLOCK_SIZE]
    feed.frame(4, _batch(4.0, _CLEARED, _stored([1, 2], size=2)), 0.0)
    assert feed.state == "exact"
    learned, _ = _feed()
    learned.frame(0, _batch(0.0, _stored([1, 2, 3, 4], size=4)), 0.0)
    assert learned.state == "exact" and learned.block_size == 4


@pytest.mark.parametrize("named", [False, True])
def test_adapters_by_number(named: bool) -> None:
    """Before 0.14 events give a LoRA adapter's number only, in order of loading from 1: its name is looked up."""
    feed, index = _feed()
    feed.adapters = ["first", "second"]
    extra = [None, "second"] if named else []
    feed.frame(0, _batch(0.0, [*_stored([1, 2], lora_id=2), *extra]), 0.0)
    feed.frame(1, _batch(1.0, _stored([3], parent=2, lora_id=2)), 0.0)
    assert _held(index, [1, 2, 3], "second") == 3
    assert _held(index, [1, 2, 3], "first") == 0 and _held(index, [1, 2, 3]) == 0


def test_an_adapter_without_a_name_is_nobody_elses() -> None:
    """Its blocks are kept apart from those of the base model."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2], lora_id=7)), 0.0)
    assert index.holding("pod").gpu == 2 and _held(index, [1, 2]) == 0


def test_names_and_salts_of_events_are_those_of_prompts() -> None:
    """The keys that extra_keys lead to are those that a prompt's adapter and salt lead to."""
    feed, index = _feed()
    events = [
        [*_stored([1, 2], lora_id=1), "GPU", "first", [["first", "salt"], ["first"]]],
        [*_stored([11, 12]), "GPU", None, [["salt"], None]],
        [*_stored([21, 22], lora_id=1), "GPU", "first", [["first"], ["first"]]],
    ]
    feed.frame(0, _batch(0.0, *events), 0.0)
    for tokens, lora, salt in (([1, 2], "first", "salt"), ([11, 12], None, "salt"), ([21, 22], "first", None)):
        for other_lora in (None, "first", "salt"):
            for other_salt in (None, "salt", "first"):
                keys = SPACE.chain(np.array(tokens, np.uint32), 1, lora=other_lora, salt=other_salt)
                assert ("pod" in index.match(keys).hits) == ((other_lora, other_salt) == (lora, salt))


def test_forget() -> None:
    """Nothing is believed any more; what comes is believed again."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, _stored([1])), 0.0)
    feed.forget()
    assert index.holding("pod") == Holding(0, 0, 0, 0, 0)
    feed.frame(1, _batch(1.0, _stored([2])), 0.0)
    assert _held(index, [2]) == 1


def test_a_dispute() -> None:
    """While it is not clear who speaks, nothing is believed, asked or not; then its whole history is."""
    feed, index = _feed()
    feed.frame(0, _batch(1.0, _stored([1, 2])), 0.0)
    assert feed.connected(0.0) == 0  # a replay is under way
    feed.dispute()
    assert _held(index, [1, 2]) == 0 and (feed.state, feed.truncated) == ("degraded", True)
    feed.replayed(0, _batch(9.0, _stored([3, 4])), 0.0)  # another publisher's
    feed.replay_ended(True, 0.0)
    feed.suspect()
    assert feed.connected(1.0) is None is feed.mend(1.0)
    assert _held(index, [3, 4]) == 0 and DISPUTED in feed.reasons
    feed.reread()
    assert feed.mend(2.0) == 0
    feed.replayed(0, _batch(1.0, _stored([1, 2])), 2.0)
    feed.replay_ended(True, 2.0)
    assert _held(index, [1, 2]) == 2 and feed.state == "exact"


def test_what_a_gap_cost_is_counted() -> None:
    """Batches that did not come, of every gap; and how each replay ended."""
    feed, _ = _feed()
    feed.frame(0, _batch(0.0), 0.0)
    for number in (3, 5):
        feed.frame(number, _batch(float(number)), 0.0)
        feed.replayed(number - 1, _batch(number - 1.0), 0.0)
        feed.replay_ended(complete=number == 5, now=0.0)
    assert (feed.counts.missed, feed.counts.replay_failed, feed.counts.replay_complete) == (3, 1, 1)


def test_a_history_without_its_end_is_believed_by_nobody() -> None:
    """It may lack removals: nothing of it is in a match until its end came, or something that follows it."""
    feed, index = _feed()
    feed.connected(0.0)
    feed.replayed(0, _batch(0.0, _stored([1, 2])), 0.0)
    feed.replay_ended(False, 0.0)
    assert feed.behind and feed.reasons == [BEHIND] and _held(index, [1, 2]) == 0
    feed.frame(1, _batch(1.0), 0.0)
    assert not feed.behind and feed.state == "exact" and _held(index, [1, 2]) == 2


def test_what_is_not_known_of_a_pod_is_said() -> None:
    """What hides history, what it says of itself, and by which rule it reuses blocks."""
    feed, _ = _feed()
    feed.frame(9, _batch(9.0), 0.0)
    feed.replayed(8, _batch(8.0), 0.0)
    assert feed.truncated and feed.reasons == [TRUNCATED]
    pod, _ = _feed()
    pod.frame(0, _batch(0.0), 0.0)
    pod.told(drafter=True, caches=True)
    assert pod.reasons == [UNPROVEN]
    pod.told(drafter=False, caches=False)
    assert pod.reasons == [UNCACHED]
    pod.told(drafter=False, caches=True)
    assert pod.state == "exact"


def test_a_drafter_whose_tokens_hashes_cover_takes_no_block_away() -> None:
    """That a pod has one leaves its rule to be proven, until its first blocks say that their hashes tell all of it."""
    feed, _ = _feed()
    feed.frame(0, _batch(0.0), 0.0)
    feed.told(drafter=True, caches=True)
    assert feed.reasons == [UNPROVEN]
    tokens = {"block_hashes": [17], "parent_block_hash": None, "token_ids": [5, 6], "block_size": 2}
    feed.frame(1, _batch(1.0, {"type": "BlockStored", **tokens, "lookahead_token_ids": [[7]]}), 0.0)
    assert feed.reasons == [] and feed.state == "exact"


def test_while_it_is_disputed_who_speaks_nobody_is_asked() -> None:
    """A replay would be of one of them, and it is not known of which; nor is anything believed that comes."""
    feed, index = _feed()
    feed.frame(0, _batch(1.0), 0.0)
    feed.dispute()
    assert feed.connected(1.0) is None and not feed.replaying and feed.reasons == [DISPUTED]
    feed.frame(1, _batch(2.0, _stored([1])), 1.0)
    assert _held(index, [1]) == 0
    feed.unlearn()
    assert feed.mend(1.0) is None and not feed.replaying


def test_who_was_never_heard_has_nothing_to_read_anew() -> None:
    """What is forgotten of it was nothing; a pod that was heard is asked for all of its history, once."""
    feed, _ = _feed()
    feed.unlearn()
    assert feed.mend(1.0) is None and feed.state == "blind"
    feed.frame(0, _batch(1.0, _stored([1])), 2.0)
    feed.unlearn()
    assert feed.reasons == [TRUNCATED] and feed.mend(3.0) == 0 and feed.mend(4.0) is None


def test_what_is_read_anew_keeps_what_the_pod_has_shown() -> None:
    """It is the same pod: who wants its blocks forgotten says nothing against the rule that its reports have proven."""
    feed, _ = _feed()
    feed.told(drafter=True, caches=True)
    feed.frame(0, _batch(0.0, _stored([1, 2, 3])), 0.0)
    for _ in range(40):
        feed.reported(Hit(3, 3), 5, 2, 1)
    assert feed.state == "exact"
    feed.unlearn()
    assert UNPROVEN not in feed.reasons
    feed.reread()
    assert UNPROVEN in feed.reasons


def test_somebody_says_that_the_pod_was_started_anew() -> None:
    """Then it is asked whether it is the same, once."""
    feed, _ = _feed()
    feed.frame(0, _batch(0.0), 0.0)
    assert feed.mend(1.0) is None
    feed.suspect()
    assert feed.mend(2.0) == 0 and feed.mend(3.0) is None
    feed.replayed(0, _batch(0.0), 3.0)
    feed.replay_ended(True, 3.0)
    assert feed.mend(4.0) is None and feed.state == "exact"


@pytest.mark.parametrize(
    ("now", "lag_s", "copies"),
    [(5.0, 0.0, 1), (9.9, 0.0, 1), (10.0, 0.0, 2), (12.0, 3.0, 1), (13.0, 3.0, 2), (11.0, -5.0, 2)],
)
def test_how_long_a_full_report_may_be_told(now: float, lag_s: float, copies: int) -> None:
    """As long as was said, by the clock of the pod, as far as its events come late; a clock that is ahead shows
    nothing."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2])), 0.0)
    feed.full_report_began()
    feed.full_report_ended(10.0)
    feed.full_report_began()
    feed.full_report_ended(4.0)
    feed.lag_s = lag_s
    feed.frame(1, _batch(1.0, _stored([1, 2])), now)
    feed.frame(2, _batch(2.0, _removed(1, 2)), now)
    assert _held(index, [1, 2]) == (2 if copies == 2 else 0)


def test_a_full_report_under_way() -> None:
    """Stores that start a prompt are no copies until the last such request has ended; before the first, they are."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2]), _stored([1, 2])), 0.0)
    feed.full_report_began()
    feed.full_report_began()
    feed.full_report_ended(0.0)
    feed.frame(1, _batch(1.0, _stored([1, 2])), 99.0)
    feed.frame(2, _batch(2.0, _removed(1, 2)), 99.0)
    assert _held(index, [1, 2]) == 2
    feed.frame(3, _batch(3.0, _stored([2], parent=1)), 99.0)
    feed.frame(4, _batch(4.0, _removed(1, 2)), 99.0)
    assert _held(index, [1]) == 0 and index.holding("pod").gpu == 1, "what continues a prompt was computed"


def test_what_comes_by_a_replay_may_be_told_again_at_any_time() -> None:
    """Our own delay has no bound: one copy too few is a block that is not known, one too many would be stale."""
    feed, index = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2])), 0.0)
    feed.full_report_began()
    feed.full_report_ended(1.0)
    feed.frame(2, _batch(2.0), 99.0)
    feed.replayed(0, _batch(0.0, _stored([1, 2])), 99.0)
    feed.replayed(1, _batch(1.0, _stored([1, 2])), 99.0)
    feed.frame(3, _batch(3.0, _removed(1, 2)), 99.0)
    assert _held(index, [1, 2]) == 0


def test_what_may_have_come_late_is_no_error() -> None:
    """By blocks of the pod's size: its prompts may be longer or shorter by some when it looks."""
    late = LATE_BLOCKS * 4
    for error, state in ((late, "exact"), (late + 1, "degraded")):
        feed, _ = _feed()
        feed.frame(0, _batch(0.0, _stored([1, 2, 3, 4], size=4)), 0.0)
        for _ in range(20):
            feed.counted(100, 100 - error)
        assert feed.state == state


def _misses(feed: Feed, number: int, now: float, lost: bytes | None = None) -> None:
    """Reports that are off, then batch `number` is found missing (or, with `lost` None, nothing is), and read again."""
    for _ in range(REPORTS):
        feed.reported(Hit(8, 8), 100, 0, 1, now)
    assert feed.state == "degraded"
    clock = feed.last_clock
    if lost is None:
        feed.connected(now + 1)
    else:
        feed.frame(number + 1, _batch(now + 1), now + 1)
    feed.replayed(number - 1, _batch(clock), now + 2)
    if lost is not None:
        feed.replayed(number, lost, now + 2)
    feed.replay_ended(True, now + 2)


def test_what_was_off_while_batches_were_missing_is_explained_by_them() -> None:
    """Read again, the feed is what it was before: neither the rule nor the feed was wrong."""
    feed, _ = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2, 3, 4, 5, 6, 7, 8])), 0.0)
    _misses(feed, 1, 10.0, _batch(1.0, _removed(1, 2, 3, 4, 5, 6, 7, 8)))
    assert feed.state == "exact", feed.reasons


def test_what_was_off_while_nothing_was_missing_is_not_explained() -> None:
    """Nor is what was off before the last batch that came in order."""
    feed, _ = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2, 3, 4, 5, 6, 7, 8])), 0.0)
    _misses(feed, 1, 10.0)
    assert DOUBTED in feed.reasons
    feed, _ = _feed()
    feed.frame(0, _batch(9.5, _stored([1, 2, 3, 4, 5, 6, 7, 8])), 10.5)
    _misses(feed, 1, 10.0, _batch(10.7))
    assert DOUBTED in feed.reasons


@pytest.mark.parametrize(("late_s", "state"), [(LATE_S / 2, "degraded"), (LATE_S + 20, "exact")])
@pytest.mark.parametrize("skew_s", [-1e6, 0.0, 1e6])
def test_what_was_off_while_batches_were_on_their_way_is_explained_by_them(
    late_s: float, state: str, skew_s: float
) -> None:
    """A queue that was full, or a cut after which the publisher goes on where it was: nothing is missing. How the
    clocks of pod and router differ is not known."""
    feed, _ = _feed()
    feed.frame(0, _batch(skew_s, _stored([1, 2, 3, 4, 5, 6, 7, 8])), 0.0)
    feed.frame(1, _batch(skew_s + 5), 5.1)
    for _ in range(REPORTS):
        feed.reported(Hit(8, 8), 100, 0, 1, 50.0)
    assert feed.state == "degraded"
    feed.frame(2, _batch(skew_s + 50 - late_s / 2, _removed(1, 2, 3, 4, 5, 6, 7, 8)), 50 + late_s / 2)
    assert feed.state == state, feed.reasons


def test_a_rule_is_excused_once_until_it_is_seen_right() -> None:
    """A feed that has holes again and again must not keep a wrong rule alive."""
    feed, _ = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2, 3, 4, 5, 6, 7, 8])), 0.0)
    _misses(feed, 1, 10.0, _batch(1.0))
    _misses(feed, 3, 20.0, _batch(3.0))
    assert UNPROVEN in feed.reasons
    feed, _ = _feed()
    feed.frame(0, _batch(0.0, _stored([1, 2, 3, 4, 5, 6, 7, 8])), 0.0)
    _misses(feed, 1, 10.0, _batch(1.0))
    for _ in range(FIRST_PROOFS):
        feed.reported(Hit(8, 8), 100, 8, 1, 15.0)
    _misses(feed, 3, 20.0, _batch(3.0))
    assert feed.state == "exact", feed.reasons


def test_a_rank_is_known_from_the_newest_batch_that_tells_it() -> None:
    """Versions that do not tell it leave it as it was."""
    feed, _ = _feed()
    feed.frame(0, msgspec.msgpack.encode([0.0, [], 3]), 0.0)
    feed.frame(1, msgspec.msgpack.encode([1.0, []]), 0.0)
    assert feed.rank == 3


def test_ordinary_events_do_not_end_a_row_of_proofs() -> None:
    """A pod whose oldest history is gone is exact again once so many of its reports in a row were foretold."""
    feed, index = _feed()
    feed.frame(9, _batch(9.0), 0.0)
    feed.replayed(8, _batch(8.0, _stored([1, 2, 3])), 0.0)
    assert feed.reasons == [TRUNCATED]
    for number in range(PROOFS):
        assert feed.state == "degraded"
        feed.frame(10 + number, _batch(10.0 + number, _stored([100 + number]), _removed(100 + number)), 0.0)
        feed.reported(Hit(3, 3), 5, 3, 1)
    assert feed.state == "exact" and _held(index, [1, 2, 3]) == 3


def test_the_groups_of_a_pod_outlive_its_blocks() -> None:
    """What is forgotten is read anew, of the same pod; only one that was started anew may have others."""
    feed, index = _feed()
    window = {"block_size": 1, "token_ids": [1, 2, 3], "group_idx": 1, "kv_cache_spec_kind": "sliding_window"}
    whole = {"type": "BlockStored", "block_hashes": [1, 2, 3], "parent_block_hash": None, "lora_id": None}
    events = [
        whole | window | {"group_idx": 0, "kv_cache_spec_kind": "full_attention"},
        whole | window | {"kv_cache_spec_sliding_window": 2},
    ]
    feed.frame(0, _batch(0.0, *events), 0.0)
    assert feed.counts.ignored == 3

    def is_hybrid() -> bool:
        groups = index.groups("pod")
        return groups is not None and groups.hybrid

    for forget in (feed.forget, feed.unlearn, feed.reread):
        forget()
        assert is_hybrid()
    feed.frame(0, _batch(9.0, _stored([1])), 0.0)
    assert not is_hybrid()


def test_a_guess_at_the_groups_takes_proofs() -> None:
    """A kind that we do not know hides what its hits hang on; of another pod, nothing is guessed any more."""
    feed, _ = _feed()
    odd = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "lora_id": None, "token_ids": [1]}
    odd |= {"block_size": 1, "group_idx": 1, "kv_cache_spec_kind": "something_new"}
    feed.frame(0, _batch(0.0, odd), 0.0)
    assert UNPROVEN in feed.reasons
    feed.frame(0, _batch(9.0, _stored([1])), 0.0)
    assert feed.state == "exact"


def test_another_publisher_has_another_clock() -> None:
    """How far its predecessor's was behind ours says nothing of when its batches come late."""
    feed, _ = _feed()
    feed.frame(0, _batch(1000.0, _stored([1])), 1000.0)
    feed.frame(1, _batch(1001.0, _stored([2])), 1001.0)
    feed.frame(0, _batch(1002.0, _stored([1, 2, 3, 4, 5, 6, 7, 8])), 5000.0)
    assert feed.counts.restart == 1
    for _ in range(REPORTS):
        feed.reported(Hit(8, 8), 100, 0, 1, 5002.0)
    assert DOUBTED in feed.reasons
    feed.frame(1, _batch(1005.0), 5003.0)
    assert DOUBTED in feed.reasons, "the batch was on its way for no longer than the one before"


def test_blocks_are_as_large_as_those_that_were_stored() -> None:
    """In the pod's own cache: a lower tier has chunks of its own, and of what could not be entered nothing is known."""
    feed, _ = _feed()
    feed.frame(0, _batch(1.0, _stored([3, 4], parent=99, size=2)), 0.0)
    assert feed.block_size is None
    feed.frame(1, _batch(2.0, _stored([1, 2, 3, 4], size=2)), 0.0)
    chunk = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1, 2, 3, 4]}
    feed.frame(2, _batch(3.0, {**chunk, "block_size": 4, "lora_id": None, "medium": "CPU"}), 0.0)
    assert feed.counts.stored == 3 and feed.block_size == 2


def test_what_waited_to_be_sure_is_forgotten_with_the_rest() -> None:
    """Events of a lower tier from before a feed was read anew are never entered after it."""
    feed, index = _feed()
    below = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1], "block_size": 1}
    feed.frame(0, _batch(1.0, _stored([1]), {**below, "lora_id": None, "medium": "CPU"}), 0.0)
    later = {**below, "block_hashes": [7], "token_ids": [7], "lora_id": None, "medium": "CPU"}
    feed.frame(1, _batch(2.0, _CLEARED, later), 0.0)
    assert KEPT in feed.reasons and _held(index, [7]) == 0, "it waits"
    feed.forget()
    feed.frame(2, _batch(3.0, _CLEARED), 0.0)
    assert _held(index, [7]) == 0 and feed.counts.cleared == 2
