"""The tiers below a pod's own cache: what events say of them, and what they leave out."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest

from indexer.blocks import KeySpace, Tokens
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored, Tier
from indexer.feed import HIDDEN, KEPT, LATER_MAX, UNKNOWN, UNTOLD, UNTOLD_S, Feed
from indexer.index import PrefixIndex
from indexer.match import MISS, Hit
from indexer.trust import PROOFS

SIZE = 4
SPACE = KeySpace(7)
PROMPT = np.arange(100, 132, dtype=np.uint32)  # 8 blocks
HASHES = list(range(11, 19))


class _Pod:
    """One pod's index and feed, told of blocks in vLLM's own maps."""

    def __init__(self, blocks_max: int = 4096) -> None:
        self.index = PrefixIndex(SPACE, blocks_max, pods_max=2)
        self.feed = Feed(self.index, "p", 100)
        self.number = 0

    def say(self, *events: dict[str, object] | list[object], now: float = 0.0) -> None:
        payload = msgspec.msgpack.encode([float(self.number + 1), list(events), 0])
        self.feed.frame(self.number, payload, now)
        self.number += 1

    def hit(self, tokens: Tokens = PROMPT, salt: str | None = None, lora: str | None = None) -> Hit:
        return self.index.match(SPACE.chain(tokens, SIZE, lora=lora, salt=salt)).hits.get("p", MISS)

    def report(self, cached: int) -> None:
        """The pod served PROMPT."""
        self.feed.reported(self.hit(), len(PROMPT), cached, SIZE)

    def cached(self, tokens: Tokens = PROMPT, salt: str | None = None) -> int:
        return self.hit(tokens, salt).usable((len(tokens) - 1) // SIZE) * SIZE


def _stored(
    hashes: list[int],
    parent: int | None = None,
    tokens: Tokens = PROMPT,
    medium: str = "GPU",
    size: int = SIZE,
    **more: object,
) -> dict[str, object]:
    return {
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens.tolist(),
        "block_size": size, "lora_id": None, "medium": medium, "lora_name": None, **more,
    }  # fmt: skip


def _placeholder(*hashes: int, medium: str = "CPU", size: int = 0) -> dict[str, object]:
    return _stored(list(hashes), None, PROMPT[:0], medium, size)


def _removed(*hashes: int, medium: str = "GPU") -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": medium}


def _one_by_one(pod: _Pod, order: list[int], medium: str = "CPU") -> list[dict[str, object]]:
    """Self-describing stores, one block each, as vLLM's offloading tells them."""
    return [
        _stored([HASHES[i]], HASHES[i - 1] if i else None, PROMPT[i * SIZE : (i + 1) * SIZE], medium) for i in order
    ]


def test_a_placeholder_is_another_place_of_a_known_block() -> None:
    """By hash alone, without size: counted, found when the own cache's copy is gone, and removed by its own removal."""
    pod = _Pod()
    pod.say(_stored(HASHES))
    pod.say(*[_placeholder(engine_hash) for engine_hash in HASHES], _placeholder(HASHES[0]))
    assert pod.feed.state == "exact" and pod.hit().near == 8
    pod.say(_removed(*HASHES))
    assert pod.hit() == Hit(8, 0, cpu=8, lower=((0, 8),)) and pod.cached() == 32
    pod.say(_removed(*HASHES, medium="CPU"))
    assert pod.hit().blocks == 1  # stored there twice, removed once
    pod.say(_removed(HASHES[0], medium="CPU"))
    assert pod.hit() == MISS and pod.feed.state == "exact" and pod.index.blocks == 0


@pytest.mark.parametrize("seed", range(6))
def test_self_describing_stores_come_in_any_order(seed: int) -> None:
    """A child before its parent, block 0 last; known to the own cache or not, in one batch or in several."""
    rng = random.Random(seed)
    pod, order = _Pod(), rng.sample(range(8), 8)
    if seed % 2:
        pod.say(_stored(HASHES))
        pod.say(*_one_by_one(pod, order), _removed(*HASHES))
    elif seed % 4:
        pod.say(*_one_by_one(pod, order))
    else:
        for event in _one_by_one(pod, order):
            pod.say(event)
    assert pod.hit() == Hit(8, 0, cpu=8, lower=((0, 8),)) and pod.feed.state == "exact"


