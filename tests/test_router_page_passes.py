"""Passes: good for their time, under the key that they were signed with, and for nobody who has only seen one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.config.gateway import GatewayConfig
from router.page.passes import COOKIE, Passes


def shows(key: str, **more: Any) -> dict[str, Any]:
    """A request that shows a key."""
    return {"headers": [(b"authorization", f"Bearer {key}".encode())], **more}


def value_of(cookie: str) -> str:
    name, _, value = cookie.split(";")[0].partition("=")
    assert name == COOKIE
    return value


def allows(passes: Passes, value: str) -> bool:
    return passes.allow([(b"cookie", f"a=b; {COOKIE}={value}".encode("latin-1"))])


def test_of_all_who_have_the_key() -> None:
    """A pass that one process made is good at every other with the same key, and at no other."""
    value = value_of(Passes(GatewayConfig(operator_key="k3y"), 60).made(shows("k3y")))
    assert allows(Passes(GatewayConfig(operator_key="k3y"), 60), value)
    assert not allows(Passes(GatewayConfig(operator_key="other"), 60), value)
    assert not allows(Passes(GatewayConfig(), 60), value)


def test_what_is_no_pass() -> None:
    """Changed, cut, of another time, or over: none."""
    passes = Passes(GatewayConfig(operator_key="k3y"), 60)
    until, _, signature = value_of(passes.made(shows("k3y"))).partition(".")
    assert allows(passes, f"{until}.{signature}")
    for value in (
        "", ".", until, f"{until}.", f"{int(until) + 1}.{signature}", f"{until}.{signature[:-1]}", f"{until}.é",
        f"-{until}.{signature}", f"{'9' * 5000}.{signature}", f"²{until}.{signature}",
    ):  # fmt: skip
        assert not allows(passes, value), value
    assert not allows(passes, value_of(Passes(GatewayConfig(operator_key="k3y"), -1).made(shows("k3y"))))
    assert not passes.allow([(b"cookie", b"\xff\xfe"), (b"x-cookie", b"a")])


def test_wrong_key_makes_none() -> None:
    """Whoever shows no good key gets a cookie that says nothing."""
    assert value_of(Passes(GatewayConfig(operator_key="k3y"), 60).made(shows("no"))) == ""


def test_key_file(tmp_path: Path) -> None:
    """Each key of a file signs; one that is taken away takes its passes along."""
    file = tmp_path / "keys"
    file.write_text("first\nsecond\n")
    passes = Passes(GatewayConfig(operator_key_file=str(file)), 60)
    values = [value_of(passes.made(shows(key))) for key in ("first", "second")]
    assert [allows(passes, value) for value in values] == [True, True]
    file.write_text("second\n")
    later = Passes(GatewayConfig(operator_key_file=str(file)), 60)
    assert [allows(later, value) for value in values] == [False, True]


@pytest.mark.parametrize(
    ("scope", "secure"),
    [({}, False), ({"scheme": "https"}, True), ({"headers": [(b"x-forwarded-proto", b"https")]}, True)],
)
def test_cookie(scope: dict[str, Any], secure: bool) -> None:
    """Out of reach of scripts and of other sites; over TLS only, where the browser came by it."""
    cookie = Passes(GatewayConfig(operator_key="k3y"), 60).ended({"headers": [], **scope})
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Max-Age=0" in cookie
    assert ("Secure" in cookie) is secure
