"""Which prompts continue which."""

from __future__ import annotations

import numpy as np

from indexer.blocks import Keys
from scorer.chains import Chains

SIZE = 16


def keys(*blocks: int) -> Keys:
    return np.array(blocks, np.uint64)


def prompt(first: int, count: int, before: Keys | None = None) -> Keys:
    new = np.arange(first, first + count, dtype=np.uint64)
    return new if before is None else np.concatenate([before, new])


def test_a_conversation_is_one_chain() -> None:
    """Each turn begins as the whole of the one before, as far as keys are kept."""
    chains, said = Chains(10_000), prompt(1, 40)
    first = chains.ask(said, SIZE, 700, 0.0)
    assert first is not None and not first.continues and first.tokens == 0
    for turn in range(1, 6):
        said = prompt(1000 * turn, 20, said)
        known = chains.ask(said, SIZE, 700 + 320 * turn, float(turn))
        assert known is not None and known.continues and known.chain is first.chain
        assert known.tokens >= 512 + 320 * (turn - 1) - 256 and known.chain.tokens == 700 + 320 * turn


def test_how_much_a_prompt_will_grow() -> None:
    """At first it is taken to be continued some times; then as was seen: documents are not, conversations are."""
    documents, chats = Chains(10_000), Chains(100_000)
    assert documents.ahead == 2000.0
    said = [prompt(100_000 * chat, 32) for chat in range(10)]
    for turn in range(40):
        documents.ask(prompt(1000 * turn, 32), SIZE, 512, float(turn))
        documents.ask(prompt(1000 * turn + 500, 32), SIZE, 512, float(turn))
        for chat in range(10):
            said[chat] = prompt(100_000 * chat + 1000 * turn + 100, 64, said[chat])
            chats.ask(said[chat], SIZE, len(said[chat]) * SIZE, float(turn))
        if turn == 2:
            assert 900 < chats.growth < 1024, "20 turns say more than a guess"
    assert documents.ahead == 0.0
    assert 7000 < chats.ahead < 8 * 1024


def test_what_begins_alike_is_another_chain() -> None:
    """Prompts that share a beginning; each goes on as its own."""
    chains, system = Chains(10_000), prompt(1, 32)
    chats = [prompt(1000 * number, 32, system) for number in range(1, 4)]
    found = [chains.ask(chat, SIZE, 1024, float(at)) for at, chat in enumerate(chats)]
    assert len({id(known.chain) for known in found if known is not None}) == 3
    assert [known.tokens for known in found if known is not None] == [0, 512, 512]
    again = chains.ask(prompt(7000, 32, chats[0]), SIZE, 1536, 9.0)
    assert again is not None and again.continues and found[0] is not None and again.chain is found[0].chain


def test_the_age_is_that_of_the_last_use() -> None:
    """A beginning that all have was used a moment ago, whoever had it first."""
    chains, system = Chains(10_000), prompt(1, 32)
    for number in range(1, 9000):
        chains.ask(prompt(1000 * number, 16, system), SIZE, 768, 10.0 * number)
    assert chains.reuse.chance(8.0) > 0.4 and chains.reuse.chance(30.0) < 0.05


def test_short_prompts_are_not_kept() -> None:
    """They cost next to nothing."""
    assert Chains(1024).ask(prompt(1, 15), SIZE, 255, 0.0) is None


def test_keys_are_bounded() -> None:
    """The oldest are forgotten: who continues them begins anew."""
    chains, old = Chains(1024), prompt(1, 160)
    chains.ask(old, SIZE, 2560, 0.0)
    for number in range(1, 200):
        chains.ask(prompt(1000 * number, 160), SIZE, 2560, float(number))
    known = chains.ask(prompt(9_000_000, 16, old), SIZE, 2816, 300.0)
    assert known is not None and not known.continues and known.tokens == 0


def test_a_prompt_has_a_place_before_it_is_asked() -> None:
    """The one that it then gets; to look changes nothing."""
    chains, said = Chains(10_000), prompt(1, 64)
    assert chains.place(said, SIZE) == (None, False, 0)
    known = chains.ask(said, SIZE, 1024, 0.0)
    assert known is not None
    for _ in range(2):
        assert chains.place(prompt(500, 16, said), SIZE) == (known.chain, True, 1024)
        assert chains.place(prompt(500, 48, said[:32]), SIZE) == (known.chain, False, 512)
        assert chains.place(prompt(700, 64), SIZE) == (None, False, 0)


