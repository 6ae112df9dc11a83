"""Who may use the operators' endpoints, and who may change anything by them."""

from __future__ import annotations

import time
from ipaddress import ip_address

from router.config.gateway import GatewayConfig
from router.config.keys import KeyRing
from router.errors import Forbidden, RouterError
from router.server.asgi import Scope

_ON_BEHALF = frozenset((b"forwarded", b"x-forwarded-for", b"x-real-ip", b"origin"))
"""Headers of a request that somebody on this machine sends for somebody else: a proxy, or a page in a browser."""


class NotFromHere(RouterError):
    """403: this needs more than to reach the data port."""

    status = 403
    type = "permission_error"
    code = "operators_only"


class OperatorAccess:
    """The rule of one port: with an operator key, everything needs it. Without one, all may look.

    Changes are open then to who reaches a port (or socket) that is for operators alone, else to this machine only.
    """

    def __init__(self, gateway: GatewayConfig, own_port: bool) -> None:
        key, path = gateway.operator_key, gateway.operator_key_file
        given = [key.get_secret_value()] if key is not None and path is None else []
        self._keys = KeyRing(given, path) if given or path is not None else None
        self._own_port = own_port

    def check(self, scope: Scope) -> None:
        """May this request look? Raises `Forbidden`."""
        if self._keys is not None and not self._keys.allows(scope["headers"], time.monotonic()):
            raise Forbidden("The operator key is missing or wrong.")

    def check_operator(self, scope: Scope) -> None:
        """May it change something, or see what is not for all? Raises `Forbidden` or `NotFromHere`."""
        self.check(scope)
        if self._keys is None and not self._own_port and not _is_from_here(scope):
            raise NotFromHere(
                "This needs the operator key (gateway.operator_key), the operators' port (gateway.ops_port), "
                "or a request from the gateway's own machine."
            )

    @property
    def rule(self) -> str:
        """In words, for the log."""
        if self._keys is not None:
            return "the operator key is needed to look and to change"
        if self._own_port:
            return "open to all who reach this port, changes too (gateway.operator_key closes them)"
        return "all may look; changes are taken from this machine only (gateway.operator_key, gateway.ops_port)"


def _is_from_here(scope: Scope) -> bool:
    """Whether a process of this machine sends it, for itself."""
    client = scope.get("client")
    if client is None:  # a Unix socket
        return True
    address = ip_address(client[0].partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback and all(name not in _ON_BEHALF for name, _ in scope["headers"])
