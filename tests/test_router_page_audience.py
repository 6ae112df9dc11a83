"""Who looks at the page: the newest picture for who is slow, and nothing for who may look no more."""

from __future__ import annotations

from router.page.audience import Viewer


async def test_slow_viewers_see_the_newest() -> None:
    """What was not taken in time is not sent later."""
    viewer = Viewer(lambda: True, b"first")
    for picture in (b"one", b"two", b"three"):
        viewer.show(picture)
    assert [await viewer.next(), await viewer.next()] == [b"first", b"three"]
    viewer.show(b"four")
    viewer.end()
    assert await viewer.next() is None


async def test_who_may_look_no_more() -> None:
    """It is asked before each picture."""
    may = [True, False]
    viewer = Viewer(lambda: may.pop(0), b"first")
    assert await viewer.next() == b"first"
    viewer.show(b"one")
    assert await viewer.next() == b"one"
    viewer.show(b"two")
    assert await viewer.next() is None
