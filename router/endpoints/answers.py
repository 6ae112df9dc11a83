"""What the gateway tells of itself, as plain values for JSON: scores, decisions, pods, caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from indexer.blocks import size_of
from indexer.match import MISS, Hit
from router.core.breaker import Breaker
from router.core.decision import Core
from router.core.demand import Decision, Demand
from router.core.fleet import Pod, Rank, RankId
from router.core.token_states import Ladder
from router.metrics.engines import CACHE_FIGURES, METHODS, own_hit_ratio
from scorer.candidates import Scored
from scorer.explanation import parts
from scorer.hold import Held
from scorer.load import PodLoad
from scorer.pick import scored
from scorer.policies import Settings
from scorer.sessions import LiveSession
from scorer.shadow import Shadow
from scorer.working_set import LIVE_S


def score_answer(
    decision: Decision, scoring: Settings, cache: str, timing_us: dict[str, int], keys: bool
) -> dict[str, Any]:
    """The answer of /score: every candidate, the pick, and why. `keys`: the prompt's block keys, too."""
    demand, best = decision.demand, decision.rank
    size = best.block_size or 0
    return {
        "model": demand.model,
        "block_size": size or None,
        "tokens": demand.tokens,
        "blocks": demand.tokens // size if size else 0,
        "pods": _explained(decision, scoring),
        "pick": best.id.pod,
        "rank": best.id.rank,
        "policy": scoring.policy,
        "reason": decision.reason,
        "cache": cache,
        "timing_us": timing_us,
        **({"keys": _keys_of(demand.of(best))} if keys else {}),
    }


def _keys_of(demand: Demand) -> dict[int, list[int]]:
    """A prompt's block keys by block size; where such blocks are made in several ways, of one after the other."""
    keys: dict[int, list[int]] = {}
    for grain, known in demand.keys.items():
        keys.setdefault(size_of(grain), []).extend(known.tolist())
    return keys


def decision_answer(decision: Decision, clock_offset: float) -> dict[str, Any]:
    """One of the last picks. Never the prompt. `clock_offset`: what makes a time of the core one of the wall."""
    return {
        "at": decision.at + clock_offset,
        "model": decision.demand.model,
        "tokens": decision.demand.tokens,
        "pick": decision.rank.id.pod,
        "rank": decision.rank.id.rank,
        "matched_tokens": decision.matched_tokens,
        "reason": decision.reason,
        **_waited(decision),
        **({"pieces": decision.pieces} if decision.pieces else {}),
        **({} if decision.shadow is None else {"shadow": decision.ranks[decision.shadow].id.pod}),
        "pods": _candidates(decision, decision.states),
    }


def _waited(decision: Decision) -> dict[str, Any]:
    if decision.waited is None:
        return {}
    seconds, reason = decision.waited
    return {"waited_s": round(seconds, 6), "waited_for": reason}


def sessions_answer(core: Core, limit: int, now: float) -> dict[str, Any]:
    """Who lives, in which caches, what waits, and why. `limit`: of sessions and of what waits, each."""
    core.sessions.expire(now)
    tokens, room = core.working_set(now)
    ranks = {rank.load: rank for rank in core.fleet.ranks}
    return {
        "live": core.sessions.live(LIVE_S, now),
        "kept": len(core.sessions),
        "continuing": round(core.chains.continuing, 4),
        "working_set": {"tokens": tokens, "capacity_tokens": room, "ratio": round(tokens / room, 4) if room else None},
        "held": core.hold.waiting,
        "waiting_for_room": core.queue.waiting,
        "pods": [_working_set(rank, core, now) for rank in ranks.values()],
        "waiting": [_held(held, ranks, now) for held in islice(core.hold, limit)],
        "sessions": [_session(session, now) for session in islice(core.sessions.newest(), limit)],
    }


def _working_set(rank: Rank, core: Core, now: float) -> dict[str, Any]:
    """What lives in a pod's own cache; `offloaded_blocks`: what its lower tiers hold is room beside that."""
    live, room, holding = rank.lives.tokens(now), rank.capacity, core.index.holding(rank.id)
    return {
        "pod": rank.id.pod,
        "rank": rank.id.rank,
        "live_tokens": live,
        "capacity_tokens": room,
        "ratio": round(live / room, 4) if room else None,
        "offloaded_blocks": holding.cpu + holding.disk,
    }


