"""Errors that a client or an operator may see, each with its HTTP status, OpenAI error type, and a word for programs.

All have one shape: `{"error": {"message", "type", "code"}}`, three strings. Whose fault it is decides the class: the
client's (4xx), the pods' (502, 503, 504) or ours (500).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TypeVar

import orjson


class RouterError(Exception):
    """The root: `status` is the HTTP status, `type` and `code` go into the OpenAI error body.

    A class without a `code` is called as its status is.
    """

    status = 500
    type = "internal_error"
    code: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> bytes:
        """The OpenAI error body, as JSON bytes."""
        return orjson.dumps({"error": {"message": self.message, "type": self.type, "code": self.word}})

    @property
    def word(self) -> str:
        """What it is, for programs."""
        return self.code or HTTPStatus(self.status).phrase.lower().replace(" ", "_").replace("-", "_")


_E = TypeVar("_E", bound=BaseException)


def unraised(error: _E) -> _E:
    """`error`, to be kept as a value: it lets go of the frames that it went through, which often refer to it."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


class BadRequest(RouterError):
    """400: the request can't be understood; no pod would understand it either."""

    status = 400
    type = "invalid_request_error"


class MethodNotAllowed(BadRequest):
    """405: the path is ours, and does not take this method."""

    status = 405
    code = "method_not_allowed"


class Forbidden(RouterError):
    """401: the operator key is missing or wrong."""

    status = 401
    type = "authentication_error"
    code = "invalid_operator_key"


class NotFound(RouterError):
    """404: there is no such pod or model."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class NoSuchPath(NotFound):
    """404: nothing is served at this path."""

    code = "no_such_path"


class CalledOff(RouterError):
    """409: what was asked for was called off by somebody else while it was under way."""

    status = 409
    type = "invalid_request_error"
    code = "called_off"


class UnknownModel(RouterError):
    """404: no pod serves this model; the message names the known ones."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class BodyTooLarge(RouterError):
    """413: the body is over `gateway.body_max`."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class Saturated(RouterError):
    """429: a bound on work in flight is reached. `retry_after_s`: when it is worth to come again."""

    status = 429
    type = "rate_limit_error"
    code = "saturated"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Full(Saturated):
    """429: there is no room now, and whoever may wait should: room comes with every request that ends."""


class Busy(Full):
    """As `Full`, of the pod that is best: who waits for it is placed anew with every request that begins or ends.

    `cost_s`: of its prefill there.
    """

    def __init__(self, message: str, cost_s: float = 0.0) -> None:
        super().__init__(message)
        self.cost_s = cost_s


class NoRetry(RouterError):
    """503: another pod could be tried, but the retry budget is spent. Clients see the failure before it instead."""

    status = 503
    type = "service_unavailable"
    code = "retry_budget_spent"
    retry_after_s = 1


class NoFitPod(RouterError):
    """503: there is no pod that may take this request now."""

    status = 503
    type = "service_unavailable"
    code = "no_fit_pod"
    retry_after_s = 1


class PodUnreachable(RouterError):
    """502: every pod that was tried failed before the first byte of its response."""

    status = 502
    type = "bad_gateway"
    code = "pod_unreachable"


class PodTimeout(RouterError):
    """504: the pod accepted the request and did not answer in time."""

    status = 504
    type = "gateway_timeout"
    code = "pod_timeout"


class ConfigError(RouterError):
    """The configuration can't be used; the message is one plain line that says why."""


class BadRecording(RouterError):
    """A recording can't be read; the message is one plain line that says why."""