@pytest.mark.parametrize("medium", ["CPU", "cpu", "STORAGE"])
@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_what_is_left_out_of_a_salted_block_is_not_forgotten(medium: str, described: bool, late: bool) -> None:
    """The lower tier's store says neither salt nor image: the hash's content is what the own cache told of it, also
    where that gave the block up a moment before."""
    pod = _Pod()
    pod.say(_stored([1], None, PROMPT[:4] + 500), _placeholder(1, medium=medium))
    pod.say(_stored(HASHES, extra_keys=[["tenant-a"], *[None] * 7]))
    stores = _one_by_one(pod, list(range(8)), medium) if described else [_placeholder(*HASHES, medium=medium)]
    pod.say(*([_removed(*HASHES), *stores] if late else [*stores, _removed(*HASHES)]))
    assert pod.hit() == MISS
    assert pod.cached(salt="tenant-a") == 32 and pod.feed.state == "exact"


def test_a_block_that_may_hang_on_more_than_its_tokens_is_not_believed() -> None:
    """Where some blocks of a pod are salted, one whose hash nobody told of is nobody's, and that is said."""
    pod = _Pod()
    pod.say(_stored([1], None, PROMPT[:4] + 500, extra_keys=[["tenant-a"]]))
    pod.say(*_one_by_one(pod, [2, 1, 0]))
    assert pod.hit() == MISS and pod.feed.reasons == [HIDDEN]
    pod.say(_stored(HASHES[:3], None, PROMPT[:12], extra_keys=[["tenant-b"], None, None]))
    assert pod.hit() == MISS and pod.hit(salt="tenant-b").gpu == 3


def test_a_block_that_says_what_it_hangs_on_is_believed() -> None:
    """Also of a pod some of whose blocks are salted."""
    pod = _Pod()
    pod.say(_stored([1], None, PROMPT[:4] + 500, extra_keys=[["tenant-a"]]))
    pod.say(_stored(HASHES[:4], None, PROMPT[:16], "cpu", extra_keys=[["tenant-b"], None, None, None]))
    assert pod.feed.state == "exact" and pod.hit() == MISS and pod.hit(salt="tenant-b").cpu == 4


def test_the_own_cache_corrects_what_a_lower_tier_left_out() -> None:
    """A salted block first seen in a lower tier is believed of the plain prompt only until its own cache tells all."""
    pod = _Pod()
    pod.say(*_one_by_one(pod, [0, 1]))
    assert pod.hit().cpu == 2
    pod.say(_stored(HASHES[:2], None, PROMPT[:8], extra_keys=[["tenant-a"], None]))
    assert pod.hit() == MISS and pod.hit(salt="tenant-a").gpu == 2


def test_a_placeholder_of_an_unknown_hash_is_said() -> None:
    """Its content can't be known: the tier is not wholly known any more."""
    pod = _Pod()
    pod.say(_stored(HASHES), _placeholder(99))
    assert pod.feed.state == "degraded" and pod.feed.reasons == [HIDDEN] and pod.feed.counts.hidden == 1


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("blocks", [2, 4])
def test_one_hash_may_stand_for_a_chunk(blocks: int, branch: bool) -> None:
    """vLLM 0.11 to 0.19 tells the last hash of a chunk of several blocks, and the chunk's size."""
    pod, tokens, hashes = _Pod(), PROMPT, HASHES
    pod.say(_stored(HASHES))
    if branch:  # it parts from the first inside of the second chunk
        tokens = np.concatenate([PROMPT[:20], PROMPT[20:] + 1000])
        hashes = [*HASHES[:5], 26, 27, 28]
        pod.say(_stored(hashes[5:], hashes[4], tokens[20:]))
    tails = hashes[blocks - 1 :: blocks]
    pod.say(_placeholder(*tails, size=blocks * SIZE), _removed(*{*HASHES, *hashes}))
    assert pod.hit(tokens) == Hit(8, 0, cpu=8, lower=((0, 8),)) and pod.feed.block_size == SIZE
    assert pod.feed.state == "exact"
    pod.say(_removed(tails[1], medium="CPU"))
    assert pod.hit(tokens).blocks == blocks
    pod.say(_removed(tails[0], *tails[2:], medium="CPU"))
    assert pod.hit(tokens) == MISS and pod.index.blocks == 0


