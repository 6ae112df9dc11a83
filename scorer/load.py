"""What is in flight: tickets taken at decision time, given back once.

A pod's backlog is the prefill that was promised to it and is not yet done, in seconds at the pod's own speed. It is
counted when the decision is made. A pod computes prompts in the order in which they came, so a first byte proves that
all before it is done, and when the rest will be. Between two first bytes the backlog shrinks with time, but by no more
than the prefill at the head of the line costs: as long as a stream that should have begun has not, nothing behind it
has either, however cheap it was thought. Answers that come whole tell nothing before their end; of them the time is
believed, and what the pod itself says is waiting (`stated`).

A pod's speed is measured by who comes when nothing else is to be computed. A pod that is never idle shows only that it
is faster than believed: by having done more in some seconds than it could have.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from scorer.cost import PrefillRate

_STINT_S = 5.0
_OUTDONE = 1.25  # times what was believed possible: a prediction may well be wrong by less


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way to one pod. `cost_s`: its predicted prefill; `behind_s`: of all promised up to it."""

    load: PodLoad
    tokens: int
    cost_s: float
    behind_s: float
    taken_at: float
    start: int  # tokens before those that are to be computed
    alone: bool  # there was no backlog: what is measured is the pod's speed
    tells: bool  # its first byte follows its prefill at once
    in_prefill: bool = True
    released: bool = False
    guessed: bool = False  # what is computed for it


@dataclass(slots=True)
class _Stint:
    """Some seconds, and what was promised since and is done: so it took no longer than that."""

    since: float = float("-inf")
    cost_s: float = 0.0
    tokens: int = 0
    positions: float = 0.0  # the sum of the places at which they stand, in prompts of their own

    def done(self, ticket: Ticket, now: float, rate: PrefillRate) -> None:
        """Learn what it shows, if it was long enough."""
        if ticket.taken_at >= self.since and not ticket.guessed:
            self.cost_s += ticket.cost_s
            self.tokens += ticket.tokens
            self.positions += ticket.tokens * (ticket.start + ticket.tokens / 2)
        passed_s = now - self.since
        if passed_s < _STINT_S:
            return
        if self.cost_s > _OUTDONE * passed_s:
            middle = self.positions / self.tokens
            rate.learn(self.tokens, passed_s, middle - self.tokens / 2)  # as one prompt with its middle there
        self.since, self.cost_s, self.tokens, self.positions = now, 0.0, 0, 0.0


