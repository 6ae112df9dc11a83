"""The index, fed with what real vLLM servers published, against the cached tokens that they reported themselves."""

from __future__ import annotations

import random

import pytest

from indexer.blocks import KeySpace
from indexer.feed import REPLAYING, Feed
from indexer.index import PrefixIndex
from indexer.match import MISS, Hit
from tests.fakes.recordings import (
    DRAFTERS,
    VERSIONS,
    Ask,
    Frame,
    Recording,
    metrics,
    recording,
    replay,
    small_recording,
)

_HELD_MAX = 10_000

_AGREE = {
    "vllm-0.32.0": 230, "vllm-0.28.0": 330, "vllm-0.20.2": 313,
    "vllm-0.11.2.post2": 296, "vllm-0.10.1.1.post2": 262,
}  # fmt: skip

# Request -> (predicted, reported). Before 0.17 events do not tell what a salted block was hashed with: salted prompts
# are not found, and an unsalted one is taken for its salted twin. 0.10.1 reports no ids: those of its /tokenize are not
# the real ones where documents or a truncation are asked for.
_DISAGREE: dict[str, dict[int, tuple[int, int]]] = {
    "vllm-0.32.0": {},
    "vllm-0.28.0": {},
    "vllm-0.20.2": {},
    "vllm-0.11.2.post2": {52: (0, 48), 55: (0, 48), 57: (0, 272), 58: (272, 0)},
    "vllm-0.10.1.1.post2": {
        49: (0, 48), 52: (0, 48), 54: (0, 272), 55: (272, 0), 69: (48, 0), 94: (272, 0),
    },
}  # fmt: skip


class _Fleet:
    """One index with a feed for each publisher of a recording; the publishers' histories can be replayed."""

    def __init__(self, recorded: Recording, rng: random.Random | None = None) -> None:
        self.space = KeySpace(0x5EED)
        self.index = PrefixIndex(self.space, blocks_max=4096, pods_max=4)
        self.endpoints = sorted({frame.endpoint for frame in recorded.frames})
        self.feeds = {endpoint: Feed(self.index, endpoint, _HELD_MAX) for endpoint in self.endpoints}
        self.published: dict[str, list[bytes]] = {endpoint: [] for endpoint in self.endpoints}
        self.lost = 0
        self._recorded = recorded
        self._done = 0
        self._rng = rng  # loses frames; None: nothing is lost

    def publish_until(self, count: int) -> None:
        """The recording's next frames, up to `count` in all; with an `rng`, half of them are lost on the way."""
        for frame in self._recorded.frames[self._done : count]:
            assert frame.number == len(self.published[frame.endpoint])
            self.published[frame.endpoint].append(frame.payload)
            if self._rng is not None and self._rng.random() < 0.5:
                self.lost += 1
            else:
                self._frame(frame)
        self._done = max(self._done, count)

    def repair(self) -> None:
        """As after a reconnect: every feed asks for what it may have missed."""
        for endpoint, feed in self.feeds.items():
            self.answer(endpoint, feed.connected(0.0))

    def answer(self, endpoint: str, start: int | None) -> None:
        """Replay from `start` to the newest batch, as vLLM does; with an `rng`, answers in the middle are lost too."""
        feed, history = self.feeds[endpoint], self.published[endpoint]
        while start is not None:
            for number in range(start, len(history)):
                inside = start < number < len(history) - 1
                if self._rng is None or not inside or self._rng.random() < 0.9:
                    assert feed.replayed(number, history[number], 0.0) is None
            start = feed.missing()
            if start is None:
                start = feed.replay_ended(True, 0.0)

    def predicted(self, ask: Ask, endpoint: str) -> int:
        size, rule = self._recorded.block_size, self.feeds[endpoint].trust.rule
        assert rule is not None
        return rule.blocks(self.hit(ask, endpoint), len(ask.tokens), size) * size if ask.reads_cache else 0

    def hit(self, ask: Ask, endpoint: str) -> Hit:
        grain = self.feeds[endpoint].grain or self._recorded.block_size
        match = self.index.match(self.space.chain(ask.tokens, grain, lora=ask.lora, salt=ask.salt))
        assert self.index.unchanged(match)
        return match.hits.get(endpoint, MISS)

    def told(self, figures: dict[str, float]) -> None:
        """What the pods' /metrics says."""
        for feed in self.feeds.values():
            feed.told(figures.get("drafter", 0.0) > 0, figures.get("caches", 1.0) > 0)

    def reported(self, ask: Ask, endpoint: str) -> None:
        """The pod's usage tells what it had cached."""
        if ask.n == 1 and ask.reads_cache:
            self.feeds[endpoint].reported(
                self.hit(ask, endpoint), len(ask.tokens), ask.cached, self._recorded.block_size
            )

    def _frame(self, frame: Frame) -> None:
        self.answer(frame.endpoint, self.feeds[frame.endpoint].frame(frame.number, frame.payload, 0.0))


