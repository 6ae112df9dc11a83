"""One line in the log for each request, at its end: where it went, how it ended, how much was cached, and why not more.

Its level says how it ended: info, warning where another pod had to be asked or the client was refused, error where
nobody could serve it. Nothing of a prompt is in it, unless that is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

from router.causes.names import Why
from router.config.settings import LogConfig
from router.core.demand import Placement, Story
from router.errors import RouterError

LineFields: TypeAlias = dict[str, Any]
"""What programs read of one request."""

log = logging.getLogger("warmroute.requests")

_REFUSED, _FAILED = 400, 500
GONE = "client_gone"
"""The error of a request whose client has left."""


class RequestLog:
    """See the module. Lines are written together, so that each costs little: `flush` writes them."""

    def __init__(self, given: LogConfig) -> None:
        self._lines: dict[int, list[LineFields]] = {}
        self._least = {"all": logging.DEBUG, "errors": logging.WARNING, "none": logging.CRITICAL}[given.requests]
        self._body_max = given.prompt_max if given.prompts else 0

    def tell(
        self, story: Story, model: str | None, placement: Placement | None, body: bytes | None,
        refusal: RouterError | None,
    ) -> None:  # fmt: skip
        """Keep the line, if it is wanted."""
        level = _level(story)
        if level < self._least or not log.isEnabledFor(level):
            return
        fields = _fields(story, model, placement)
        if refusal is not None:
            fields["error_message"] = refusal.message
        if body is not None and self._body_max:
            fields["body"] = body[: self._body_max].decode("utf-8", "replace")
        self._lines.setdefault(level, []).append(fields)

    def flush(self) -> None:
        """Write what there is: a record for each level, of one or more lines."""
        for level, requests in self._lines.items():
            record = log.makeRecord(log.name, level, "", 0, _Text(requests), (), None)
            record.requests = requests
            log.handle(record)
        self._lines.clear()


class _Text:
    """Lines for people, made when somebody reads them."""

    def __init__(self, requests: Sequence[LineFields]) -> None:
        self._requests = requests

    def __str__(self) -> str:
        return "\n".join(map(request_line, self._requests))


def _level(story: Story) -> int:
    status = story.status
    if story.error == GONE:
        return logging.INFO
    if status is None or status >= _FAILED or (story.error is not None and status < _REFUSED):
        return logging.ERROR
    return logging.WARNING if status >= _REFUSED or len(story.tries) > 1 else logging.INFO


def _fields(story: Story, model: str | None, placement: Placement | None) -> LineFields:
    """What programs read of it."""
    ended = story.ended_at or story.began
    fields: LineFields = {"request_id": story.id.decode("latin-1"), "path": story.path, "status": story.status}
    if model is not None:
        fields["model"] = model
    fields["duration_s"] = _rounded(ended - story.began)
    if story.first_at is not None:
        fields["ttft_s"] = _rounded(story.first_at - story.began)
    if story.error is not None:
        fields["error"] = story.error
    if placement is not None:
        fields["pod"] = str(placement.decision.rank.id)
        fields["reason"] = placement.decision.reason
    if len(story.tries) > 1:
        fields["attempts"] = [{"pod": str(one.at), "result": one.how} for one in story.tries]
    if isinstance(story.why, Why):
        why, missed = story.why, dict[str, int]()
        fields["prompt_tokens"], fields["cached_tokens"], fields["missed"] = why.tokens, why.delivered, missed
        for one in why.missed:
            missed[one.cause] = missed.get(one.cause, 0) + one.tokens
    return fields


def _rounded(spent_s: float) -> float:
    """To a tenth of a millisecond, by less work than `round` does."""
    return int(spent_s * 1e4 + 0.5) / 1e4


def request_line(fields: LineFields) -> str:
    """What people read of a request."""
    parts = [f"{fields['request_id']} {fields['path']} {fields['status'] or '-'}"]
    if "pod" in fields:
        parts.append(f"at {fields['pod']}")
    parts.append(f"in {fields['duration_s']:g} s")
    if "ttft_s" in fields:
        parts.append(f"(first byte {fields['ttft_s']:g} s)")
    line = " ".join(parts)
    if "error" in fields:
        line += f": {fields['error']}" + (f": {fields['error_message']}" if "error_message" in fields else "")
    if "attempts" in fields:
        line += "; asked: " + ", ".join(f"{one['pod']} {one['result']}" for one in fields["attempts"])
    if "prompt_tokens" in fields:
        line += f"; {fields['cached_tokens']} of {fields['prompt_tokens']} tokens cached"
        if fields["missed"]:
            line += " (" + ", ".join(f"{cause} {tokens}" for cause, tokens in fields["missed"].items()) + ")"
    if "body" in fields:
        line += f"; body: {fields['body']!r}"
    return line
