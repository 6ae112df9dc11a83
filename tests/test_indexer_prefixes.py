"""The prefix store answers as if everything were computed anew, within its bytes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.blocks import Keys, KeySpace, Tokens
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored
from indexer.index import PrefixIndex
from indexer.match import Match
from indexer.prefixes import ENDING_BYTES, KEYS_BYTES, PrefixLimits, PrefixStore
from indexer.text_blocks import BLOCK_BYTES, CUT_BYTES, Family, Found, TextBlock, Variant
from tests.fakes.limits import prefix_limits
from tests.fakes.stores import Bars, as_many, ids

SPACE = KeySpace(7)
SIZE = 4
PLAIN: Variant = (SIZE, None, None)
LARGE = prefix_limits(bytes_max=10_000_000)


def never(match: Match) -> bool:
    return False


def a_store(limits: PrefixLimits = LARGE, enable_mappings: bool = True) -> tuple[PrefixStore, Family, PrefixIndex]:
    index = PrefixIndex(SPACE, blocks_max=1 << 12, pods_max=8)
    store = PrefixStore(SPACE, 11, index.unchanged, limits, enable_mappings)
    return store, store.family("test", Bars(), as_many), index


def complete(store: PrefixStore, found: Found) -> TextBlock:
    """Tokenize what is not known."""
    if found.whole is None:
        store.extend(found, found.ends(), ids(found.data[found.known :]))
    assert found.whole is not None
    return found.whole


def ask(store: PrefixStore, family: Family, data: bytes, variant: Variant = PLAIN) -> tuple[Tokens, Keys]:
    block = complete(store, store.find_longest_tokens(family, data))
    return block.tokens(), store.ending(block, variant).keys


def stored(data: bytes, pod: str) -> BlockStored:
    """The event of a pod that has stored all full blocks of `data`, under hashes of its own."""
    keys = SPACE.chain(ids(data), SIZE)
    hashes = [int(key) ^ ord(pod) for key in keys]
    return BlockStored(hashes, None, ids(data)[: len(keys) * SIZE], SIZE)


def weighed(blocks: Iterable[TextBlock]) -> int:
    """What blocks weigh, from what they are made of."""
    total = 0
    for block in blocks:
        total += BLOCK_BYTES + CUT_BYTES * len(block.cuts) + len(block.ids)
        total += sum(KEYS_BYTES + len(keys) for keys in block.keys.values())
        total += sum(ENDING_BYTES + ending.keys.nbytes for ending in block.endings.values())
    return total


TEXT = b"the system prompt|is long|and then some more|question one?"


def test_a_known_text_is_found_whole() -> None:
    """The second time nothing is left to tokenize, and tokens and keys are those of the whole."""
    store, family, _ = a_store()
    assert store.find_longest_tokens(family, TEXT).block is None
    for _ in range(2):
        tokens, keys = ask(store, family, TEXT)
        assert tokens.tolist() == list(TEXT)
        assert keys.tolist() == SPACE.chain(ids(TEXT), SIZE).tolist()
    assert store.find_longest_tokens(family, TEXT).whole is not None


@pytest.mark.parametrize("other", [TEXT + b" and more|and more", TEXT[:-4] + b"two?", TEXT[:30], b"the other"])
def test_another_text_resumes_at_the_last_common_cut(other: bytes) -> None:
    """Only what stands behind the last cut before the difference is new, never less."""
    store, family, _ = a_store()
    ask(store, family, TEXT)
    found = store.find_longest_tokens(family, other)
    cuts = [cut for cut in Bars().ends(other)[:-1] if TEXT[:cut] == other[:cut]]
    assert found.known == max([cut for cut in cuts if cut in Bars().ends(TEXT)], default=0)
    assert ask(store, family, other)[1].tolist() == SPACE.chain(ids(other), SIZE).tolist()


def test_the_last_known_cut_is_found_wherever_it_is() -> None:
    """Growing steps and halving find the same cut as looking at all, with windows that have no cut."""
    long = b"".join(b"%d|" % n + b"x" * (n % 23) for n in range(80))
    cuts = Bars().ends(long)[:-1]
    for cut in cuts:
        store, family, _ = a_store()
        ask(store, family, long[:cut])
        assert store.find_longest_tokens(family, long).known == cut
        assert store.find_longest_tokens(family, long + b"|" + b"y" * 300).known == cut


def test_a_cut_inside_a_token_is_not_used() -> None:
    """Where the counter finds that cuts are not between tokens, the text counts as known whole or not at all."""
    store, _, _ = a_store()
    family = store.family("wrong", Bars(), lambda tokens, nbytes: None)
    ask(store, family, TEXT)
    assert store.find_longest_tokens(family, TEXT[:-4] + b"two?").block is None
    for data in (TEXT, TEXT[:-4] + b"two?", TEXT[:30]):
        assert ask(store, family, data)[0].tolist() == list(data)
        assert store.find_longest_tokens(family, data).whole is not None


def test_texts_that_come_at_the_same_time_share_what_they_can() -> None:
    """Both looked before either was kept: the second finds the first one's block, or is kept beside it."""
    for other in (TEXT, TEXT[: Bars().ends(TEXT)[1]], TEXT + b"|and more"):
        store, family, _ = a_store()
        both = [store.find_longest_tokens(family, data) for data in (TEXT, other)]
        for found in both:
            assert complete(store, found).tokens().tolist() == list(found.data)
            assert store.find_longest_tokens(family, found.data).whole is found.whole
        kept = dict.fromkeys(store._blocks.values())
        assert store.nbytes - store.mappings.nbytes == weighed(kept)
        assert store.clear() == len(kept)
        assert store.nbytes == store.stats().blocks == 0