def test_chunks_with_tokens_and_hashes_of_their_own() -> None:
    """LMCache names chunks of many blocks by hashes of its own: their content is that of their tokens."""
    pod = _Pod()
    pod.say(_stored(HASHES))
    pod.say(_stored([901], None, PROMPT[:16], "cpu", 16), _stored([902], 901, PROMPT[16:], "cpu", 16))
    pod.say(_removed(*HASHES))
    assert pod.hit() == Hit(8, 0, cpu=8, lower=((0, 8),)) and pod.feed.block_size == SIZE
    pod.say(_stored([903], 902, PROMPT[:6] + 50, "cpu", 6))  # a last chunk that is no whole blocks
    assert pod.feed.reasons == [HIDDEN]
    pod.say(_removed(902, medium="cpu"))
    assert pod.hit().blocks == 4


CONNECTORS: dict[str, dict[str, Any]] = {
    "LMCache": {"medium": "cpu", "size": 16},
    "LMCache in blocks": {"medium": "CPU"},
    "Mooncake": {"medium": "cpu", "group_idx": 0},
}
"""What tells of stores only, by connector, as it does."""


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_tier_that_tells_of_no_removal_is_not_exact_for_ever(connector: str) -> None:
    """Predictions that come true make it sure again, for a while."""
    pod, said = _Pod(), {"size": SIZE, **CONNECTORS[connector]}
    size = said["size"]
    pod.say(_stored(HASHES), _stored([901], None, PROMPT[:size], **said))
    pod.say(_stored([902], 901, PROMPT[size : 2 * size], **said), now=UNTOLD_S)
    assert pod.feed.state == "exact"
    pod.say(_stored([903], None, PROMPT[:size] + 900, **said), now=UNTOLD_S + 1)
    assert pod.feed.reasons == [UNTOLD]
    for _ in range(PROOFS):
        pod.report(32 if size == 16 else 28)  # a tier that has all of a prompt gives its last block, too
    assert pod.feed.state == "exact"
    pod.say(_stored([904], None, PROMPT[:size] + 1800, **said), now=2 * UNTOLD_S + 2)
    assert pod.feed.reasons == [UNTOLD]


def test_a_tier_that_tells_of_removals_is_believed() -> None:
    """Of whichever connector; and so is vLLM's own offloading, which may have given up nothing yet."""
    for own in (True, False):
        pod, more = _Pod(), {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}
        pod.say(_stored(HASHES))
        for number in range(8):
            size = SIZE if own else 16
            stored = _stored([901 + number], None, PROMPT[:size] + 900 * number, "cpu", size, **(more if own else {}))
            pod.say(stored, now=number * UNTOLD_S)
            if not own:
                pod.say(_removed(901 + number, medium="cpu"), now=number * UNTOLD_S)
        assert pod.feed.state == "exact"


@pytest.mark.parametrize(
    ("own", "lower", "tokens", "cached"),
    [
        ([0, 1, 2], [3, 4], 32, 20),  # it goes on where the own cache ends
        ([0, 1, 3], [2], 32, 12),  # a block of the own cache behind one that was loaded is not used
        ([1, 2], [0], 32, 4),
        ([0, 1, 2], [1, 2, 3], 32, 16),
        ([0, 1, 2, 3], [], 16, 12),  # the last token is always computed
        ([0, 1, 2, 3], [3], 16, 16),  # but not where a lower tier has the last block
        ([0, 1, 2, 3], [2], 16, 12),
        ([], [0, 1, 2, 3], 16, 16),
        ([], [1, 2, 3], 16, 0),
    ],
)
def test_the_lower_tiers_continue_the_own_cache(own: list[int], lower: list[int], tokens: int, cached: int) -> None:
    """cached_tokens = max(own, own continued by lower tiers), of which only the own cache leaves the last token out."""
    pod = _Pod()
    pod.say(_stored(HASHES), _placeholder(*HASHES))
    pod.say(_removed(*[h for i, h in enumerate(HASHES) if i not in own]))
    pod.say(_removed(*[h for i, h in enumerate(HASHES) if i not in lower], medium="CPU"))
    assert pod.cached(PROMPT[:tokens]) == cached


