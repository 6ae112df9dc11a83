"""Candidates for a prompt."""

from __future__ import annotations

from scorer.candidates import Candidate

TOKENS = 8000
TOKEN_S = 1 / 8000


def a_candidate(number: int, matched: int = 0, worth: float | None = None, **load: float) -> Candidate:
    """An idle pod that holds `matched` of the prompt's tokens, unless `load` says otherwise."""
    return Candidate(
        number=number,
        tokens=TOKENS,
        matched=matched,
        worth=matched if worth is None else worth,
        requests=int(load.get("requests", 0)),
        prefill_tokens=int(load.get("prefill_tokens", 0)),
        backlog_s=load.get("backlog_s", 0.0),
        token_s=load.get("token_s", TOKEN_S),
        evicted=int(load.get("evicted", 0)),
        again=load.get("again", 0.5),
        fill=load.get("fill", 1.0),
        factor=load.get("factor", 1.0),
    )