def test_a_chain_has_one_name() -> None:
    """From its first prompt on, before that was asked; what is too short to be kept has none."""
    chains, said = Chains(10_000), prompt(1, 32)
    assert chains.name(said[:15], SIZE) == 0
    name = chains.name(said, SIZE)
    for turn in range(3):
        known = chains.ask(said, SIZE, len(said) * SIZE, float(turn))
        assert known is not None and known.chain.name == name == chains.name(said, SIZE)
        said = prompt(1000 * turn + 500, 32, said)
        assert chains.name(said, SIZE) == name
    fork = prompt(9000, 32, said[:32])
    assert chains.name(fork, SIZE) == int(fork[-1]) != name


def test_what_a_chain_grew_out_of() -> None:
    """The one that had the beginning first, however many others go through there; not one after the other for ever."""
    chains, said = Chains(100_000), prompt(1, 96)
    first, second = (chains.ask(each, SIZE, 1536, 0.0) for each in (said, prompt(1000, 64, said[:64])))
    third = chains.ask(prompt(2000, 64, prompt(1000, 16, said[:64])), SIZE, 2304, 0.0)
    fourth = chains.ask(prompt(3000, 64, said[:32]), SIZE, 1536, 0.0)
    assert first is not None and second is not None and third is not None and fourth is not None
    assert (first.chain.above, first.chain.shared, first.chain.depth) == (None, 0, 0)
    assert (second.chain.above, second.chain.shared, second.chain.depth) == (first.chain, 1024, 1)
    assert (third.chain.above, third.chain.shared, third.chain.depth) == (second.chain, 1280, 2)
    assert fourth.chain.above is first.chain and fourth.chain.shared == 512
    fifth = chains.ask(prompt(4000, 64, said[:64]), SIZE, 2048, 0.0)
    assert fifth is not None and (fifth.chain.above, fifth.chain.depth) == (first.chain, 1), "not of the second's own"
    depths, said = [], prompt(50_000, 32)
    for level in range(12):
        known = chains.ask(said, SIZE, len(said) * SIZE, 0.0)
        assert known is not None
        depths.append(known.chain.depth)
        said = prompt(60_000 + 1000 * level, 32, prompt(50_000 + 1000 * level, 16, said)[: len(said) - 16])
    assert depths == [*range(9), 0, 1, 2]


def test_how_often_a_prompt_is_continued() -> None:
    """As often as the share says of those that are; one that grows by much says little of the others."""
    chains = Chains(100_000)
    assert chains.continuing == 0.0
    for chat in range(40):
        said = prompt(100_000 * chat, 32)
        for turn in range(4):
            chains.ask(said, SIZE, 512 * (turn + 1), float(chat))
            chains.mix.answered()
            said = prompt(100_000 * chat + 1000 * turn + 100, 32, said)
    assert 0.7 < chains.continuing < 0.8
    assert 490 < chains.growth < 530 and 2.6 * 512 < chains.ahead < 3.4 * 512
    chains.ask(prompt(9_000_000, 16, said[:-32]), SIZE, 2048 + 10_000, 40.0)
    assert 512 < chains.growth < 512 + 0.03 * 10_000


def test_blocks_that_are_large_are_known_one_by_one() -> None:
    """Each stands for more tokens than keys are kept apart."""
    chains, said = Chains(10_000), prompt(1, 3)
    first, again = chains.ask(said, 512, 1536, 0.0), chains.ask(prompt(500, 1, said), 512, 2048, 1.0)
    assert first is not None and again is not None
    assert (again.chain, again.continues, again.tokens) == (first.chain, True, 1536)


def test_what_comes_again_with_less_behind_it_does_not_grow() -> None:
    """Not by a token; nor does it shrink."""
    chains, said = Chains(10_000), prompt(1, 33)
    for turn in range(800):
        chains.ask(said, SIZE, 2000 - turn, float(turn))
    assert 0.0 <= chains.growth < 0.01