def test_families_have_nothing_in_common() -> None:
    """The same text of another tokenizer is not known."""
    store, family, _ = a_store()
    ask(store, family, TEXT)
    assert store.find_longest_tokens(store.family("other", Bars(), as_many), TEXT).block is None


def test_each_variant_has_its_own_keys() -> None:
    """Block size, LoRA and salt give the keys that hashing all would give, resumed or not."""
    store, family, _ = a_store()
    for data in (TEXT, TEXT + b"|and on it goes"):
        for size, lora, salt in ((4, None, None), (5, None, "s"), (64, "l", None), (1, "l", "s"), (4, None, "t")):
            keys = ask(store, family, data, (size, lora, salt))[1]
            assert keys.tolist() == SPACE.chain(ids(data), size, None, lora, salt).tolist()


def test_variants_of_one_block_are_bounded() -> None:
    """The oldest variant's keys go, and are right when they are asked for again."""
    store, family, _ = a_store(LARGE._replace(variants_per_block_max=2))
    for salt in ("a", "b", "c", "a"):
        assert (
            ask(store, family, TEXT, (SIZE, None, salt))[1].tolist()
            == SPACE.chain(ids(TEXT), SIZE, None, None, salt).tolist()
        )
    assert store.stats().evictions["variants"] > 0


def test_what_was_used_least_recently_goes_first() -> None:
    """A prompt that is used again stays; a common beginning stays as long as a prompt that has it."""
    store, family, _ = a_store(LARGE._replace(bytes_max=20_000))
    ask(store, family, TEXT)
    for number in range(100):
        ask(store, family, TEXT[:40] + b"|%d" % number)
        assert store.find_longest_tokens(family, TEXT).whole is not None
    assert store.find_longest_tokens(family, TEXT[:40] + b"|99").whole is not None
    assert store.find_longest_tokens(family, TEXT[:40] + b"|0").whole is None
    assert store.stats().evictions["lru"] > 50


def fill(store: PrefixStore, family: Family, until_evicted: int) -> None:
    """Ask for new prompts until so many blocks have been evicted."""
    number = 0
    while store.stats().evictions["lru"] < until_evicted:
        ask(store, family, b"prompt number %d" % number)
        number += 1


