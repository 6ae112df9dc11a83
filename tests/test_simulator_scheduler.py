"""The scheduler's steps: batching, chunks, sharing, preemption."""

from __future__ import annotations

import pytest

from simulator.blocks import BlockPool
from simulator.events import Origin, Removed, Stored
from simulator.hashes import root_digest
from simulator.scheduler import Request, Scheduler

SIZE = 4


def scheduler_of(blocks: int = 64, sequences: int = 8, batched: int = 32) -> Scheduler:
    """A scheduler with an empty pool of blocks of 4 tokens."""
    return Scheduler(BlockPool(blocks, SIZE), root_digest("seed"), sequences, batched)


def run(scheduler: Scheduler) -> int:
    """Step until nothing is left; the number of steps."""
    steps = 0
    while scheduler.busy:
        scheduler.finish(scheduler.schedule())
        steps += 1
    return steps


def test_a_prompt_is_computed_in_chunks_within_the_budget() -> None:
    """70 tokens at 32 per step take three steps, the last of which answers the first token."""
    scheduler = scheduler_of()
    request = Request(range(70), (7,))
    scheduler.add(request)
    computed = []
    while scheduler.busy:
        work = scheduler.schedule()
        computed.append(work.tokens[request])
        answers = scheduler.finish(work)
    assert computed == [32, 32, 6]
    assert answers == [(request, 7)]


def test_decodes_go_before_prefill_in_one_step() -> None:
    """A running request gets its one token, a new prompt the rest of the budget."""
    scheduler = scheduler_of()
    old, new = Request(range(8), (1, 2, 3)), Request(range(100, 170), (1,))
    scheduler.add(old)
    scheduler.finish(scheduler.schedule())
    scheduler.add(new)
    work = scheduler.schedule()
    assert work.tokens == {old: 1, new: 31}
    assert work.prefill == [(0, 31)]


@pytest.mark.parametrize(("length", "cached"), [(1, 0), (4, 0), (5, 4), (7, 4), (8, 4), (9, 8), (16, 12)])
def test_the_last_token_is_always_computed(length: int, cached: int) -> None:
    """A repeated prompt reads min(full blocks, (tokens - 1) // block size) blocks."""
    scheduler = scheduler_of()
    for _ in range(2):
        request = Request(range(length), (1,))
        scheduler.add(request)
        run(scheduler)
    assert request.cached_tokens == cached
    assert scheduler.cached_tokens(range(length), Origin()) == cached


def test_simultaneous_requests_share_the_first_ones_blocks() -> None:
    """Of requests that are scheduled in one step only the first is cold."""
    scheduler = scheduler_of(batched=256)
    requests = [Request([*range(16), 100 + i], (1,)) for i in range(4)]
    for request in requests:
        scheduler.add(request)
    assert run(scheduler) == 1
    assert [request.cached_tokens for request in requests] == [0, 16, 16, 16]


def test_generated_tokens_fill_blocks_that_a_next_turn_reads() -> None:
    """The answer's blocks are cached but for its last token, which is never computed."""
    scheduler = scheduler_of()
    request = Request(range(6), range(50, 60))
    scheduler.add(request)
    run(scheduler)
    assert scheduler.cached_tokens([*request.token_ids, 1, 2, 3], Origin()) == 12
    stored = [event for event in scheduler.pool.take_events() if isinstance(event, Stored)]
    assert [len(event.digests) for event in stored] == [1, 1, 1]
    assert [event.first for event in stored] == [0, 1, 2]
    assert [event.parent for event in stored] == [None, stored[0].digests[0], stored[1].digests[0]]
    assert stored[1].token_ids == (4, 5, 50, 51)


def test_at_most_sequences_max_run_and_the_rest_wait_in_order() -> None:
    """First come, first served."""
    scheduler = scheduler_of(sequences=2)
    requests = [Request([i] * 5, (1, 2)) for i in range(5)]
    for request in requests:
        scheduler.add(request)
    scheduler.schedule()
    assert scheduler.running == requests[:2]
    assert list(scheduler.waiting) == requests[2:]


def test_an_exhausted_pool_preempts_the_latest_request_which_starts_again() -> None:
    """Preemption is by recomputation; all answers are complete and the reported hit is that of the first start."""
    scheduler = scheduler_of(blocks=9)
    requests = [Request([i] * 8, range(20)) for i in range(3)]
    for request in requests:
        scheduler.add(request)
    run(scheduler)
    assert scheduler.counters.preemptions > 0
    assert scheduler.counters.finished == 3
    assert requests[0].preemptions == 0
    assert all(request.generated == 20 and request.cached_tokens == 0 for request in requests)
    assert scheduler.pool.used == 0


def test_removals_come_before_the_store_that_they_made_room_for() -> None:
    """In one batch of events, as vLLM sends them."""
    scheduler = scheduler_of(blocks=5)
    for start in (0, 100):
        scheduler.add(Request(range(start, start + 12), (1,)))
        run(scheduler)
    events = scheduler.pool.take_events()
    kinds = [type(event) for event in events]
    assert kinds == [Stored, Removed, Removed, Stored]


def test_an_aborted_request_gives_its_blocks_back_and_leaves_them_cached() -> None:
    """Also one that waits; aborting twice does nothing."""
    scheduler = scheduler_of(sequences=1)
    running, waiting = Request(range(9), range(9)), Request(range(50, 59), (1,))
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.finish(scheduler.schedule())
    for request in (running, waiting, running):
        scheduler.abort(request)
    assert not scheduler.busy
    assert scheduler.pool.used == 0
    assert scheduler.cached_tokens(range(9), Origin()) == 8


def test_prompt_logprobs_read_no_cache_but_store() -> None:
    """Such a request computes its whole prompt."""
    scheduler = scheduler_of()
    scheduler.add(Request(range(12), (1,)))
    run(scheduler)
    request = Request(range(12), (1,), reads_cache=False)
    scheduler.add(request)
    run(scheduler)
    assert request.cached_tokens == 0
    assert scheduler.counters.hit == 0


def test_a_full_report_announces_reused_blocks_without_a_copy() -> None:
    """`kv_cache_report_mode: full`: a BlockStored from the start for blocks that are merely reused."""
    scheduler = scheduler_of()
    scheduler.add(Request(range(13), (1,)))
    run(scheduler)
    (stored,) = scheduler.pool.take_events()
    scheduler.add(Request(range(13), (1,), full_report=True))
    run(scheduler)
    assert scheduler.pool.take_events() == [stored]
    assert scheduler.pool.cached == 3


def test_a_request_that_never_fits_is_refused() -> None:
    """Prompt and output together must fit into the pool alone."""
    with pytest.raises(ValueError, match="does not fit"):
        scheduler_of(blocks=4).add(Request(range(12), (1,)))
    with pytest.raises(ValueError, match="at least one token"):
        Request((), (1,))
