"""Sessions that live: which, for how long, how many."""

from __future__ import annotations

from scorer.sessions import LiveSessions, SessionLimits


def names(sessions: LiveSessions) -> list[str | int]:
    return [session.name for session in sessions.newest()]


def test_a_session_is_what_its_newest_prompt_was() -> None:
    """Where it went, how long it is; it lives while it is asked, and for a while after."""
    sessions = LiveSessions(SessionLimits(10, 60.0))
    sessions.ended(sessions.sent("a", "pod-0", 100, 0.0), 5.0)
    sessions.ended(sessions.sent(7, "pod-0", 50, 6.0), 7.0)
    again = sessions.sent("a", "pod-1", 300, 20.0)
    assert (again.at, again.tokens, again.prompts, again.in_flight) == ("pod-1", 300, 2, 1)
    assert (again.began, again.used_at) == (0.0, 20.0)
    assert names(sessions) == ["a", 7]
    assert sessions.live(10.0, 25.0) == 1 and sessions.live(30.0, 25.0) == 2


def test_who_asks_nothing_is_forgotten() -> None:
    """Not while an answer is under way, however long."""
    sessions = LiveSessions(SessionLimits(10, 60.0))
    long = sessions.sent("long", "pod-0", 100, 0.0)
    sessions.ended(sessions.sent("short", "pod-0", 100, 1.0), 2.0)
    sessions.expire(61.0)
    assert set(names(sessions)) == {"long", "short"}
    sessions.expire(63.0)
    assert names(sessions) == ["long"]
    sessions.ended(long, 100.0)
    sessions.expire(159.0)
    assert len(sessions) == 1
    sessions.expire(160.0)
    assert len(sessions) == 0


def test_no_more_are_kept_than_may_be() -> None:
    """The oldest goes, and its answer may still end."""
    sessions = LiveSessions(SessionLimits(2, 60.0))
    first = sessions.sent("a", "pod-0", 1, 0.0)
    sessions.sent("b", "pod-0", 1, 1.0)
    sessions.sent("c", "pod-0", 1, 2.0)
    sessions.ended(first, 3.0)
    assert names(sessions) == ["c", "b"] and first.in_flight == 0
