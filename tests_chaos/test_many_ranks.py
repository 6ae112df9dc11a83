"""512 pods of two ranks at one gateway: every feed is connected, loads its first state, and goes on to be read."""

from __future__ import annotations

import asyncio
import resource

import zmq

from indexer.blocks import KeySpace
from indexer.feed import Feed
from indexer.index import PrefixIndex
from router.core.fleet import RankId
from router.events.reader import FeedReader
from tests.fakes.limits import feed_limits
from tests.fakes.publishers import publisher

PODS, RANKS = 512, 2
PATIENCE_S = 300.0


async def test_a_thousand_ranks() -> None:
    """None stays degraded. Of open files they take six a rank, and their one publisher two: raise `ulimit -n`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with publisher() as speaker, asyncio.timeout(PATIENCE_S):
        await speaker.publish(lost=True)
        index, context = PrefixIndex(KeySpace(7), 10_000, PODS * RANKS), zmq.Context()
        names = [RankId(f"pod-{number}", rank) for number in range(PODS) for rank in range(RANKS)]
        feeds = [Feed(index, name, 100) for name in names]
        readers = [FeedReader(context, feed, speaker.events, speaker.replay, feed_limits()) for feed in feeds]
        for reader in readers:
            reader.start()
        try:
            await asyncio.gather(*(reader.joined.wait() for reader in readers))
            assert {(feed.state, feed.counts.stored) for feed in feeds} == {("exact", 1)}
            await speaker.publish()
            while {feed.counts.stored for feed in feeds} != {2}:
                await asyncio.sleep(0.05)
            assert {feed.state for feed in feeds} == {"exact"}
        finally:
            await asyncio.gather(*(reader.stop() for reader in readers))
            context.destroy(linger=0)
