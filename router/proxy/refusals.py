"""Answers by which a pod says that it can't take a request now, so that another one may."""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

from router.core.demand import NOT_DONE

REFUSALS = frozenset((429, 502, 503, 504))
DISPUTES = frozenset((401, 403, 404))
"""The client's fault, or that of this pod alone: a key that was changed, a model that is gone. Another pod knows."""
DECLINED = frozenset(range(NOT_DONE, 500)) - DISPUTES - REFUSALS
"""The client's fault, unless a pod says so all the time: it may lack a template, or an option that the others have."""


def retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Seconds of a Retry-After (RFC 9110, 10.2.3: a number or a date), at least 0; None without a valid one."""
    for name, value in headers:
        if name == b"retry-after":
            return _seconds(value.decode("latin-1").strip())
    return None


def _seconds(text: str) -> float | None:
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):  # a year that no calendar has
        return None
