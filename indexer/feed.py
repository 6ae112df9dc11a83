"""One pod's feed, as far as it is believed: frames in, the index kept true, and how much of it is sure.

A feed is `exact` while every batch came in order, `degraded` while something is known to be unknown, `blind` as long as
nothing was heard at all. In doubt the pod's blocks are forgotten: empty is honest, stale lies.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from indexer import wire
from indexer.absence import Absence
from indexer.backlog import LARGE, WAITING_MAX, Backlog, blocks_of
from indexer.blocks import Grain, ahead_of, size_of
from indexer.errors import WireError
from indexer.events import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event, told_again
from indexer.feed_counts import FeedCounts
from indexer.index import PrefixIndex
from indexer.losses import LossReason
from indexer.match import Hit, Holder
from indexer.stream import Ready, Stream
from indexer.trust import RESYNC_INTERVAL_S, ReportVerdict, Trust

State: TypeAlias = Literal["exact", "degraded", "blind"]

BEHIND = "its history has not come to its end"
REPLAYING = "a replay is under way"
TRUNCATED = "history before the feed was joined is not known"
LARGE_BATCH = "a large batch is being read"
UNDECODABLE = "events could not be decoded"
ORPHANS = "blocks came whose parents are not known"
BLOCK_SIZE = "the block size is not the configured one"
UNKNOWN = "events came of a type that is not known"
HIDDEN = "of what a lower tier holds, not all can be known"
KEPT = "its own cache was cleared, and whether the lower tiers were too is not said"
FULL = "the index has no room for all of its blocks"
DISPUTED = "two publishers seem to speak in its name"
DOUBTED = "the pod's own reports of cached tokens differ from what its events say"
UNPROVEN = "by which rule it reuses blocks is not proven yet"
UNCACHED = "the pod says that it caches no prefixes"


UNTOLD = "a lower tier has told of no removal for long: some of what it held may be gone"
UNTOLD_S = 600.0
"""So long a tier of a connector that tells of stores only is taken for complete: LMCache's (in chunks of its own, or in
blocks as the pod's), Mooncake's. Both tell tokens and no kind of group; vLLM's own offloading tells a kind, or nothing
but hashes, and does tell of removals."""
LATER_MAX = 10_000
"""Events of lower tiers that wait until it is known whether these were cleared."""


class Feed:
    """Joins one stream with the index. Every method returns from where a replay is to be asked now, or None.

    Large batches are believed in pieces: whoever brings frames calls `go_on` as long as it is `unfinished`.
    """

    def __init__(
        self,
        index: PrefixIndex,
        pod: Holder,
        held_max: int,
        block_size: int | None = None,
        held_bytes_max: int = 32 << 20,
    ) -> None:
        """`held_max`, `held_bytes_max`: of batches that wait for others; `block_size`: the configured one."""
        self.pod = pod
        self.counts = FeedCounts()
        self.adapters: list[str] = []  # names of LoRA adapters in order of loading: their numbers count from 1
        self.grain: Grain | None = block_size  # by which its blocks have keys, once one came
        self.rank: int | None = None  # as its newest batch says: among all ranks, maybe of several nodes
        self.last_number = -1
        self.last_clock = 0.0
        self.last_heard: float | None = None
        self.lag_s = 0.0  # of the newest frame, by the wall clocks of pod and router; the edge measures it
        self.trust = Trust()
        self._configured = block_size
        self._index = index
        self._stream: Stream[Batch] = Stream(held_max, held_bytes_max)
        self._reasons: dict[str, None] = {}
        self._drafter = False
        self._unsure = False  # its KV-cache groups leave a guess
        self._heard = False
        self._behind = False
        self._suspected = False
        self._unread = False  # its history is to be read anew
        self._disputed = False
        self._absence = Absence()
        self._refilled_at = self._cleared_at = float("-inf")
        self._backlog = Backlog()
        self._removals_since: float | None = None  # a lower tier of chunks is waited for to tell of one
        self._later: list[Event] = []  # of lower tiers, while it is not known whether these were cleared
        self._full_reports = 0  # requests in flight that have the pod tell again of the blocks that it reuses
        self._full_report_until: float | None = None  # their events may come until then; None: there was none yet

    @property
    def heard(self) -> bool:
        """Something of it is known: it is not blind."""
        return self._heard

    @property
    def block_size(self) -> int | None:
        """Tokens a block."""
        return None if self.grain is None else size_of(self.grain)

    @property
    def state(self) -> State:
        if not self._heard:
            return "blind"
        return "degraded" if self.reasons else "exact"

    @property
    def reasons(self) -> list[str]:
        """Why the state is not `exact`, in words."""
        if not self._heard:
            return ["nothing was heard of its feed"]
        reasons = list(self._reasons)
        if self.unfinished:
            reasons.append(LARGE_BATCH)
        if self._index.lacks(self.pod):
            reasons.append(FULL)
        if self._disputed:
            reasons.append(DISPUTED)
        if self._stream.replaying:
            reasons.append(REPLAYING)
        elif self._stream.behind:
            reasons.append(BEHIND)
        if self._stream.truncated:
            reasons.append(TRUNCATED)
        if not self.trust.caches:
            reasons.append(UNCACHED)
        if self.trust.doubted:
            reasons.append(DOUBTED)
        elif not self.trust.calibration.proven:
            reasons.append(UNPROVEN)
        if self._configured not in (None, self.block_size):
            reasons.append(BLOCK_SIZE)
        return reasons

    @property
    def replaying(self) -> bool:
        """A gap is being closed: what is known is as old as the gap."""
        return self._stream.replaying

    @property
    def behind(self) -> bool:
        """Its history has no end yet: nothing of it is believed, as it may lack removals."""
        return self._stream.behind

    @property
    def caught_up(self) -> bool:
        """The newest batch that its publisher sent is applied."""
        return self._stream.caught_up

    @property
    def truncated(self) -> bool:
        """Some history is not known: of what the pod holds, events may be silent."""
        return self._stream.truncated or self._disputed

    @property
    def dropped(self) -> int:
        """Batches that came while others were missing, and were more than may wait: lost, as in a gap."""
        return self._stream.dropped

    def connected(self, now: float) -> int | None:
        """The sockets were connected (again)."""
        if self._disputed:
            return None
        self._absence.began(self.last_heard)
        return self._act(self._stream.connected(), now)

    def frame(self, number: int, payload: bytes, now: float) -> int | None:
        """A batch came from the publisher."""
        before, self.last_heard, self.last_number = self.last_heard, now, number
        self._heard = True
        batch = self._decoded(payload)
        if batch is None:
            return None if self._stream.replaying else self._act(self._stream.connected(), now)
        self.last_clock = batch.ts
        ready = self._stream.live(number, batch.ts, batch, len(payload))
        since = self._absence.late(batch.ts, now)
        if since is not None:
            self.trust.excuse(since)
        if ready.verdict in ("gap", "held"):
            self._absence.began(before)
        if ready.verdict == "gap":
            self.counts.missed += number - self._stream.expected
        if ready.verdict != "restart":  # counted where it is acted on: a replay finds restarts, too
            self.counts.batch(ready.verdict)
        return self._act(ready, now)

    def spoiled(self) -> None:
        """A frame came that is none: it will be missed as a batch."""
        self.counts.decode_errors += 1

    def replayed(self, number: int, payload: bytes, now: float) -> int | None:
        """A batch came from the replay socket."""
        batch = self._decoded(payload)
        if batch is None:
            return None
        ready = self._stream.replayed(number, batch.ts, batch, len(payload))
        self._heard = True
        if ready.apply:
            self._absence.filled()
        return self._act(ready, now)

    def replay_ended(self, complete: bool, now: float) -> int | None:
        """`complete`: the end marker came, so all that the pod still has was sent."""
        if complete:
            self._heard = True
            self.trust.excuse(self._absence.ended())
            self.trust.answered()
            self.counts.replay_complete += 1
        else:
            self.counts.replay_failed += 1
        return self._act(self._stream.replay_ended(complete), now)

    @property
    def unfinished(self) -> bool:
        """Something that came is not believed yet: what is known is as old as that."""
        return self._backlog.ready

    def go_on(self, now: float) -> bool:
        """Believe one piece of what waits; False: nothing is left."""
        event = self._backlog.next()
        if event is not None:
            self._heed(event, now)
        return self.unfinished

    def missing(self) -> int | None:
        """The first batch that a replay should have brought, and did not."""
        return self._stream.missing()

    def told(self, drafter: bool, caches: bool) -> None:
        """The pod says that it has a drafter (of some kind), and whether it caches prefixes."""
        self._drafter = drafter
        self.trust.told(caches)
        self._guess()

    def reported(self, hit: Hit, tokens: int, cached: int, block_size: int, at: float = float("inf")) -> None:
        """The pod told how many of a prompt's `tokens` it had cached; `hit` it held, by this feed as it was `at`."""
        if at <= self._cleared_at:  # whether it was served before its blocks were cleared, or after, is not said
            return
        if hit.lower and KEPT in self._reasons and self._are_empty(hit, tokens, cached, block_size):
            return
        self._judged(self.trust.report(hit, tokens, cached, block_size, at))

    def counted(self, predicted: int, reported: int) -> None:
        """As `reported`, of some requests together: so many cached tokens were foretold by this feed."""
        self._judged(self.trust.compare(predicted, reported, self.block_size or 1))

    def _judged(self, verdict: ReportVerdict) -> None:
        self.counts.prediction(verdict)
        if (self._reasons or self._stream.truncated) and self.trust.proven:  # what was missed no longer matters
            self._stream.cleared()
            self._settle(emptied=False)
            self._reasons.clear()

    def full_report_began(self) -> None:
        """A request is on its way that has the pod tell again of the blocks that it reuses.

        As vLLM tells it, that can't be told from a further copy. So while there is such a request, and in what is
        replayed later, no store that starts a prompt is taken for copies of what is held: one copy too few is a block
        that we do not know, one too many would be a block that we believe in after it is gone.
        """
        self._full_reports += 1

    def full_report_ended(self, until: float) -> None:
        """Such a request has ended; its events may come `until` then."""
        self._full_reports -= 1
        self._full_report_until = max(until, self._full_report_until or 0.0)

    def suspect(self) -> None:
        """Something else than the feed says that the pod was started anew."""
        self._suspected = True

    def mend(self, now: float) -> int | None:
        """From time to time: is the pod still the same? And where an error persists, all of its history is wanted."""
        if self._disputed:
            return None
        if self._unread:  # a replay that is under way does not bring all of it
            self._unread = False
            return self._act(self._stream.resync(), now)
        if self._stream.replaying:
            return None
        if self._suspected:
            self._suspected = False
            return self.connected(now)
        room = now > self._refilled_at + RESYNC_INTERVAL_S and self._index.could_have(self.pod)
        if room:
            self._refilled_at = now
        elif not self.trust.wants_resync(now):
            return None
        self.counts.resyncs += 1
        return self._act(self._stream.resync(), now)

    def dispute(self) -> None:
        """Who speaks is not clear: believe nothing, until `reread`."""
        self.forget()
        self._disputed = True

    def reread(self) -> None:
        """All that was made of its batches is of no use any more: forget it, and have its history again."""
        self.forget()
        self.trust.forget()
        self._stream.forgotten()
        self._unread, self._disputed = self._heard, False

    def unlearn(self) -> None:
        """Somebody wants what is known of its blocks forgotten: they are read anew, of the same pod."""
        self.forget()
        self._stream.forgotten()
        self._unread = self._heard and not self._disputed

    def forget(self, anew: bool = False, why: LossReason | None = None) -> None:
        """Believe nothing of this pod any more. `anew`: it may be another one, with other KV-cache groups."""
        self._index.clear(self.pod, anew, why)
        self._reasons.clear()
        self._later.clear()
        self._backlog.clear()
        self._removals_since = None

    def _are_empty(self, hit: Hit, tokens: int, cached: int, block_size: int) -> bool:
        """A report shows whether the lower tiers were cleared with the pod's own cache: are they forgotten now?"""
        rule = self.trust.calibration.rule
        own, all_of_it = (rule.blocks(held, tokens, block_size) * block_size for held in (Hit(hit.near, hit.near), hit))
        if own == all_of_it or own < cached < all_of_it:
            return False
        self._settle(emptied=cached <= own)
        return cached <= own

    def _settle(self, emptied: bool) -> None:
        """It is known now whether the lower tiers were cleared with the own cache; what they said since is believed."""
        if KEPT in self._reasons:
            del self._reasons[KEPT]
            if emptied:
                self._index.forget_lower(self.pod)
        later, self._later = self._later, []
        for event in later:
            self._believe(event)

    def _waits(self, event: Event) -> bool:
        """Does an event of a lower tier wait until that is known? Some show it: a block that was there is stored there
        again only if the tier was emptied meanwhile, and removed from there only if it was not."""
        if self._index.holds(self.pod, event):
            self._settle(emptied=isinstance(event, BlockStored))
            return False
        if len(self._later) >= LATER_MAX:
            self._settle(emptied=True)
            return False
        self._later.append(event)
        return True

    def _decoded(self, payload: bytes) -> Batch | None:
        try:
            batch = wire.decode(payload)
        except WireError:
            self.counts.decode_errors += 1
            self._unknown(UNDECODABLE)
            return None
        if batch.rank is not None:
            self.rank = batch.rank
        return batch

    def _act(self, ready: Ready[Batch], now: float) -> int | None:
        if ready.verdict == "restart":
            self.counts.restart += 1
            self._reasons.clear()
            self.trust.forget()
            self._absence = Absence()
        if ready.forget:
            self.forget(anew=ready.verdict == "restart")
            self.counts.forgotten += 1
        if self._disputed:
            return None
        again = self._tells_again(ready.verdict == "in_order", now)
        for batch in ready.apply:
            self._apply(batch, again, now)
        if self._stream.behind is not self._behind:
            self._behind = self._stream.behind
            self._index.hide(self.pod, self._behind)
        return ready.replay_from

    def _tells_again(self, live: bool, now: float) -> bool:
        """May a batch tell again of blocks that the pod only reused? `live`: it comes without any delay of ours."""
        if self._full_reports or self._full_report_until is None:
            return self._full_reports > 0
        return not live or now - max(0.0, self.lag_s) < self._full_report_until

    def _apply(self, batch: Batch, again: bool, now: float) -> None:
        counts = self.counts
        if batch.bad:
            counts.decode_errors += len(batch.bad)
            self._unknown(UNDECODABLE)
        if batch.unknown:
            counts.unknown_events += len(batch.unknown)
            self._unknown(UNKNOWN)
        events = [told_again(event) for event in batch.events] if again else batch.events
        blocks = blocks_of(events)
        if blocks <= LARGE and not self._backlog.events:
            for event in events:
                self._heed(event, now)
        elif self._backlog.blocks + blocks <= WAITING_MAX:
            self._backlog.put(events)
        else:  # it says more than can be believed in time
            self.reread()

    def _heed(self, event: Event, now: float) -> None:
        if type(event) is AllBlocksCleared:
            self._cleared_at = now
        if event.tier != "gpu":
            self._await_removals(event, now)
            if KEPT in self._reasons and self._waits(event):
                return
        self._believe(event)
        if ORPHANS in self._reasons and not self._index.awaits(self.pod):
            del self._reasons[ORPHANS]

    def _believe(self, event: Event) -> None:
        counts = self.counts
        if type(event) is BlockStored:  # `isinstance` looks longer at a struct that is none
            lora = None if event.lora_id is None else self._adapter(event.lora_id)
            applied = self._index.apply(self.pod, event, lora)
            counts.stored += applied.stored
            if (event.block_size != self.grain or event.ahead is not None) and applied.stored and event.tier == "gpu":
                self._learn(event)
            if applied.refused:
                counts.refused += applied.refused
            if applied.ignored:
                counts.ignored += applied.ignored
            if applied.ignored or self._unsure:
                self._look_at_groups()
            if applied.hidden:
                counts.hidden += applied.hidden
                self._unknown(HIDDEN)
            if applied.orphans:
                counts.orphans += applied.orphans
                self._unknown(ORPHANS)
        elif type(event) is BlockRemoved:
            applied = self._index.apply(self.pod, event)
            counts.removed += applied.removed
            if applied.unknown:
                counts.unknown_removals += applied.unknown
        else:
            assert type(event) is AllBlocksCleared
            self._clear(event)

    def _await_removals(self, event: Event, now: float) -> None:
        if not isinstance(event, BlockStored):
            self._removals_since = None
        elif len(event.tokens) and event.kind is None:
            if self._removals_since is None:
                self._removals_since = now
            elif now - self._removals_since > UNTOLD_S:  # reports may prove it again, for as long
                self._removals_since = now
                self._unknown(UNTOLD)

    def _clear(self, event: AllBlocksCleared) -> None:
        self._settle(emptied=False)
        applied = self._index.apply(self.pod, event)
        self.counts.cleared += 1
        if event.tier != "gpu":
            return
        self._stream.cleared()
        self._reasons.clear()
        if applied.kept:
            self._unknown(KEPT)

    def _unknown(self, reason: str) -> None:
        """Something is not known from now on: what was foretold rightly before is no proof that it does not matter."""
        self._reasons[reason] = None
        self.trust.proofs = 0

    def _learn(self, event: BlockStored) -> None:
        """How its blocks are made: the store was of whole blocks of the indexed group."""
        if event.grain != self.grain and len(event.tokens):
            self.grain = event.grain
            self._guess()

    def _look_at_groups(self) -> None:
        groups = self._index.groups(self.pod)
        if groups is None:
            return
        if groups.unsure != self._unsure:
            self._unsure = groups.unsure
            self._guess()
        if groups.mistaken:
            self.reread()

    def _guess(self) -> None:
        self.trust.guess(self._drafter, self.grain is not None and ahead_of(self.grain) > 0, self._unsure)

    def _adapter(self, number: int) -> str | None:
        """The name of an adapter of which an event gives only the number."""
        if not 0 < number <= len(self.adapters):
            return None
        return self.adapters[number - 1]
