"""Sockets to listen on that several processes may have for the same port: the kernel spreads connections over them."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

from router.errors import ConfigError

_HINTS = {
    errno.EADDRINUSE: "is in use: somebody listens there already; take another one, or 0 for any that is free",
    errno.EADDRNOTAVAIL: "can't be listened on: that is no address of this machine (0.0.0.0 is all of them)",
    errno.EACCES: "can't be listened on: this user may not (ports below 1024 often need root)",
}


def shared_sockets(host: str, port: int) -> list[socket.socket]:
    """One bound socket for each address of `host`; raises `ConfigError`. It takes connections once it listens."""
    return _bound(host, port, shared=True)


def reserved(host: str, port: int) -> list[socket.socket]:
    """As `shared_sockets`, for whoever keeps a port for others: raises `ConfigError` where somebody listens already.

    Else a second gateway would take a part of the first one's connections, without a word.
    """
    probed = _bound(host, port, shared=False)
    port = int(probed[0].getsockname()[1])
    for sock in probed:
        sock.close()
    return shared_sockets(host, port)


def must_be_free(host: str, port: int) -> None:
    """Raises `ConfigError` in plain words where nothing could listen now."""
    for sock in _bound(host, port, shared=False):
        sock.close()


def _bound(host: str, port: int, shared: bool) -> list[socket.socket]:
    if shared and not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("gateway.workers: this system can't spread connections over several processes.")
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        addresses = _addresses(host, port)
        try:
            for family, kind, protocol, _, address in addresses:
                sock = opened.enter_context(socket.socket(family, kind, protocol))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if shared:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address[0], port, *address[2:]))
                port = port or int(sock.getsockname()[1])  # the same for all addresses
                sockets.append(sock)
        except OSError as error:
            why = _HINTS.get(error.errno or 0, f"can't be listened on: {error.strerror or error}")
            raise ConfigError(f"port {port} of {host} {why}") from error
        opened.pop_all()
        return sockets


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"gateway.host: {host} is not known ({error}); 0.0.0.0 is all addresses of this machine"
        ) from None
    return list(dict.fromkeys(found))  # type: ignore[arg-type]
