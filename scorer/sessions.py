"""Sessions that live: who asks again and again, with a context that grows. Named by the client, else by the chain that
their prompts continue."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import NamedTuple

NAME_CHARS_MAX = 256
"""Of what clients call theirs: what is longer is told apart by its beginning."""


class SessionLimits(NamedTuple):
    """`kept_max` at most; each until nothing of it was in flight for `idle_s`."""

    kept_max: int
    idle_s: float


class LiveSession:
    """One of them. `tokens`: of its newest prompt, which went to `at`."""

    __slots__ = ("at", "began", "in_flight", "name", "prompts", "tokens", "used_at")

    def __init__(self, name: str | int, now: float) -> None:
        self.name = name
        self.began = self.used_at = now
        self.at: Hashable = None
        self.tokens = 0
        self.prompts = 0
        self.in_flight = 0


class LiveSessions:
    """All that are kept, those that were used last at the end."""

    def __init__(self, limits: SessionLimits) -> None:
        self.limits = limits
        self._sessions: OrderedDict[str | int, LiveSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def sent(self, name: str | int, at: Hashable, tokens: int, now: float) -> LiveSession:
        """A prompt of a session goes to `at`."""
        self.expire(now)
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = LiveSession(name, now)
            if len(self._sessions) > self.limits.kept_max:
                self._sessions.popitem(last=False)
        else:
            self._sessions.move_to_end(name)
        session.at, session.tokens, session.used_at = at, tokens, now
        session.prompts += 1
        session.in_flight += 1
        return session

    def ended(self, session: LiveSession, now: float) -> None:
        """Its answer is out, or will not come."""
        session.in_flight -= 1
        session.used_at = now
        if session.name in self._sessions:
            self._sessions.move_to_end(session.name)

    def expire(self, now: float) -> None:
        """Forget those that were idle for too long."""
        sessions, until = self._sessions, now - self.limits.idle_s
        while sessions:
            oldest = next(iter(sessions.values()))
            if oldest.used_at > until:
                return
            if oldest.in_flight:  # a long answer: it is looked at again later
                oldest.used_at = now
                sessions.move_to_end(oldest.name)
            else:
                del sessions[oldest.name]

    def newest(self) -> Iterator[LiveSession]:
        """All, those that were used last first."""
        return iter(reversed(self._sessions.values()))

    def live(self, within_s: float, now: float) -> int:
        """How many were used within this time."""
        count = 0
        for session in self.newest():
            if now - session.used_at > within_s:
                break
            count += 1
        return count
