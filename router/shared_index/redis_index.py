"""An index in Redis (or Valkey) that several gateways share: what `PrefixIndex` says of confirmed blocks, but awaited.

======================  ======================================================================================
key, after the prefix   value
======================  ======================================================================================
`seed`                  the number that all block keys hang on, drawn by the first gateway; decimal, no TTL
`pod:<name>`            hash: `owner` (the one gateway that writes this pod), `slot`, `complete` (1: all that the
                        pod holds is there), `blocks` (how many are); lives for one lease, which the owner renews
`slot`                  the newest slot, a number that is never used twice
`live`                  sorted set: slots in use, by the end of their lease
`b:<8 bytes of key>`    who holds a block: a slot (4 bytes) and a byte of tiers (1 gpu, 2 cpu, 4 disk) for each
======================  ======================================================================================

*A generation is a slot.* A pod that is cleared, or taken over by another gateway, gets a new slot: that costs O(1), and
what blocks say of an old slot means nothing. It is left out when the block is written next, else ends with its TTL.

*Only exact knowledge is shared.* One gateway owns a pod and copies its own index of it: engine hashes, copies and
orphans stay there, so a block is held here as long as any copy is. Codes set and unset tiers and may be sent twice. A
pod whose owner is silent for a lease, or has not copied all yet, is unknown: empty is honest, stale lies.

*Bounded*: `blocks_max` a pod, refused beyond (its prefixes get shorter, not wrong); every block has a TTL, and owners
write what is held anew in a third of it, which also brings back what Redis may have evicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from indexer.blocks import Keys
from indexer.changes import TIER_BITS
from indexer.match import Hit, reach
from router.shared_index import redis_scripts as scripts
from router.shared_index.mirror import WRITE_BLOCKS_MAX, Write

if TYPE_CHECKING:
    from router.config.index import RedisConfig

__all__ = ["RedisError", "SharedIndex", "SharedLimits", "hit_of"]

_PIPELINE_MAX = 32  # scripts sent before their answers are read
_SEED_BITS = 64
_QUESTIONS_MAX = 16  # each has a connection of its own


@dataclass(slots=True, frozen=True)
class SharedLimits:
    """See `index.redis` of the configuration, which has the reasons. `questions_max`: at the same time."""

    blocks_max: int
    keys_max: int
    block_ttl_s: float
    lease_s: float
    timeout_s: float
    questions_max: int

    @classmethod
    def of(cls, given: RedisConfig) -> Self:
        """As configured."""
        return cls(given.blocks_max, given.keys_max, given.block_ttl, given.lease, given.timeout, _QUESTIONS_MAX)


class SharedIndex:
    """One gateway's way there. All methods raise `RedisError` or `OSError`; a write may then be repeated."""

    def __init__(self, url: str, prefix: str, owner: str, limits: SharedLimits) -> None:
        """`owner`: this process, unique among all gateways."""
        self._owner = owner
        self._limits = limits
        self._prefix = prefix.encode()
        self._lease_ms = round(limits.lease_s * 1000)
        self._ttl_ms = round(limits.block_ttl_s * 1000)
        given: dict[str, Any] = {
            "socket_timeout": limits.timeout_s,
            "socket_connect_timeout": limits.timeout_s,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # who calls knows better when to try again
        }
        pool = BlockingConnectionPool.from_url(
            url, max_connections=limits.questions_max + 1, timeout=limits.timeout_s, **given
        )
        self._redis = Redis(connection_pool=pool)
        self._shas: dict[str, str] = {}

    async def connect(self) -> str:
        """Make sure that Redis is there and knows the scripts; returns which run of its process this is."""
        for text in (scripts.TAKE, scripts.RENEW, scripts.DROP, scripts.APPLY, scripts.MATCH):
            self._shas[text] = await self._redis.script_load(text)
        return str((await self._redis.info("server"))["run_id"])

    async def aclose(self) -> None:
        """Close all connections; what this gateway owned ends with its leases."""
        await self._redis.connection_pool.disconnect()

    async def seed(self, own: int) -> int:
        """The seed of all gateways' keys: `own`, if there was none."""
        name = self._prefix + b"seed"
        await self._redis.set(name, own, nx=True)
        kept = int(await self._redis.get(name) or own)
        if kept.bit_length() > _SEED_BITS:
            raise ResponseError("the seed is not ours")
        return kept

    # --- one pod's owner ---

    async def take(self, pods: Sequence[str]) -> list[bool]:
        """Own these pods, each with nothing and not complete; False where another gateway does."""
        return await self._each(scripts.TAKE, [self._taking(pod, complete=False) for pod in pods])

    async def renew(self, pods: Sequence[str]) -> list[bool]:
        """Go on owning these; False where that has ended."""
        keys = [[self._pod(pod), self._live] for pod in pods]
        return await self._each(scripts.RENEW, [(each, [self._owner, self._lease_ms]) for each in keys])

    async def drop(self, pods: Sequence[str]) -> list[bool]:
        """Own them no more: they are unknown at once."""
        return await self._each(scripts.DROP, [([self._pod(pod), self._live], [self._owner]) for pod in pods])

    async def write(self, writes: Sequence[Write]) -> list[int]:
        """For each write, -1 if the pod is not owned (any more), else how many blocks were beyond `blocks_max`."""
        results: list[int] = []
        for first in range(0, len(writes), _PIPELINE_MAX):
            part = writes[first : first + _PIPELINE_MAX]
            async with self._redis.pipeline(transaction=False) as pipeline:
                for write in part:
                    self._put(pipeline, write)
                answers = iter(await self._answers(pipeline))
            for write in part:
                owned = bool(next(answers)) if write.anew else True
                result = next(answers)
                results.append(result if owned else -1)
        return results

    # --- everybody ---

    async def match(self, keys: Keys, pods: Sequence[str]) -> dict[str, Hit]:
        """The hits of those of `pods` that are known here; a hit of 0 blocks is an answer, too."""
        named = [self._pod(pod) for pod in pods]
        asked = np.ascontiguousarray(keys[: self._limits.keys_max], "<u8").tobytes()
        arguments = [self._prefix + b"b:", asked]
        answers = await self._redis.evalsha(self._shas[scripts.MATCH], len(named), *named, *arguments)
        return {pod: hit_of(runs) for pod, runs in zip(pods, answers, strict=True) if runs is not None}

    # --- inside ---

    @property
    def _live(self) -> bytes:
        return self._prefix + b"live"

    def _pod(self, pod: str) -> bytes:
        return self._prefix + b"pod:" + pod.encode()

    def _taking(self, pod: str, complete: bool) -> tuple[list[bytes], list[Any]]:
        return [self._pod(pod), self._prefix + b"slot", self._live], [self._owner, self._lease_ms, int(complete)]

    def _put(self, pipeline: Pipeline, write: Write) -> None:
        assert len(write.codes) <= WRITE_BLOCKS_MAX
        if write.anew:
            self._call(pipeline, scripts.TAKE, *self._taking(write.pod, complete=bool(write.complete)))
        keys = np.fromiter(write.codes.keys(), "<u8", len(write.codes)).tobytes()
        complete = "" if write.complete is None else int(write.complete)
        arguments: list[Any] = [self._owner, self._prefix + b"b:", self._ttl_ms, self._limits.blocks_max, complete]
        arguments += [keys, bytes(write.codes.values())]
        self._call(pipeline, scripts.APPLY, [self._pod(write.pod), self._live], arguments)

    async def _each(self, text: str, calls: Iterable[tuple[list[bytes], list[Any]]]) -> list[bool]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for keys, arguments in calls:
                self._call(pipeline, text, keys, arguments)
            return [bool(answer) for answer in await self._answers(pipeline)]

    def _call(self, pipeline: Pipeline, text: str, keys: list[bytes], arguments: list[Any]) -> None:
        pipeline.evalsha(self._shas[text], len(keys), *keys, *arguments)

    async def _answers(self, pipeline: Pipeline) -> list[int]:
        try:
            answers: list[int] = await pipeline.execute()
        except NoScriptError:
            await self.connect()  # somebody has flushed the scripts: what is repeated will find them
            raise
        return answers


def hit_of(runs: Sequence[int]) -> Hit:
    """A script's answer for one pod, `start, tiers, start, tiers, ..., end`; a block counts in its best tier.

    As of the index itself: the pod's own cache comes first, and one stretch of lower tiers may go on from there.
    """
    end = runs[-1]
    starts = [*runs[0:-1:2], end]
    stretches = [*zip(starts, starts[1:], runs[1:-1:2], strict=False)]
    near = next((start for start, _, tiers in stretches if not tiers & TIER_BITS["gpu"]), end)
    lower: list[tuple[int, int]] = []
    for start, following, tiers in stretches:
        if tiers != TIER_BITS["gpu"]:
            joined = lower.pop()[0] if lower and lower[-1][1] == start else start
            lower.append((joined, following))
    blocks = reach(near, lower)
    counts = dict.fromkeys(TIER_BITS, 0)
    for start, following, tiers in stretches:
        best = next(tier for tier, bit in TIER_BITS.items() if tiers & bit)
        counts[best] += max(0, min(following, blocks) - start)
    hit = Hit(blocks, counts["gpu"], 0, counts["cpu"], counts["disk"])
    return hit._replace(near=near, lower=tuple(lower)) if lower else hit
