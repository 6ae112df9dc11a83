"""How the figures went: points, and what is told of the last minute."""

from __future__ import annotations

from typing import Any

from router.page.course import POINT_COLUMNS, Course

STORE = {"blocks": 5, "bytes": 50, "evictions": 2}
INDEX = {"blocks": 7, "bytes": 70, "evictions": 0}


def look(course: Course, at: float, requests: int, slow: int, asked: int = 100) -> dict[str, Any]:
    """At `at`, so many requests had been served in all, and so many of them slowly."""
    account = {
        "requests": {"all": requests, "4xx": 1, "5xx": 0},
        "prefix_store": STORE,
        "first_bytes": [requests - slow, slow, 0],
        "window": [asked // 4, asked],
    }
    return course.add(account, INDEX, at, 1000 + at)


def test_rates_and_times() -> None:
    """Rates are of the last seconds, times to the first byte of the last minute; at first there are none."""
    course = Course(100, (1.0, 2.0))
    first = look(course, 0.0, 10, 10)
    assert (first["requests_per_s"], first["ttft_p50"], first["hit_ratio"]) == (None, None, 0.25)
    assert look(course, 1.0, 14, 10)["requests_per_s"] == 4.0
    told = {}
    for second in range(2, 9):
        told = look(course, float(second), 14, 10)
    assert (told["requests_per_s"], told["ttft_p50"], told["errors_per_s"]) == (0.0, 0.5, 0.0)
    assert look(course, 100.0, 20, 16)["ttft_p50"] is None  # what was a minute ago counts no more
    assert look(course, 101.0, 22, 18)["ttft_p50"] == 1.5


def test_nothing_was_asked() -> None:
    """Of no tokens there is no share."""
    assert look(Course(10, (1.0, 2.0)), 0.0, 0, 0, asked=0)["hit_ratio"] is None


def test_counts_that_fall() -> None:
    """A worker that does not answer takes its counts along: that is no negative rate."""
    course = Course(10, (1.0, 2.0))
    look(course, 0.0, 100, 0)
    assert look(course, 1.0, 40, 0)["requests_per_s"] is None
    assert look(course, 2.0, 41, 0)["requests_per_s"] == 1.0


def test_points_are_bounded() -> None:
    """The newest ones, each with a value for every column."""
    course = Course(3, (1.0, 2.0))
    for second in range(5):
        look(course, float(second), second, 0)
    assert [point[0] for point in course.points] == [1002.0, 1003.0, 1004.0]
    newest = dict(zip(POINT_COLUMNS, course.points[-1], strict=True))
    assert (newest["prefix_bytes"], newest["index_blocks"], newest["requests_per_s"]) == (50, 7, 1.0)
