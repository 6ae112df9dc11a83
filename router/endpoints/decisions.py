"""The last requests as operators see them: what was decided, from what, how it ended, and why not more was cached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from router.causes.journal import EndedStory, Journal, why_of
from router.causes.names import Missed, Why
from router.core.decision import Core
from router.core.demand import Decision, Story
from router.endpoints.answers import decision_answer


def newest(core: Core, limit: int) -> list[Decision]:
    """The last decisions, newest first; of a request that was decided anew, the last one."""
    found: list[Decision] = []
    seen: set[int] = set()
    for decision in reversed(core.decisions):
        story = decision.story
        if story is not None and id(story) in seen:
            continue
        seen.add(id(story))
        found.append(decision)
        if len(found) == limit:
            break
    return found


def whys(decisions: Iterable[Decision]) -> Iterator[Why]:
    """What was found out of each, where something was."""
    return (why for decision in decisions if (why := why_of(decision.story)) is not None)


def entry(decision: Decision, clock_offset: float) -> dict[str, Any]:
    """One decision, with its request's end. `clock_offset`: one for all that are told together, so that their order is
    that of their times."""
    told = decision_answer(decision, clock_offset) | _ended(decision.story)
    return told | ({"pod": told["pick"]} if told["pod"] is None else {})


def errors_of(journal: Journal, limit: int, clock_offset: float) -> list[dict[str, Any]]:
    """The last requests that ended in an error, newest first."""
    return [_error(ended, at, clock_offset) for ended, at in list(journal.errors)[: -limit - 1 : -1]]


def _error(ended: EndedStory, at: float, clock_offset: float) -> dict[str, Any]:
    if ended.placement is not None:
        decided = decision_answer(ended.placement.decision, clock_offset)
    else:
        decided = {"at": at + clock_offset, "model": ended.model, "tokens": None, "pick": None, "rank": None,
                   "matched_tokens": None, "reason": None, "pods": []}  # fmt: skip
    message = {} if ended.refusal is None else {"message": ended.refusal.message}
    return decided | _ended(ended.story) | message


def _ended(story: Story | None) -> dict[str, Any]:
    """How a request ended; `outcome` is null while it is on its way."""
    why = why_of(story)
    told: dict[str, Any] = {
        "request_id": None,
        "path": None,
        "pod": None,
        "outcome": None,
        "attempts": [],
        "reachable_tokens": None if why is None else why.reachable,
        "captured_tokens": None if why is None else why.captured,
        "delivered_tokens": None if why is None else why.delivered,
        "missed": [] if why is None else [_missed(one) for one in why.missed],
    }
    if story is None:
        return told
    told |= {"request_id": story.id.decode("latin-1"), "path": story.path}
    told["attempts"] = [{"pod": one.at.pod, "rank": one.at.rank, "result": one.how} for one in story.tries]
    if story.tries:
        told["pod"] = story.tries[-1].at.pod
    if story.ended_at is not None:
        prompt_tokens, cached_tokens = story.usage or (None if why is None else why.tokens, None)
        told["outcome"] = {
            "status": story.status,
            "error": story.error,
            "ttft_s": None if story.first_at is None else round(story.first_at - story.began, 6),
            "duration_s": round(story.ended_at - story.began, 6),
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
        }
    return told


def _missed(one: Missed) -> dict[str, Any]:
    return {"cause": one.cause, "tokens": one.tokens, "detail": one.detail}
