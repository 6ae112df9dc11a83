"""Our data path with a routing that costs nothing: uvicorn, an ASGI dispatcher, `Proxy`, round-robin.

`python -m benchmarks.proxy_ours --port 8000 --pods http://127.0.0.1:9001,http://127.0.0.1:9002`
"""

from __future__ import annotations

import argparse
import itertools

import orjson
import uvicorn

from router.config.gateway import GatewayConfig
from router.config.upstream import UpstreamConfig
from router.errors import BadRequest, NoFitPod
from router.proxy.proxy import Outcome, Proxy
from router.server.asgi import Headers, Receive, Scope, Send, send_error
from router.server.limits import ServingLimits
from router.server.port import Port
from router.upstream.connection import UpstreamLimits
from router.upstream.pool import Upstream


class RoundRobin:
    """The pods in turn, and the counters that a router would keep."""

    def __init__(self, addresses: list[str]) -> None:
        limits = UpstreamLimits.of(UpstreamConfig())
        self.upstreams = {f"pod-{number}": Upstream(address, limits) for number, address in enumerate(addresses)}
        self._turn = itertools.cycle(self.upstreams)
        self.in_flight = dict.fromkeys(self.upstreams, 0)
        self.cached_tokens = 0
        self.broken = 0  # pods that the request broke before it was sent: none are asked here
        self._request_ids = itertools.count()

    def route(self, exclude: frozenset[str]) -> Turn:
        """The next pod that is not excluded."""
        for _ in self.upstreams:
            pod = next(self._turn)
            if pod not in exclude:
                self.in_flight[pod] += 1
                return Turn(self, pod, b"%016x" % next(self._request_ids))
        raise NoFitPod("Every pod has failed.")


class Turn:
    """One pod's turn."""

    preparation = None
    __slots__ = ("_owner", "pod", "request_headers", "response_headers", "upstream")

    def __init__(self, owner: RoundRobin, pod: str, request_id: bytes) -> None:
        self._owner = owner
        self.pod = pod
        self.upstream = owner.upstreams[pod]
        self.request_headers: Headers = [(b"x-request-id", request_id)]
        self.response_headers: Headers = [
            (b"x-warmroute-pod", pod.encode()),
            (b"x-warmroute-matched-tokens", b"0"),
            (b"x-request-id", request_id),
        ]

    def first_byte(self, now: float) -> None:
        """Nothing to learn here."""

    def failed(self, reason: str, now: float) -> None:
        """Give the turn back."""
        self._owner.in_flight[self.pod] -= 1

    def finished(self, outcome: Outcome, now: float) -> None:
        """Give the turn back, and count."""
        self._owner.in_flight[self.pod] -= 1
        if outcome.usage is not None:
            self._owner.cached_tokens += outcome.usage.cached_tokens or 0


class Dispatcher:
    """Reads the body and parses it, as the real one must, and forwards."""

    def __init__(self, addresses: list[str]) -> None:
        self._routes = RoundRobin(addresses)
        self._proxy = Proxy()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        try:
            orjson.loads(body or b"{}")
        except orjson.JSONDecodeError as error:
            await send_error(send, BadRequest(f"Not JSON: {error}."))
            return
        await self._proxy.forward(scope, receive, send, body, self._routes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pods", required=True, help="comma-separated addresses")
    options = parser.parse_args()
    uvicorn.run(
        Dispatcher(options.pods.split(",")),
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http=Port(ServingLimits.of(GatewayConfig())),  # type: ignore[arg-type]
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    main()
