"""What a client's connection and its requests are held to, and the refusals that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.server.heads import Refused


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Every limit of a server's connections. Times are as coarse as `sweep_interval_s`."""

    header_bytes_max: int = 64 * 1024
    header_count_max: int = 128
    url_bytes_max: int = 32 * 1024
    header_timeout_s: float = 15.0  # from a head's first byte to its last
    body_bytes_max: int = 64 * 2**20
    body_timeout_s: float = 60.0  # between two pieces of a body
    body_rate_min: int = 1024  # bytes per second, on the average, once body_timeout_s has passed
    bodies_bytes_max: int = 2 * 2**30  # of all requests that are not answered yet
    send_timeout_s: float = 120.0  # for a client that takes nothing of its response
    keep_alive_s: float = 75.0
    requests_per_connection_max: int | None = None
    connections_max: int = 16_384
    connections_per_client_max: int | None = None
    pipelined_max: int = 16  # requests that wait for the answers to those before them
    unread_bytes_max: int = 256 * 1024  # of a body that the application does not take: reading pauses above it
    linger_s: float = 2.0  # what a refused client still sends is read so long, so that it sees the refusal
    sweep_interval_s: float = 1.0

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