def test_a_beginning_goes_with_its_last_prompt() -> None:
    """A chain that nobody uses any more is evicted as a whole, before what was used later."""
    store, family, _ = a_store(LARGE._replace(bytes_max=20_000))
    for cut in Bars().ends(TEXT):
        ask(store, family, TEXT[:cut])
    blocks = store.stats().blocks
    assert blocks > 2
    later = [b"used later %d" % number for number in range(4)]  # eviction may go one or two too far
    for text in later:
        ask(store, family, text)
    fill(store, family, until_evicted=blocks)
    assert store.find_longest_tokens(family, TEXT).block is None
    assert store.find_longest_tokens(family, later[-1]).whole is not None


def test_a_beginning_that_is_a_prompt_of_its_own_stays() -> None:
    """It was used later than the longer prompt, so it does not go with it."""
    store, family, _ = a_store(LARGE._replace(bytes_max=20_000))
    beginning = TEXT[: Bars().ends(TEXT)[0]]
    ask(store, family, TEXT)
    blocks = store.stats().blocks
    ask(store, family, beginning)
    fill(store, family, until_evicted=blocks)
    assert store.find_longest_tokens(family, beginning).whole is not None
    assert store.find_longest_tokens(family, TEXT).whole is None


def test_an_evicted_prompt_gives_back_all_its_bytes() -> None:
    """After everything was forgotten nothing is counted; forgetting is counted."""
    store, family, index = a_store()
    for text in (TEXT, TEXT + b"|more", TEXT[:20]):
        ending = store.ending(complete(store, store.find_longest_tokens(family, text)), PLAIN)
        store.cache_pod_mapping(ending, None, index.match(ending.keys), 0.0)
    blocks = store.stats().blocks
    assert store.clear() == blocks > 0
    assert store.nbytes == store.stats().blocks == store.stats().mappings == 0
    assert store.find_longest_tokens(family, TEXT).block is None


def test_a_prompt_evicted_while_it_is_tokenized_is_still_answered() -> None:
    """What was found stays good for the one who found it, though it is no longer kept."""
    store, family, _ = a_store()
    ask(store, family, TEXT[:40])
    found = store.find_longest_tokens(family, TEXT)
    assert found.known > 0
    store.clear()
    block = complete(store, found)
    assert block.tokens().tolist() == list(TEXT)
    assert store.ending(block, PLAIN).keys.tolist() == SPACE.chain(ids(TEXT), SIZE).tolist()
    assert store.nbytes == 0
    assert not store.ending(block, PLAIN).live


def test_a_text_larger_than_the_store_is_answered() -> None:
    """The bound holds, whatever is asked."""
    store, family, _ = a_store(LARGE._replace(bytes_max=3_000))
    long = TEXT * 20
    assert ask(store, family, long)[0].tolist() == list(long)
    assert store.nbytes <= 3_000


def test_a_mapping_is_served_for_its_prompt_and_pods_only() -> None:
    """Explicit pods in any order; never a longer, shorter or sibling prompt, nor other pods."""
    store, family, index = a_store()
    ending = store.ending(complete(store, store.find_longest_tokens(family, TEXT)), PLAIN)
    match = index.match(ending.keys)
    store.cache_pod_mapping(ending, ["b", "a"], match, 0.0)
    assert store.find_longest_tokens_with_mappings(family, TEXT, PLAIN, ["a", "b", "a"], 1.0).result == "hit"
    for data, pods, variant, result in (
        (TEXT, None, PLAIN, "partial"),
        (TEXT, ["a"], PLAIN, "partial"),
        (TEXT, ["a", "b"], (SIZE, None, "salt"), "partial"),
        (TEXT + b"|x", ["a", "b"], PLAIN, "partial"),
        (TEXT[:45], ["a", "b"], PLAIN, "partial"),
        (b"else", ["a", "b"], PLAIN, "miss"),
    ):
        assert store.find_longest_tokens_with_mappings(family, data, variant, pods, 1.0).result == result
    stats = store.stats()
    assert (stats.hits, stats.partials, stats.misses) == (1, 5, 2)  # the first of all was a miss


