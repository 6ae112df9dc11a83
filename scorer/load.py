"""What is in flight: tickets taken at decision time, given back once.

A pod's backlog is the prefill that was promised to it and is not yet done, in seconds at the pod's own speed. It is
counted when the decision is made, shrinks as time passes, and what a first byte proves done is taken off: so an
over-estimate heals by itself, and nothing depends on scraped figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from scorer.cost import PrefillRate


@dataclass(slots=True)
class Ticket:
    """One request on its way to one pod. `cost_s`: its predicted prefill."""

    load: PodLoad
    tokens: int
    cost_s: float
    taken_at: float
    alone: bool  # no other prefill was promised to the pod: what is measured is its speed
    in_prefill: bool = True
    released: bool = False


class PodLoad:
    """The load of one candidate; `rate` is what was learned of its speed."""

    __slots__ = ("_busy_until", "_promised_s", "prefill_tokens", "rate", "requests")

    def __init__(self, rate: PrefillRate) -> None:
        self.requests = 0
        self.prefill_tokens = 0  # uncached prompt tokens of requests without a first byte
        self.rate = rate
        self._promised_s = 0.0
        self._busy_until = 0.0

    @property
    def own_requests(self) -> int:
        """Those of this process alone, where others send to the pod too (see `board`)."""
        return self.requests

    @property
    def own_prefill_tokens(self) -> int:
        return self.prefill_tokens

    def backlog_s(self, now: float) -> float:
        """Seconds until a prefill that comes now could start."""
        waits = self._busy_until - now
        if waits <= 0.0:
            return 0.0
        return waits if waits < self._promised_s else self._promised_s

    def admit(self, tokens: int, now: float) -> Ticket:
        """Promise the pod `tokens` uncached prompt tokens."""
        cost_s = self.rate.cost_s(tokens)
        backlog_s, alone = self.backlog_s(now), not self.prefill_tokens
        self.requests += 1
        self.prefill_tokens += tokens
        self._promised_s += cost_s
        self._busy_until = now + backlog_s + cost_s
        return Ticket(self, tokens, cost_s, now, alone)

    def first_byte(self, ticket: Ticket, now: float, measured: bool) -> None:
        """The prefill of `ticket` is done. `measured`: a stream, whose first byte follows the prefill at once."""
        if not ticket.in_prefill or ticket.released:
            return
        self._prefilled(ticket)
        if measured and ticket.alone:
            self.rate.learn(ticket.tokens, now - ticket.taken_at)

    def release(self, ticket: Ticket) -> bool:
        """Give a ticket back; False if it was given back before."""
        if ticket.released:
            return False
        ticket.released = True
        self.requests -= 1
        if ticket.in_prefill:
            self._prefilled(ticket)
        return True

    def _prefilled(self, ticket: Ticket) -> None:
        ticket.in_prefill = False
        self.prefill_tokens -= ticket.tokens
        self._promised_s -= ticket.cost_s
        if not self.prefill_tokens:
            self._promised_s = 0.0
