"""Why so much of one prompt was not cached: each token that was not delivered gets one cause. Pure.

From a prompt's start to its end: what was promised and not delivered; what another pod held; what was held once; what
was never asked for; and what no pod could have reused. A cause counts the tokens that would have been delivered
without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from indexer.blocks import Grain, Keys, size_of
from indexer.losses import LossReason
from indexer.match import MISS, Hit, Holder
from indexer.rule import PLAIN
from router.causes.ghosts import Fate
from router.causes.memory import CauseMemory
from router.causes.names import Cause, Missed, Why
from router.causes.prints import Print
from router.core.demand import Decision, Demand
from router.core.fleet import Fleet, Rank, RankId

_EVER = float("inf")
_HELD: dict[LossReason, tuple[Cause, str]] = {
    "evicted": ("evicted", "it was evicted"),
    "cleared": ("evicted", "the pod's cache was cleared"),
    "restarted": ("pod_gone", "the pod was started anew"),
    "left": ("pod_gone", "the pod has left"),
    "forgotten": ("feed_not_exact", "what the pod held was forgotten, as its events were in doubt"),
    "no room": ("feed_not_exact", "the index had no room for it"),
}  # fmt: skip
"""By what became of a block: the cause, and what kind of it that is."""


class _Split:
    """A prompt's tokens from the first that was not delivered on, cut into causes."""

    def __init__(self, delivered: int) -> None:
        self.at = delivered
        self.missed: list[Missed] = []

    def to(self, end: int, cause: Cause, detail: str, kind: str = "") -> None:
        """All up to `end` has this cause, as far as it has none yet."""
        tokens = end - self.at
        if tokens <= 0:
            return
        last = self.missed[-1] if self.missed else None
        if last is not None and (last.cause, last.detail) == (cause, detail):
            last.tokens += tokens
        else:
            self.missed.append(Missed(cause, tokens, detail, kind or detail))
        self.at = end