def _offloaded() -> _Pod:
    pod = _Pod()
    pod.say(_stored(HASHES), _placeholder(*HASHES[:6]))
    pod.say({"type": "AllBlocksCleared"})
    return pod


def test_a_clear_is_about_the_own_cache() -> None:
    """What lower tiers hold then is not said: it is believed, and not called exact until a report has shown it."""
    pod = _offloaded()
    assert pod.hit() == Hit(6, 0, cpu=6, lower=((0, 6),)) and pod.feed.reasons == [KEPT]
    pod.report(24)
    assert pod.feed.state == "exact" and pod.hit().cpu == 6


def test_a_report_shows_that_the_lower_tiers_were_cleared_too() -> None:
    """Then they are forgotten, and all is sure again."""
    pod = _offloaded()
    pod.report(0)
    assert pod.feed.state == "exact" and pod.hit() == MISS
    assert pod.feed.counts.predictions_over == 0, "it was in doubt: nothing was foretold wrongly"
    assert not pod.index.sweep() and pod.index.blocks == 0


def test_a_block_that_is_offloaded_again_shows_it_too() -> None:
    """What was there already is only stored again if it was gone; what came since stays."""
    pod = _offloaded()
    other = PROMPT + 700
    pod.say(_stored([31, 32], None, other[:8]), _placeholder(31, 32))
    assert pod.feed.reasons == [KEPT]
    pod.say(_stored(HASHES[:1], None, PROMPT[:4]), _placeholder(HASHES[0]), _removed(31, 32))
    assert pod.feed.state == "exact" and pod.hit() == Hit(1, 1, near=1, lower=((0, 1),))
    assert pod.hit(other) == Hit(2, 0, cpu=2, lower=((0, 2),))
    pod.say(_removed(HASHES[0]), _removed(HASHES[0], medium="CPU"))
    assert pod.hit() == MISS, "it is no second copy"


def test_a_block_that_is_given_up_below_shows_that_it_was_kept() -> None:
    """Nothing is given up that is not there; one that was stored since shows nothing."""
    pod = _offloaded()
    pod.say(_stored([31], None, PROMPT[:4] + 700), _placeholder(31), _removed(31, medium="CPU"))
    assert pod.feed.reasons == [KEPT]
    pod.say(_removed(HASHES[5], medium="CPU"))
    assert pod.feed.state == "exact" and pod.hit().cpu == 5


def test_a_report_of_before_the_clear_shows_nothing() -> None:
    """The pod was asked when all was there."""
    pod = _Pod()
    pod.say(_stored(HASHES), _placeholder(*HASHES), _removed(*HASHES[4:]))
    before = pod.hit()
    pod.say({"type": "AllBlocksCleared"}, now=2.0)
    pod.feed.reported(before, len(PROMPT), 0, SIZE, at=1.0)
    assert pod.feed.reasons == [KEPT] and pod.hit().cpu == 8


def test_a_clear_says_nothing_against_the_rule() -> None:
    """What was foretold of blocks that were cleared before the pod looked is no sign of another rule."""
    pod = _Pod()
    pod.feed.told(drafter=True, caches=True)
    pod.say(_stored(HASHES))
    for _ in range(8):
        pod.report(24)
    before = pod.hit()
    pod.say({"type": "AllBlocksCleared"}, now=2.0)
    assert pod.feed.state == "exact"
    pod.feed.reported(before, len(PROMPT), 0, SIZE, at=1.0)
    assert pod.feed.state == "exact" and pod.hit() == MISS


def test_proofs_of_before_do_not_make_a_clear_sure() -> None:
    """Predictions that came true when nothing was in doubt say nothing of what is now."""
    pod = _Pod()
    pod.say(_stored(HASHES), _placeholder(*HASHES))
    for _ in range(40):
        pod.report(32)
    pod.say({"type": "AllBlocksCleared"})
    pod.feed.reported(MISS, 4, 0, SIZE)
    assert pod.feed.reasons == [KEPT]


def test_what_waits_has_a_limit() -> None:
    """Then the tiers are taken for emptied: empty is honest."""
    pod = _offloaded()
    for first in range(1000, 1000 + LATER_MAX, 1000):
        pod.say(*[_placeholder(number) for number in range(first, first + 1000)])
    assert pod.feed.reasons == [KEPT]
    pod.say(_placeholder(999))
    assert pod.hit() == MISS and KEPT not in pod.feed.reasons


