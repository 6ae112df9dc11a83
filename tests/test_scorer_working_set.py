"""What lives in a pod's cache: what is used, or was a moment ago; what contexts share counts once."""

from __future__ import annotations

import random

import numpy as np

from indexer.blocks import Keys
from scorer.chains import Chain, Chains
from scorer.working_set import LIVE_S, WorkingSet

SIZE = 256  # tokens a block: every key is kept


def keys(*blocks: int) -> Keys:
    return np.array(blocks, np.uint64)


def ask(chains: Chains, lives: WorkingSet, *blocks: int, now: float = 0.0) -> Chain:
    known = chains.ask(keys(*blocks), SIZE, SIZE * len(blocks), now)
    assert known is not None
    lives.begin(known.chain)
    return known.chain


def test_what_is_used_and_what_was_a_moment_ago() -> None:
    """However many use it; until its time is over, or at once if nothing came of it."""
    chains, lives = Chains(10_000), WorkingSet()
    first = ask(chains, lives, 1, 2, 3)
    assert lives.tokens(0.0) == 3 * SIZE
    assert ask(chains, lives, 1, 2, 3, 4) is first
    assert lives.tokens(1.0) == 4 * SIZE
    lives.end(first, True, 10.0)
    assert lives.tokens(500.0) == 4 * SIZE, "somebody uses it"
    lives.end(first, True, 500.0)
    assert lives.tokens(560.0) == 4 * SIZE and lives.tokens(560.1) == 0
    other = ask(chains, lives, 9, now=600.0)
    for served in (False, False, True):  # once more than it was used
        lives.end(other, served, 601.0)
    assert lives.tokens(601.0) == lives.contexts(601.0) == lives.tokens(700.0) == 0


def test_what_several_share_counts_once() -> None:
    """Also when the one that had it first is gone; and what would come is counted beside it."""
    chains, lives = Chains(10_000), WorkingSet()
    first = ask(chains, lives, 1, 2, 3, 4, 5)
    second = ask(chains, lives, 1, 2, 7)
    assert lives.tokens(0.0) == 6 * SIZE
    lives.end(first, True, 0.0)
    assert lives.tokens(61.0) == 3 * SIZE
    for blocks, more in (((1, 2, 7, 8), 1), ((1, 2, 9), 1), ((1, 2, 3, 9), 2), ((1, 2, 3, 4, 5, 6), 4), ((40, 50), 2)):
        place = chains.place(keys(*blocks), SIZE)
        assert lives.tokens_with(place, SIZE * len(blocks), 61.0) == (3 + more) * SIZE
    lives.end(second, True, 100.0)
    assert lives.tokens(200.0) == 0


def test_what_another_one_begins_with_is_there_already() -> None:
    """A prompt that is no more than the beginning of one that lives takes no room."""
    chains, lives = Chains(10_000), WorkingSet()
    ask(chains, lives, 1, 2, 3, 4)
    ask(chains, lives, 1, 2)
    assert lives.tokens(0.0) == 4 * SIZE and lives.contexts(0.0) == 2


def test_as_sets_of_blocks() -> None:
    """Contexts that grow, fork, and are cut and go on otherwise: all that lives is what their prompts have in all."""
    rng = random.Random(3)
    chains, lives = Chains(1_000_000), WorkingSet()
    contexts = [[number] for number in range(1, 5)]
    used: list[tuple[Chain, list[int]]] = []
    idle: dict[Chain, tuple[float, list[int]]] = {}
    new, now = 1000, 0.0
    for _ in range(600):
        now += rng.expovariate(0.2)
        context = rng.choice(contexts)
        if rng.random() < 0.04:
            context = context[: rng.randint(1, len(context))]
            contexts[rng.randrange(len(contexts))] = context
        context += range(new, new + rng.randint(1, 5))
        new += 5
        chain = ask(chains, lives, *context, now=now)
        used = [(each, list(context) if each is chain else blocks) for each, blocks in used]
        used.append((chain, list(context)))
        idle.pop(chain, None)
        if len(used) > 3:
            chain, blocks = used.pop(rng.randrange(3))
            lives.end(chain, True, now)
            if chain not in [each for each, _ in used]:
                idle[chain] = (now, blocks)
        kept = [blocks for at, blocks in idle.values() if at >= now - LIVE_S] + [blocks for _, blocks in used]
        union = SIZE * len({block for blocks in kept for block in blocks})
        assert union <= lives.tokens(now) <= 1.1 * union
    for chain, _ in used:
        lives.end(chain, True, now)
    assert lives.tokens(now + 100.0) == 0


def test_how_many_contexts_live() -> None:
    """Those in use and those that were a moment ago; who comes again meanwhile does not begin anew."""
    chains, lives = Chains(10_000), WorkingSet()
    first, second = (chains.ask(keys(block, block + 1), SIZE, 2 * SIZE, 0.0) for block in (1, 11))
    assert first is not None and second is not None
    assert lives.begin(first.chain) and not lives.begin(first.chain) and lives.begin(second.chain)
    assert lives.contexts(0.0) == 2
    lives.end(first.chain, True, 1.0)
    lives.end(second.chain, True, 2.0)
    assert lives.contexts(62.0) == 2, "one is in use, the other was within a minute"
    assert not lives.begin(second.chain)
    lives.end(second.chain, True, 70.0)
    lives.end(first.chain, False, 70.0)
    assert lives.contexts(70.0) == 1 and lives.tokens(70.0) == 2 * SIZE, "nothing came of the last one's request"
    assert lives.contexts(130.1) == 0 and lives.begin(second.chain)