def _disagreeing(fleet: _Fleet, recorded: Recording, repair: bool) -> dict[int, tuple[int, int]]:
    """Ask -> (predicted, reported) where they differ, of all asks with n = 1 on the only publisher."""
    wrong = {}
    for ask in recorded.asks:
        fleet.publish_until(ask.before)
        if repair:
            fleet.repair()
        predicted = fleet.predicted(ask, fleet.endpoints[0])
        if ask.n == 1 and predicted != ask.cached:
            wrong[ask.number] = (predicted, ask.cached)
    return wrong


@pytest.mark.parametrize("version", VERSIONS)
def test_predicts_what_vllm_reports(version: str) -> None:
    """Events alone predict the cached tokens of every exclusive single-prompt request, but for the named ones."""
    recorded = recording(version)
    fleet = _Fleet(recorded)
    assert _disagreeing(fleet, recorded, repair=False) == _DISAGREE[version]
    assert sum(ask.n == 1 for ask in recorded.asks) == _AGREE[version] + len(_DISAGREE[version])
    feed = fleet.feeds[fleet.endpoints[0]]
    assert feed.state == "exact" and feed.block_size == recorded.block_size
    assert not feed.counts.orphans and not feed.counts.unknown_removals and not feed.counts.decode_errors


@pytest.mark.parametrize("version", VERSIONS)
def test_the_asks_say_something(version: str) -> None:
    """A hundred of the requests hit, phases with duplicates and evictions among them: predicting 0 would not do."""
    asks = [ask for ask in recording(version).asks if ask.n == 1]
    assert sum(ask.cached > 0 for ask in asks) >= 90
    assert {"dup_ask", "dup2_ask", "evict_ask", "after_reset"} <= {ask.phase for ask in asks}