@pytest.mark.parametrize("event", [{"type": "AllBlocksCleared", "medium": "CPU"}, ["AllBlocksCleared", "CPU"]])
def test_a_clear_may_name_its_tier(event: dict[str, object] | list[object]) -> None:
    """Then only that one is empty, and nothing is in doubt."""
    pod = _Pod()
    pod.say(_stored(HASHES), _placeholder(*HASHES[:6]))
    pod.say(event)
    assert pod.hit() == Hit(8, 8) and pod.feed.state == "exact"


def test_without_lower_tiers_a_clear_leaves_nothing_in_doubt() -> None:
    """All is empty, and that is sure."""
    pod = _Pod()
    pod.say(_stored(HASHES))
    pod.say({"type": "AllBlocksCleared"})
    assert pod.hit() == MISS and pod.feed.state == "exact"


@pytest.mark.parametrize("event", [["BlockStoreEvent", "key", [["memory", "x"]]], {"type": "BlockMoved", "to": 1}])
def test_an_event_of_an_unknown_type_degrades(event: dict[str, object] | list[object]) -> None:
    """Whatever it says of the pod's blocks, we do not know it."""
    pod = _Pod()
    pod.say(_stored(HASHES))
    pod.say(event)
    assert pod.feed.state == "degraded" and pod.feed.reasons == [UNKNOWN] and pod.hit().blocks == 8


def test_a_chunk_without_room_leaves_nothing_behind() -> None:
    """A chunk of which a part finds no room is refused whole."""
    index = PrefixIndex(SPACE, 16, pods_max=2)
    tokens = np.arange(96, dtype=np.uint32)
    tier: Tier = "cpu"
    assert index.apply("p", BlockStored([1], None, tokens[:4], SIZE)).stored == 1
    refused = index.apply("p", BlockStored([2], None, tokens, 96, tier))
    assert (refused.stored, refused.refused, refused.hidden) == (0, 1, 0)
    assert index.apply("p", BlockRemoved([1])).removed == 1
    assert index.blocks == 0
    assert index.apply("p", AllBlocksCleared(tier)).kept == 0


def test_a_row_of_right_predictions_shows_that_the_lower_tiers_were_kept() -> None:
    """With what they hold, all was foretold: what is known is enough."""
    pod = _offloaded()
    for _ in range(PROOFS):
        assert pod.feed.reasons == [KEPT]
        pod.feed.counted(24, 24)
    assert pod.feed.state == "exact" and pod.hit().cpu == 6


def test_a_report_that_does_not_hang_on_the_lower_tiers_shows_nothing_of_them() -> None:
    """The own cache had all that was reused."""
    pod = _offloaded()
    pod.say(_stored([31, 32], None, PROMPT[:8] + 700))
    pod.feed.reported(Hit(2, 2, near=2, lower=((0, 1),)), 12, 8, SIZE)
    assert pod.feed.reasons == [KEPT] and pod.hit().cpu == 6
    assert pod.feed.counts.predictions_equal == 1, "it was foretold rightly"


def test_what_a_report_shows_in_between_is_for_the_rule_alone() -> None:
    """More than the own cache had, and less than all: some of it was given up since, which is no sign of a clear."""
    pod = _offloaded()
    pod.report(12)
    assert pod.feed.reasons == [KEPT] and pod.hit().cpu == 6


def test_how_long_a_tier_is_silent_is_counted_from_its_first_store() -> None:
    """Not from the start of the gateway."""
    pod = _Pod()
    pod.say(_stored(HASHES), now=5_000.0)
    for now in (5_000.0, 5_000.0 + UNTOLD_S):
        pod.say(_stored([901], None, PROMPT[:16] + 900, "cpu", 16), now=now)
        assert pod.feed.state == "exact"
    pod.say(_stored([902], None, PROMPT[:16] + 950, "cpu", 16), now=5_001.0 + UNTOLD_S)
    assert pod.feed.reasons == [UNTOLD]
    pod.feed.trust.proofs = PROOFS - 1
    for _ in range(2):
        pod.say(_stored([903], None, PROMPT[:16] + 970, "cpu", 16), now=5_002.0 + UNTOLD_S)
    assert pod.feed.trust.proofs == PROOFS - 1, "from then on it is counted anew: reports may prove it"
