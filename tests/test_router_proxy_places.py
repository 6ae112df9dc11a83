"""Hosts in headers of pods' answers."""

from __future__ import annotations

import pytest

from router.proxy.places import without_hosts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"http://10.0.0.1:8000/v1/x?y=1#z", b"/v1/x?y=1#z"),
        (b"HTTPS://pod-0.svc", b"/"),
        (b"http://[fd00::1]:8000?a=1", b"/?a=1"),
        (b"http://user@pod:1/a//b", b"/a//b"),
        (b"//pod:8000/a", b"/a"),
        (b"/a?next=//b", b"/a?next=//b"),
        (b"../a/", b"../a/"),
        (b"", b""),
        (b"mailto:x@y", b"mailto:x@y"),
    ],
)
def test_a_place(value: bytes, expected: bytes) -> None:
    """A place by http is a path; any other stays."""
    for name in (b"location", b"content-location"):
        assert without_hosts([(b"a", b"http://a/"), (name, value)]) == [(b"a", b"http://a/"), (name, expected)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"<http://pod:8000/a>; rel=next, <https://pod/b>; rel=prev", b"</a>; rel=next, </b>; rel=prev"),
        (b'<//pod:1>; rel="http://pod/x"', b'</>; rel="/x"'),
        (b"</a//b>; rel=next", b"</a//b>; rel=next"),
        (b"5; url=http://pod:8000/a?b", b"5; url=/a?b"),
        (b"5;URL='//pod'", b"5;URL='/'"),
        (b"5, http://pod/", b"5, /"),
        (b"5", b"5"),
    ],
)
def test_places_in_a_value(value: bytes, expected: bytes) -> None:
    """Each of them."""
    for name in (b"link", b"refresh"):
        assert without_hosts([(name, value)]) == [(name, expected)]


def test_another_way() -> None:
    """Past us is none."""
    assert without_hosts([(b"alt-svc", b'h2="pod:443"'), (b"a", b"b")]) == [(b"a", b"b")]


def test_nothing_to_do() -> None:
    """Most answers have none: they stay what they are."""
    headers = [(b"content-type", b"http://pod/")]
    assert without_hosts(headers) is headers
