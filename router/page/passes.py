"""Leave to look at the page: what a browser shows in place of the operator key, which it showed once.

An EventSource can't send a header, and a key has no place in a URL. So the page shows the key once, and gets a cookie:
not the key but a time until which it is good, signed with the key. Every worker and every replica that has the key
knows a pass of any other; a key that is taken away takes its passes along. It lets its bearer look at the page, and
nothing else.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Iterable

from router.config.gateway import GatewayConfig
from router.config.keys import KeyFile, shown_keys
from router.server.asgi import Headers, Scope

COOKIE = "warmroute-page"
_PURPOSE = b"warmroute page until "


class Passes:
    """Those of one gateway. Without an operator key nobody needs one."""

    def __init__(self, gateway: GatewayConfig, valid_s: float) -> None:
        key, path = gateway.operator_key, gateway.operator_key_file
        self._given = [key.get_secret_value()] if key is not None and path is None else []
        self._file = KeyFile(path) if path is not None else None
        self._valid_s = valid_s

    def made(self, scope: Scope) -> str:
        """A `Set-Cookie` for who shows a good key. To be called once that is known."""
        until = b"%d" % (time.time() + self._valid_s)
        good = {key.encode() for key in self._keys()}
        key = next((key for key in shown_keys(scope["headers"]) if key in good), None)
        value = "" if key is None else f"{until.decode()}.{_signed(key, until)}"
        return _cookie(value, round(self._valid_s) if value else 0, _is_private(scope))

    def ended(self, scope: Scope) -> str:
        """A `Set-Cookie` that takes it away."""
        return _cookie("", 0, _is_private(scope))

    def allow(self, headers: Headers) -> bool:
        """Whether a good pass is shown."""
        for value in _shown(headers):
            until, _, signature = value.partition(".")
            if not _is_time(until) or int(until) < time.time():
                continue
            said = signature.encode()
            if any(hmac.compare_digest(_signed(key.encode(), until.encode()).encode(), said) for key in self._keys()):
                return True
        return False

    def _keys(self) -> list[str]:
        if self._file is None:
            return self._given
        self._file.look(time.monotonic())
        return self._file.keys


_is_time = re.compile(r"[0-9]{1,12}").fullmatch


def _signed(key: bytes, until: bytes) -> str:
    return hmac.digest(key, _PURPOSE + until, "sha256").hex()


def _cookie(value: str, age_s: int, private: bool) -> str:
    """Without a path it is for what lies beside the one that set it, wherever a proxy has put the page."""
    secure = "; Secure" if private else ""
    return f"{COOKIE}={value}; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}"


def _is_private(scope: Scope) -> bool:
    """Whether the browser came by TLS, be it to a proxy before us."""
    said = next((value for name, value in scope["headers"] if name == b"x-forwarded-proto"), b"")
    return scope.get("scheme") == "https" or said == b"https"


def _shown(headers: Headers) -> Iterable[str]:
    for name, value in headers:
        if name == b"cookie":
            for cookie in value.decode("latin-1").split(";"):
                said, _, given = cookie.strip().partition("=")
                if said == COOKIE:
                    yield given