class PodLoad:
    """The load of one candidate; `rate` is what was learned of its speed."""

    __slots__ = (
        "_busy_until", "_front_at", "_front_s", "_head", "_head_at", "_line", "_others_owed_s", "_others_promised_s",
        "_others_turn", "_others_until", "_owed_s", "_promised_s", "_stated_at", "_stint", "_telling", "_total_s",
        "moved", "prefill_tokens", "rate", "requests", "stated_s", "tickets",
    )  # fmt: skip

    def __init__(self, rate: PrefillRate) -> None:
        self.requests = 0
        self.prefill_tokens = 0  # uncached prompt tokens of requests without a first byte
        self.rate = rate
        self.moved: set[PodLoad] | None = None
        """Where it enters itself when it changes, for who keeps what many have."""
        self.tickets = 0  # since ever
        self._total_s = 0.0  # promised to all of them
        self._promised_s = 0.0  # to requests without a first byte
        self._busy_until = 0.0  # if all goes as predicted
        self._line: dict[Ticket, None] = {}  # without a first byte, in order
        self._telling: dict[Ticket, None] = {}  # those of them that tell
        self._head: Ticket | None = None  # the first of these
        self._head_at = 0.0  # since when it is
        self._owed_s = 0.0  # promised to those that tell
        self._front_at = 0.0  # since when the head of the line is computed, of those that tell: it may be another's,
        self._front_s = 0.0  # and what it costs
        self._others_promised_s = 0.0  # by other workers (see `board`)
        self._others_owed_s = 0.0
        self._others_turn = 0.0  # of the first that waits for it with another worker (see `hold`),
        self._others_until = 0.0  # as long as that may be believed
        self.stated_s = 0.0  # waits by the pod's own account
        self._stated_at = 0.0
        self._stint = _Stint()

    @property
    def own_requests(self) -> int:
        """Those of this process alone, where others send to the pod too (see `board`)."""
        return self.requests

    @property
    def own_prefill_tokens(self) -> int:
        return self.prefill_tokens

    @property
    def owes(self) -> bool:
        """Whether somebody waits here whose first byte will tell of it: so there is a backlog, however long."""
        return self._head is not None

    def backlog_s(self, now: float) -> float:
        """Seconds until a prefill that comes now could start."""
        left = self._busy_until - now
        if left > self._promised_s:
            left = self._promised_s
        owed = self._owed_s + self._others_owed_s
        if owed > 0.0:
            spent, front_s = now - self._front_at, self._front_s
            owed -= spent if spent < front_s else front_s
            if owed > left:
                left = owed
        if self.stated_s:
            stated = self.stated_s - (now - self._stated_at)
            if stated > left:
                left = stated
        return left if left > 0.0 else 0.0

    def is_awaited(self, turn: float, now: float) -> bool:
        """Does somebody wait for it elsewhere whose turn is earlier?"""
        return now < self._others_until and self._others_turn < turn

    def await_here(self, turn: float, until: float) -> None:
        """The first that waits for it here, for who may want to know."""

    def admit(self, tokens: int, now: float, start: int = 0, tells: bool = False) -> Ticket:
        """Promise the pod `tokens` uncached prompt tokens behind `start` others.

        `tells`: the first byte will follow the prefill at once.
        """
        cost_s = self.rate.cost_s(tokens, start)
        backlog_s = self.backlog_s(now) if self.prefill_tokens or self.stated_s else 0.0
        self.requests += 1
        self.prefill_tokens += tokens
        self.tickets += 1
        self._total_s += cost_s
        self._promised_s += cost_s
        self._busy_until = now + backlog_s + cost_s
        if self.moved is not None:
            self.moved.add(self)
        ticket = Ticket(self, tokens, cost_s, self._total_s, now, start, backlog_s <= 0.0, tells)
        self._line[ticket] = None
        if tells:
            self._telling[ticket] = None
            self._owed_s += cost_s
            if self._head is None:
                self._lead(ticket, now + backlog_s, now)
        return ticket

    def first_byte(self, ticket: Ticket, now: float, measured: bool) -> None:
        """The prefill of `ticket` is done. `measured`: just now."""
        if not ticket.in_prefill:
            return
        behind_s = self._total_s - ticket.behind_s + self._others_promised_s
        self._prefilled(ticket, now)
        until = now + behind_s
        if measured or until < self._busy_until:
            self._busy_until = until
        if measured and ticket.alone and not ticket.guessed:
            self.rate.learn(ticket.tokens, now - ticket.taken_at, ticket.start)
        self._stint.done(ticket, now, self.rate)

    def release(self, ticket: Ticket, now: float | None = None) -> bool:
        """Give a ticket back; False if it was given back before. `now` None: the time is that of the last news."""
        if ticket.released:
            return False
        ticket.released = True
        self.requests -= 1
        if self.moved is not None:
            self.moved.add(self)
        if ticket.in_prefill:
            self._prefilled(ticket, self._head_at if now is None else now)
            self._busy_until -= ticket.cost_s
        return True

    def stated(self, waiting: int, asked_at: float) -> None:
        """At `asked_at` or a moment later, so many requests waited at the pod: they are the newest that it has.

        More than were sent from here are others': they are taken to be like ours.
        """
        known = [ticket for ticket in islice(reversed(self._line), waiting) if ticket.taken_at < asked_at]
        others = waiting - len(known) if len(known) == len(self._line) else 0
        usual_s = self._total_s / self.tickets if self.tickets else 0.0
        self.stated_s = sum(ticket.cost_s for ticket in known) + others * usual_s
        self._stated_at = asked_at
        if self.moved is not None:
            self.moved.add(self)

    def _prefilled(self, ticket: Ticket, now: float) -> None:
        """No prefill of `ticket` is to come any more."""
        ticket.in_prefill = False
        del self._line[ticket]
        self.prefill_tokens -= ticket.tokens
        if self.moved is not None:
            self.moved.add(self)
        self._promised_s -= ticket.cost_s
        if not self._line and not self.prefill_tokens:  # what is left are rounding errors
            self._promised_s = 0.0
        if not ticket.tells:
            head = self._head
            if head is not None and ticket.behind_s < head.behind_s:  # its turn comes so much earlier
                self._lead(head, min(self._head_at, max(now, self._head_at - ticket.cost_s)), now)
            return
        del self._telling[ticket]
        self._owed_s -= ticket.cost_s
        if not self._telling:
            self._owed_s = 0.0
        if ticket is self._head:
            self._lead(next(iter(self._telling), None), now, now)

    def _lead(self, head: Ticket | None, head_at: float, now: float) -> None:
        """It is the first of those that tell, and its turn is then."""
        self._head, self._head_at = head, head_at
        self._front_at, self._front_s = head_at, 0.0 if head is None else head.cost_s
