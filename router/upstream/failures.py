"""What may go wrong between us and one pod, by name.

`reason` is a short word from a bounded set, fit for a metric's label. `before_first_byte` says that no whole
head of a response has come: nothing of this attempt can have reached a client, and another pod may be asked.
`breaks` is how often the pod had the request and broke off: maybe because of it.
"""

from __future__ import annotations

BREAKS = frozenset((502, 504))
"""Statuses by something before the pod, which may have had the request and died of it, or be at work on it."""


class UpstreamError(Exception):
    """The root: one exchange with one pod has failed."""

    reason = "upstream"
    breaks = 1

    def __init__(self, message: str, *, before_first_byte: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.before_first_byte = before_first_byte


class ConnectFailed(UpstreamError):
    """No connection could be had, so the pod has not seen the request."""

    reason = "connect_failed"
    breaks = 0


class ConnectTimeout(ConnectFailed):
    """No connection within `connect_timeout_s`."""

    reason = "connect_timeout"


class PoolFull(ConnectFailed):
    """The pod has `connections_max` connections and none of them is free."""

    reason = "pool_full"


class ResponseTimeout(UpstreamError):
    """The pod took the request and was silent, or not done, for longer than a limit."""

    reason = "response_timeout"


class BrokenResponse(UpstreamError):
    """The response is not HTTP/1.1, breaks a limit, or ends before its end."""

    reason = "broken_response"


class StaleConnection(BrokenResponse):
    """A connection that had served before died without one byte of a response: it was closing as we wrote."""

    reason = "stale_connection"


class UnsendableRequest(ValueError):
    """The method, target or headers would not be one well-formed request head: the client's fault."""