def test_asking_again_keeps_the_mappings() -> None:
    """Tokenizing the text again, or a longer one, wipes no mapping."""
    store, family, index = a_store()
    ending = store.ending(complete(store, store.find_longest_tokens(family, TEXT)), PLAIN)
    again = Found(family, TEXT, store.find_longest_tokens(family, TEXT).name, None, 0)
    store.cache_pod_mapping(ending, None, index.match(ending.keys), 0.0)
    complete(store, again)
    ask(store, family, TEXT + b"|longer")
    assert store.find_longest_tokens_with_mappings(family, TEXT, PLAIN, None, 1.0).result == "hit"


SYSTEM = b"|system one is here"
GROWN = SYSTEM + b"|q1|a much longer question of a user"
TEXTS = (SYSTEM, SYSTEM + b"|q2", GROWN, GROWN + b"|a3 a3 a3|q4", GROWN + b"|other", b"no bar in this one", b"")
PODS = ("p", "q")
requests = st.tuples(
    st.just("request"), st.sampled_from(TEXTS), st.sampled_from([None, ("p",), ("p", "q"), ("q", "p")])
)
events = st.tuples(
    st.sampled_from(["store", "remove", "clear", "drop", "predict", "expire"]),
    st.sampled_from(TEXTS),
    st.sampled_from(PODS),
)
others = st.tuples(st.sampled_from(["wait", "cleanup", "invalidate", "forget"]), st.sampled_from(TEXTS), st.just("p"))


def happen(kind: str, data: bytes, pod: str, index: PrefixIndex, now: float) -> None:
    """An event of `pod` about the blocks of `data`."""
    event = stored(data, pod)
    if kind == "store":
        index.apply(pod, event)
    elif kind == "remove":
        index.apply(pod, BlockRemoved(list(event.hashes[-1:])))
    elif kind == "clear":
        index.apply(pod, AllBlocksCleared())
    elif kind == "drop":
        index.drop(pod)
        index.sweep()
    elif kind == "predict":
        index.predict(pod, SPACE.chain(ids(data), SIZE), 0, now + 5.0)
    elif kind == "expire":
        index.expire(now)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.lists(st.one_of(requests, requests, events, others), max_size=60), st.sampled_from([2_500, 9_000, 10**6]))
def test_any_history_gives_the_answers_of_the_moment(actions: list[tuple[str, bytes, object]], bytes_max: int) -> None:
    """Requests, events, expiry and eviction in any order: tokens, keys and matches are those computed anew."""
    store, family, index = a_store(prefix_limits(bytes_max, mapping_ttl_s=10.0, pod_sets_per_block_max=2))
    now = 0.0
    for kind, data, pods in actions:
        if kind == "request":
            lookup = store.find_longest_tokens_with_mappings(family, data, PLAIN, pods, now)  # type: ignore[arg-type]
            ending = store.ending(complete(store, lookup.found), PLAIN)
            expected = index.match(SPACE.chain(ids(data), SIZE))
            assert ending.keys.tolist() == SPACE.chain(ids(data), SIZE).tolist()
            assert ending.tokens == len(data)
            if lookup.match is not None:
                assert (lookup.match.hits, lookup.match.blocks) == (expected.hits, expected.blocks)
            else:
                store.cache_pod_mapping(ending, pods, expected, now)  # type: ignore[arg-type]
        elif kind == "wait":
            now += 4.0
        elif kind == "cleanup":
            store.cleanup_expired(now, limit=2)
        elif kind == "invalidate":
            store.invalidate_mappings(SPACE.chain(ids(data), SIZE)[:1])
        elif kind == "forget":
            store.clear()
        else:
            happen(kind, data, str(pods), index, now)
        assert store.nbytes <= bytes_max
        kept = dict.fromkeys(store._blocks.values())
        assert store.stats().blocks == len(kept)
        assert store.nbytes - store.mappings.nbytes == weighed(kept)
        assert sorted(store._blocks) == sorted(name for block in kept for name in block.names)
        assert all(block.live and (block.parent is None or block.parent.live) for block in kept)
        assert set(store._leaves) == {block for block in kept if not block.children}
