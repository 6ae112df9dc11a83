"""What a client's connection and its requests are held to, and the refusals that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from router.server.heads import Refused

if TYPE_CHECKING:
    from router.config.gateway import GatewayConfig


_SWEEP_S = 1.0  # between two looks at all connections


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Every limit of a server's connections. Times are as coarse as `sweep_interval_s`."""

    header_bytes_max: int
    header_count_max: int
    url_bytes_max: int
    header_timeout_s: float  # from a head's first byte to its last
    body_bytes_max: int
    body_timeout_s: float  # between two pieces of a body
    body_rate_min: int  # bytes per second, on the average, once body_timeout_s has passed
    bodies_bytes_max: int  # of all requests that are not answered yet
    send_timeout_s: float  # for a client that takes nothing of its response
    keep_alive_s: float
    requests_per_connection_max: int | None
    connections_max: int
    connections_per_client_max: int | None
    pipelined_max: int  # requests that wait for the answers to those before them
    unread_bytes_max: int  # of a body that the application does not take: reading pauses above it
    linger_s: float  # what a refused client still sends is read so long, so that it sees the refusal
    sweep_interval_s: float

    @classmethod
    def of(cls, gateway: GatewayConfig) -> Self:
        """As configured."""
        shortest_s = min(gateway.header_timeout, gateway.body_timeout, gateway.send_timeout, gateway.keep_alive_timeout)
        return cls(
            header_bytes_max=gateway.header_max,
            header_count_max=gateway.header_count_max,
            url_bytes_max=gateway.url_max,
            header_timeout_s=gateway.header_timeout,
            body_bytes_max=gateway.body_max,
            body_timeout_s=gateway.body_timeout,
            body_rate_min=gateway.body_rate_min,
            bodies_bytes_max=gateway.bodies_max,
            send_timeout_s=gateway.send_timeout,
            keep_alive_s=gateway.keep_alive_timeout,
            requests_per_connection_max=gateway.requests_per_connection_max,
            connections_max=gateway.connections_max,
            connections_per_client_max=gateway.connections_per_client_max,
            pipelined_max=gateway.pipelined_max,
            unread_bytes_max=gateway.body_buffer_max,
            linger_s=gateway.linger_time,
            sweep_interval_s=min(_SWEEP_S, shortest_s / 4),
        )

    def check_head(self, target: bytes, headers: Sequence[tuple[bytes, bytes]], read_bytes: int) -> None:
        """Raises `Refused` for a head that is too large; it came within `read_bytes`, perhaps with more behind it."""
        if len(target) > self.url_bytes_max:
            raise self.overhead(target, in_body=False)
        if len(headers) > self.header_count_max:
            raise Refused(431, f"There are more than {self.header_count_max} headers.")
        if read_bytes > self.header_bytes_max:
            head_bytes = len(target) + sum(len(name) + len(value) for name, value in headers)
            if head_bytes > self.header_bytes_max:
                raise self.overhead(target, in_body=False)

    def check_body(self, size: int) -> None:
        """Raises `Refused` for a body that is, or says that it will be, too large."""
        if size > self.body_bytes_max:
            raise Refused(413, f"The body is larger than {self.body_bytes_max} bytes.")

    def overhead(self, target: bytes, in_body: bool) -> Refused:
        """The refusal of a head, or of what a body has between its pieces; `target` as far as it has come."""
        if in_body:
            return Refused(400, f"There are over {self.header_bytes_max} bytes of framing or trailers.")
        if len(target) > self.url_bytes_max:
            return Refused(414, f"The request target is larger than {self.url_bytes_max} bytes.")
        return Refused(431, f"The request's head is larger than {self.header_bytes_max} bytes.")