@pytest.mark.parametrize("version", VERSIONS)
def test_siblings_hit_each_other(version: str) -> None:
    """Of requests with n > 1 vLLM reports the last sibling, which hits what the first one has just computed."""
    recorded = recording(version)
    fleet = _Fleet(recorded)
    siblings = 0
    for ask in recorded.asks:
        fleet.publish_until(ask.before)
        if ask.n > 1:
            siblings += 1
            whole = ask.expected(len(ask.tokens) // recorded.block_size, recorded.block_size)
            assert fleet.predicted(ask, "") == 0 and ask.cached == whole
    assert siblings == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_losses_are_repaired_by_replay(version: str) -> None:
    """The same truth with half of the frames lost on the way, and holes in the replays that close the gaps."""
    recorded = recording(version)
    fleet = _Fleet(recorded, random.Random(version))
    assert _disagreeing(fleet, recorded, repair=True) == _DISAGREE[version]
    feed = fleet.feeds[fleet.endpoints[0]]
    assert fleet.lost > len(recorded.frames) // 3
    assert feed.state == "exact" and not feed.counts.forgotten


@pytest.mark.parametrize("version", VERSIONS)
def test_the_recorded_replay_closes_a_gap(version: str) -> None:
    """What the server's own replay socket sent brings a feed that missed all of it to where the others are."""
    recorded, answers = recording(version), replay(version)
    whole, fleet = _Fleet(recorded), _Fleet(recorded)
    whole.publish_until(len(recorded.frames))
    first, last = answers[0][0], answers[-1][0]
    fleet.publish_until(first + 1)
    feed, newest = fleet.feeds[""], recorded.frames[-1]
    assert feed.frame(newest.number, newest.payload, 0.0) == first
    assert feed.state == "degraded" and feed.reasons == [REPLAYING]
    for number, payload in answers:
        assert feed.replayed(number, payload, 0.0) is None
    assert feed.missing() is None and feed.replay_ended(True, 0.0) is None
    assert feed.state == "exact" and last == newest.number
    assert fleet.index.holding("") == whole.index.holding("")
    for ask in recorded.asks[-40:]:
        assert fleet.predicted(ask, "") == whole.predicted(ask, "")


def test_two_ranks_are_two_holders() -> None:
    """Each rank has its own publisher, history and blocks; a reset shows on a rank with that rank's next step."""
    recorded = small_recording("vllm-0.32.0-dp2")
    fleet = _Fleet(recorded)
    assert len(fleet.endpoints) == 2 and len(recorded.asks) == 14
    for ask in recorded.asks:
        fleet.publish_until(ask.before)
        served_by = fleet.endpoints if ask.rank is None else [fleet.endpoints[ask.rank]]
        predicted = {fleet.predicted(ask, endpoint) for endpoint in served_by}
        if ask.number in (12, 13):  # the news of the reset comes with the step that this very request causes
            assert 128 in predicted and ask.cached == 0
        else:
            assert predicted == {ask.cached}, f"request {ask.number}"
    fleet.publish_until(len(recorded.frames))
    assert [feed.counts.cleared for feed in fleet.feeds.values()] == [1, 1]


def test_hybrid_groups_are_both_needed() -> None:
    """With a sliding-window group beside it, a full-attention prefix counts only if the window's blocks end it."""
    recorded = small_recording("vllm-0.32.0-hybrid")
    fleet = _Fleet(recorded)
    assert len(recorded.asks) == 29
    assert _disagreeing(fleet, recorded, repair=False) == {}
    assert sum(ask.cached > 0 for ask in recorded.asks) == 11
    assert fleet.feeds[fleet.endpoints[0]].counts.ignored > 0


# Asks with n = 1, and of those that hit.
_ASKS = {
    "vllm-0.33.0": (225, 90), "vllm-0.33.0-eagle": (374, 178), "vllm-0.32.0-eagle": (366, 146),
    "vllm-0.33.0-mtp-nolookahead": (151, 97),
}  # fmt: skip


@pytest.mark.parametrize("name", ["vllm-0.33.0", *DRAFTERS])
def test_the_rule_is_learned(name: str) -> None:
    """With a drafter or without, whatever its settings: what is foretold is what is reported, and never called exact
    before it is proven."""
    recorded = recording(name)
    fleet = _Fleet(recorded)
    fleet.told(metrics(name))
    (endpoint,) = fleet.endpoints
    feed, wrong, exact_since = fleet.feeds[endpoint], {}, None
    asks = [ask for ask in recorded.asks if ask.n == 1]
    for place, ask in enumerate(asks):
        fleet.publish_until(ask.before)
        predicted = fleet.predicted(ask, endpoint)
        if predicted != ask.cached:
            wrong[ask.number] = (predicted, ask.cached)
        if feed.state == "exact":
            exact_since = place if exact_since is None else exact_since
        else:
            assert exact_since is None, f"{ask.number}: {feed.reasons}"
        fleet.reported(ask, endpoint)
    assert wrong == {}
    assert (len(asks), sum(ask.cached > 0 for ask in asks)) == _ASKS[name]
    assert exact_since is not None and exact_since <= 32


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_rule_is_learned_from_usage_alone(name: str) -> None:
    """Where no /metrics tells of the drafter, the first hits do."""
    recorded = recording(name)
    fleet = _Fleet(recorded)
    (endpoint,) = fleet.endpoints
    wrong = []
    for place, ask in enumerate([ask for ask in recorded.asks if ask.n == 1]):
        fleet.publish_until(ask.before)
        if fleet.predicted(ask, endpoint) != ask.cached:
            wrong.append(place)
        fleet.reported(ask, endpoint)
    assert len(wrong) <= 2 and all(place < 32 for place in wrong)


def test_states_are_needed_at_the_end_of_a_hit() -> None:
    """Three groups of states beside full attention: a hit ends where all three keep theirs."""
    recorded = small_recording("vllm-0.33.0-gdn", 192)
    fleet = _Fleet(recorded)
    assert len(recorded.asks) == 29
    assert _disagreeing(fleet, recorded, repair=False) == {}
    feed = fleet.feeds[fleet.endpoints[0]]
    assert feed.state == "exact" and feed.block_size == 192


def test_an_offload_tier_goes_on_where_the_own_cache_ends() -> None:
    """What the pod's CPU holds counts from where its own cache ends, and may be all of a prompt.

    A reset of its own cache is published as one of both is: until something shows which it was, nothing is sure.
    """
    recorded = recording("vllm-0.33.0-offload")
    fleet = _Fleet(recorded)
    feed, wrong, whole = fleet.feeds[""], {}, 0
    for ask in recorded.asks:
        fleet.publish_until(ask.before)
        predicted = fleet.predicted(ask, "")
        if predicted != ask.cached:
            wrong[ask.number] = (predicted, ask.cached, feed.state)
        whole += predicted == len(ask.tokens)
        fleet.reported(ask, "")
    assert len(recorded.asks) == 97 and whole == 4 and sum(ask.cached > 0 for ask in recorded.asks) > 50
    # The news of a reset comes with the step of the next request, 96; that its blocks are offloaded once more shows
    # that the tier was emptied, too.
    assert wrong == {96: (96, 0, "exact")}
    assert feed.state == "exact" and not feed.counts.decode_errors