class Naming:
    """See the module. Changes nothing."""

    def __init__(self, fleet: Fleet, memory: CauseMemory) -> None:
        self._fleet = fleet
        self._memory = memory

    def explain(self, decision: Decision, usage: tuple[int, int | None] | None, made: Print | None) -> Why:
        """`usage`: as the pod said it; `made`: the prompt's fingerprint, where there is one.

        Where the pod says nothing of cached tokens, what was promised is taken to be delivered.
        """
        demand, rank = decision.demand, decision.rank
        theirs = demand.of(rank)
        told = usage if demand.tells_cached else None
        tokens = theirs.tokens if told is None else told[0]
        captured = min(decision.matched_tokens, tokens)
        delivered = min(_delivered(told, rank, captured), tokens)
        keys = theirs.keys.get(rank.grain or 0)
        if keys is not None and delivered == captured and _is_all(decision, theirs, keys, told):  # most are like this
            edge = Missed("block_edge", tokens - delivered, _EDGE, _LAST)
            return Why(tokens, captured, captured, delivered, (edge,) if edge.tokens else (), len(keys))
        split = _Split(delivered)
        unread = _unread(demand, rank)
        unknown = _unknown(theirs, keys, told)
        if unread is not None:
            split.to(tokens, "no_cache_read", unread)
        elif unknown is not None or keys is None:
            size = rank.block_size
            whole = tokens if size is None or not tokens else (tokens - 1) // size * size
            split.to(whole, "wrong_tokens", *(unknown or (_NO_TOKENS, "")))
            split.to(tokens, "block_edge", _EDGE, _LAST)
        else:
            work = _Work(decision, theirs, keys, size_of(rank.grain or 1), tokens, captured, split)
            reachable, known = self._by_blocks(work, made)
            return Why(tokens, reachable, captured, delivered, tuple(split.missed), known)
        return Why(tokens, captured, captured, delivered, tuple(split.missed))

    def _by_blocks(self, work: _Work, made: Print | None) -> tuple[int, int]:
        """Tokens that were reachable, and blocks that somebody held."""
        decision, split, size, blocks = work.decision, work.split, work.size, len(work.keys)
        rank = decision.rank
        rule = rank.trust.calibration.rule
        most = min(work.tokens, rule.blocks(Hit(blocks, blocks), work.tokens, size) * size)
        if split.at < work.captured:
            self._promised(work)
        hit = decision.hits[decision.pick.best.number]
        if rank.trust.rule is None and hit.blocks:
            split.to(rule.blocks(hit, work.tokens, size) * size, "feed_not_exact", *_doubted(rank))
        hits: Mapping[Holder, Hit] = decision.known[work.theirs].get(rank.grain or 0, {})
        longest, reachable = max(hits.values(), default=MISS), decision.pick.seen.longest
        if longest.blocks > hit.blocks or reachable > work.captured:
            reachable = self._elsewhere(work, hits, hit, reachable)
        known = min(max(longest.blocks, hit.blocks), blocks)
        split.to(min(known * size, most), "block_edge", "what is found last is computed again")
        if split.at < most:
            end = self._remembered(work, known, most)
            self._unseen(work, most, max(end, split.at), made)
        if blocks:
            split.to(work.tokens, "block_edge", _EDGE, _LAST)
        else:
            split.to(work.tokens, "block_edge", "the prompt is shorter than a block")
        return min(reachable, work.tokens), known

    def _promised(self, work: _Work) -> None:
        """What the picked pod was believed to hold, and did not deliver."""
        decision, split, rank = work.decision, work.split, work.decision.rank
        hit = decision.hits[decision.pick.best.number]
        first = split.at // work.size
        fate = next(iter(self._memory.ghosts.look(work.keys[first : first + 1], _EVER)), None)
        if fate is not None and fate.why is not None and fate.gone >= decision.at and fate.why != "no room":
            cause, kind = _HELD[fate.why]
            split.to(work.captured, cause, f"{rank.id}: {kind} after the decision", kind)
        elif hit.lower and split.at >= hit.near * work.size:
            split.to(
                work.captured,
                "tier",
                f"{rank.id} held it in a lower tier, and did not load it",
                "it was held in a lower tier, and not loaded",
            )
        elif _is_doubtful(work.theirs):
            split.to(work.captured, "wrong_tokens", *_doubt(work.theirs))
        elif hit.predicted and split.at >= hit.gpu * work.size:
            detail = f"{rank.id} was to compute it for a request before, and had not when this one came"
            split.to(work.captured, "feed_not_exact", detail, "a request before was to compute it, and had not")
        else:
            state = decision.states[decision.pick.best.number]
            detail = f"events of {rank.id} said that it held this, and it did not; its feed was {state}{_reasons(rank)}"
            split.to(work.captured, "feed_not_exact", detail, "the pod did not hold what its events said")

    def _elsewhere(self, work: _Work, hits: Mapping[Holder, Hit], hit: Hit, reachable: int) -> int:
        """What others held; returns the most, also of those that could not be asked."""
        decision, split = work.decision, work.split
        candidates, prices = decision.pick.candidates, decision.pick.prices
        best = candidates.matched.index(max(candidates.matched))
        fit, picked = candidates.matched[best], decision.pick.best.number
        if fit > work.captured:
            holder, lower = decision.ranks[best].id, decision.hits[best].lower and candidates.worths[best] < fit
            price = f"{prices[best]:.4g} there against {prices[picked]:.4g} at {decision.rank.id}"
            gained = (fit - candidates.worths[best]) * candidates.tokens_s[best]
            if lower and prices[best] - gained <= prices[picked]:
                detail = f"{holder} held {fit} tokens, some in a lower tier, which were worth less: price {price}"
                split.to(fit, "tier", detail, "what is held in a slower tier was worth less")
            else:
                detail = f"{holder} held {fit} tokens, {fit - work.captured} more: price {price}: {decision.reason}"
                split.to(fit, "routed_away", detail, f"another pod was picked: {decision.reason}")
        there = {rank.id for rank in decision.ranks}
        for name, held in sorted(hits.items(), key=lambda one: -one[1].blocks):
            if held.blocks <= hit.blocks:
                break
            if name not in there and isinstance(name, RankId):
                tokens, why = self._unasked(name, held, work)
                reachable = max(reachable, tokens)
                split.to(tokens, "pod_gone", f"{name} held {tokens} tokens, and could not be asked: {why}", _UNASKED)
        return reachable

    def _unasked(self, name: RankId, held: Hit, work: _Work) -> tuple[int, str]:
        """What somebody would have reused who was no candidate, and why it was none."""
        pod = self._fleet.pods.get(name.pod)
        rank = rank_named(self._fleet, name)
        rule = PLAIN if rank is None else rank.trust.calibration.rule
        tokens = rule.blocks(held, work.tokens, work.size) * work.size
        if pod is None:
            return tokens, "it has left"
        tried = work.decision.story is not None and any(one.at.pod == name.pod for one in work.decision.story.tries)
        reasons = pod.unfit(work.decision.at)
        if reasons:
            return tokens, "; ".join(reasons)
        return tokens, "it was tried before" if tried else "it was not fit, or not asked for"

    def _remembered(self, work: _Work, known: int, most: int) -> int:
        """What was held, or asked for, before: up to which token."""
        end = known
        for fate in self._memory.ghosts.look(work.keys[known:], work.decision.at):
            end += fate.blocks
            work.split.to(min(end * work.size, most), *self._fate(fate, work))
        return min(end * work.size, most)

    def _fate(self, fate: Fate, work: _Work) -> tuple[Cause, str, str]:
        pod, at = self._memory.pod_of(fate), work.decision.at
        if fate.why is not None:
            cause, kind = _HELD[fate.why]
            load = self._memory.load_of(fate)
            when = f" {at - fate.gone:.1f} s before" if at > fate.gone else ""
            by = "" if load is None else f", one of {load.blocks} blocks"
            if load is not None and cause == "evicted":
                by += f", with {load.requests} requests there and {load.prefill_tokens} tokens to compute"
            return cause, f"{pod}: {kind}{when}{by}", kind
        rank = rank_named(self._fleet, pod)
        if rank is None:
            return "pod_gone", f"{pod} had computed it, and has left", "the pod has left"
        if _is_doubtful(work.theirs):
            return "wrong_tokens", *_doubt(work.theirs)
        detail = f"it was sent to {pod} before, whose events told of no such blocks: {rank.state}{_reasons(rank)}"
        return "feed_not_exact", detail, "no event told of it"

    def _unseen(self, work: _Work, most: int, known: int, made: Print | None) -> None:
        """What nobody has asked for: with other tokens before it, with another adapter or salt, or never."""
        split, memory, size = work.split, self._memory, work.size
        twin = memory.twin(work.decision.demand.of(work.decision.rank), work.keys, work.grain, work.decision.at)
        if twin is not None and twin[0] * size > known:
            blocks, adapter, is_salt = twin
            named = "without an adapter" if adapter is None else f"with the adapter {adapter}"
            other = "with another cache_salt" if is_salt else named
            cause: Cause = "other_salt" if is_salt else "other_adapter"
            split.to(min(blocks * size, most), cause, f"the same tokens were asked for {other}")
        change = None if made is None or split.at >= most else memory.prints.change(made, known)
        if change is not None:
            split.to(min(max(change.tokens // size * size, known), most), "changed", change.detail, change.kind)
        split.to(most, "first_seen", "nobody has asked for it before")


@dataclass(slots=True, eq=False)
class _Work:
    """One prompt, whose tokens are known. `theirs`: as the picked pod reads it, in blocks of `size`."""

    decision: Decision
    theirs: Demand
    keys: Keys
    size: int
    tokens: int
    captured: int
    split: _Split

    @property
    def grain(self) -> Grain:
        return self.decision.rank.grain or 0


_EDGE, _LAST = "its last tokens fill no block, or are computed again", "the last tokens fill no block"
_UNASKED = "the pod that held it could not be asked"
_NO_TOKENS = "its tokens are not known here"


def rank_named(fleet: Fleet, name: Holder | None) -> Rank | None:
    """Who was meant, if there still is such a one."""
    pod = fleet.pods.get(name.pod) if isinstance(name, RankId) else None
    if pod is None or not isinstance(name, RankId) or name.rank >= len(pod.ranks):
        return None
    return pod.ranks[name.rank]


def _is_all(decision: Decision, theirs: Demand, keys: Keys, told: tuple[int, int | None] | None) -> bool:
    """Did the picked pod hold all of its blocks, in its own cache, and does nothing else speak against the prompt?"""
    hit = decision.hits[decision.pick.best.number]
    if hit.blocks != len(keys) or not hit.blocks or hit.lower or theirs.reason is not None or theirs.further:
        return False
    if told is not None and told[0] != theirs.tokens:
        return False
    return decision.demand.reads_cache and decision.rank.trust.rule is not None


def _delivered(told: tuple[int, int | None] | None, rank: Rank, captured: int) -> int:
    """Cached tokens, as the pod says; where it says nothing, 0 if it would say more, else what was promised."""
    if told is None or (told[1] is None and not rank.pod.evidence.usage):
        return captured
    return told[1] or 0


def _unread(demand: Demand, rank: Rank) -> str | None:
    """Why the pod did not look for cached blocks at all."""
    if not demand.reads_cache:
        return "the request has the pod compute all of its prompt"
    return None if rank.trust.caches else "the pod caches no prefixes"


def _unknown(theirs: Demand, keys: Keys | None, told: tuple[int, int | None] | None) -> tuple[str, str] | None:
    """Why nothing can be said by blocks: detail and kind."""
    if theirs.reason is not None or keys is None:
        return f"{_NO_TOKENS}: {theirs.reason or 'its blocks have no keys'}", _NO_TOKENS
    if theirs.further:
        return "of several prompts only the first is known", "there are several prompts in one request"
    if theirs.is_alone and told is not None and told[0] != theirs.tokens:
        return f"the pod counts {told[0]} tokens, and here are {theirs.tokens}", "the pod counts other tokens"
    return None


def _is_doubtful(theirs: Demand) -> bool:
    """Have pods contradicted such tokens, and was it not mended?"""
    origin = theirs.origin
    return origin is not None and origin.state.contradicted > 0 and not origin.verified


def _doubt(theirs: Demand) -> tuple[str, str]:
    assert theirs.origin is not None
    state, shape = theirs.origin.state, theirs.origin.shape
    return f"pods have stored other tokens than those made by {state.source} ({shape})", "the pods store other tokens"


def _doubted(rank: Rank) -> tuple[str, str]:
    return f"what events say of {rank.id} is not believed{_reasons(rank)}", "its events are not believed"


def _reasons(rank: Rank) -> str:
    reasons = rank.feed.reasons if rank.feed is not None else ["it publishes no events"]
    return f" ({'; '.join(reasons)})" if reasons else ""