def _held(held: Held, ranks: Mapping[PodLoad, Rank], now: float) -> dict[str, Any]:
    """Somebody who waits, and for what; `pod`: where it would go."""
    rank = None if held.load is None else ranks.get(held.load)
    return {
        "waits_s": round(now - held.since, 3),
        "prefill_s": round(held.cost_s, 3),
        "priority": held.priority,
        "pod": None if rank is None else rank.id.pod,
        "rank": None if rank is None else rank.id.rank,
        "reason": held.reason or "it has just come",
    }


def _session(session: LiveSession, now: float) -> dict[str, Any]:
    """One that has no name of its client's has a number."""
    rank, name = session.at, session.name
    assert isinstance(rank, RankId)
    return {
        "session": name if isinstance(name, str) else f"{name:016x}",
        "named": isinstance(name, str),
        "pod": rank.pod,
        "rank": rank.rank,
        "tokens": session.tokens,
        "prompts": session.prompts,
        "in_flight": session.in_flight,
        "idle_s": 0.0 if session.in_flight else round(now - session.used_at, 3),
        "age_s": round(now - session.began, 3),
    }


def shadow_answer(shadow: Shadow | None) -> dict[str, Any] | None:
    """What another policy would have done; `share`: of the picks that are the same."""
    if shadow is None:
        return None
    share = round(shadow.same / shadow.picks, 4) if shadow.picks else None
    return {"policy": shadow.name, "picks": shadow.picks, "same": shadow.same, "share": share}


def mix_answer(core: Core) -> dict[str, Any]:
    """What kind of work comes, and by what that is seen."""
    mix = core.chains.mix
    return {
        "name": mix.name,
        "continuing": round(mix.continuing, 3),
        "shared": round(mix.shared, 3),
        "prompt_tokens": round(mix.tokens),
    }


def pod_answer(pod: Pod, core: Core, now: float) -> dict[str, Any]:
    """All that is known of a pod."""
    return {
        "pod": pod.name,
        "address": pod.address,
        "fit": pod.fit(now),
        "unfit": pod.unfit(now),
        "healthy": pod.healthy,
        "draining": pod.draining,
        "failures": pod.failures,
        "breaker": _breaker(pod.breaker, now),
        "slow_start_s": round(max(0.0, pod.slow_until - now), 3),
        "models": [m["id"] for m in pod.models or ()],
        "tokenizers": {m["id"]: _tokenizer(m["id"], core) for m in pod.models or () if not m.get("parent")},
        "max_model_len": pod.context_tokens,
        "version": pod.version,
        "engine": pod.engine,
        "engine_cache": {
            **own_hit_ratio(pod)._asdict(),
            "order": METHODS,
            "names": {figure: name for figure, name in pod.engine_names.items() if figure in CACHE_FIGURES},
        },
        "evidence": {"source": pod.evidence.source, "order": ["usage", "counters"]},
        "ranks": [_rank(rank, core, now) for rank in pod.ranks],
    }


def tiers_of(hit: Hit) -> dict[str, int]:
    """Matched blocks by tier, only those that there are; what is predicted counts as gpu."""
    tiers = {"gpu": hit.gpu + hit.predicted, "cpu": hit.cpu, "disk": hit.disk}
    return {tier: blocks for tier, blocks in tiers.items() if blocks}


def _candidates(decision: Decision, states: Sequence[str]) -> list[dict[str, Any]]:
    return [_candidate(decision, one, states[one.candidate.number]) for one in scored(decision.pick)]


def _explained(decision: Decision, scoring: Settings) -> list[dict[str, Any]]:
    """All candidates, with what their prices are made of."""
    known = parts(decision.pick, scoring)
    each = _candidates(decision, [rank.state for rank in decision.ranks])
    for one, of_price in zip(each, known or (), strict=known is not None):
        one["price_parts"] = {name: round(seconds, 6) for name, seconds in of_price.items()}
    return each


def _candidate(decision: Decision, one: Scored, state: str) -> dict[str, Any]:
    """`state`: of its feed. What only texts say is no block and no promise: it is given for itself."""
    candidate, by_text = one.candidate, decision.demand.text is not None
    rank = decision.ranks[candidate.number]
    hit = MISS if by_text or rank.trust.rule is None else decision.hits[candidate.number]
    return {
        "pod": rank.id.pod,
        "rank": rank.id.rank,
        "score": round(one.score, 4),
        "price": round(one.price, 6),
        "matched_blocks": hit.blocks,
        "matched_tokens": 0 if by_text else candidate.matched,
        "matched_by_tier": tiers_of(hit),
        "predicted_blocks": hit.predicted,
        "state": state if state != "exact" or _is_verified(decision.demand.of(rank), hit) else "degraded",
        "load": {
            "requests": candidate.requests,
            "prefill_tokens": candidate.prefill_tokens,
            "backlog_s": round(candidate.backlog_s, 6),
        },
        "evicted": {"tokens": candidate.evicted, "again": round(candidate.again, 3)},
        **({"text_tokens": candidate.matched} if by_text else {}),
    }


def _is_verified(demand: Demand, hit: Hit) -> bool:
    """Are the tokens those of the pods? A `hit` by blocks that events told of, to the prompt's end, shows it."""
    if demand.reason is not None:
        return False
    if demand.origin is None or demand.origin.verified:
        return True
    return 0 < hit.blocks == hit.gpu and any(hit.blocks == len(keys) for keys in demand.keys.values())


def _tokenizer(model: str, core: Core) -> dict[str, Any]:
    """`state` is that of our own tokenizer, `pod` where there is none; `source`: whose tokens are used."""
    known = core.fleet.tokenizers.get(model)
    if known is None:
        own = {"state": "pod", "reason": "it is not tokenized here: the pods' /tokenize is asked", "compared": 0}
    else:
        own = {"state": known.state, "reason": known.reason, "compared": known.compared}
    ladder = core.fleet.ladders.get(model)
    return own if ladder is None else {**own, **ladder_answer(ladder)}


def ladder_answer(ladder: Ladder) -> dict[str, Any]:
    """Whose tokens a model's prompts are routed by, and how far each source is proven."""
    sources = {
        state.source: {
            "state": state.state,
            "reason": state.reason,
            "proven": sorted(state.proven),
            "confirmed": state.confirmed,
            "contradicted": state.contradicted,
        }
        for state in ladder.states
    }
    return {"source": ladder.current, "why": ladder.why, "sources": sources}


def _breaker(breaker: Breaker, now: float) -> dict[str, Any]:
    return {
        "state": breaker.state(now),
        "reason": breaker.reason if breaker.tripped else None,
        "openings": breaker.openings,
        "blocked_s": round(max(0.0, breaker.blocked_until - now), 3),
    }


def rule_of(rank: Rank) -> dict[str, Any]:
    """How much it reuses of what it holds, in words, and whether that is believed and proven."""
    trust = rank.trust
    calibration = trust.calibration
    return {"rule": str(calibration.rule), "believed": trust.rule is not None, "proven": calibration.proven}


def _rank(rank: Rank, core: Core, now: float) -> dict[str, Any]:
    holding, feed, load = core.index.holding(rank.id), rank.feed, rank.load
    return {
        "rank": rank.id.rank,
        "global_rank": rank.pod.global_rank(rank.id.rank),
        "state": rank.state,
        "reasons": feed.reasons if feed is not None else ["the pod has no event feed"],
        "block_size": rank.block_size,
        "hit_rule": rule_of(rank),
        "blocks": holding._asdict(),
        "events": None
        if feed is None
        else {
            "sequence": feed.last_number,
            "heard_s_ago": None if feed.last_heard is None else round(now - feed.last_heard, 3),
            "lag_s": round(feed.lag_s, 6),
            "counts": feed.counts.told(),
            "dropped": feed.dropped,
            "proofs": feed.trust.proofs,
            "error_tokens": feed.trust.error_tokens,
        },
        "load": {
            "requests": load.requests,
            "prefill_tokens": load.prefill_tokens,
            "backlog_s": round(load.backlog_s(now), 6),
            "prefill_tokens_per_s": round(load.rate.tokens_per_s, 1),
            "prefill_samples": load.rate.samples,
        },
    }
