"""The report's page: every plot well-formed, every text escaped, also of what was not measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter

from router.commands.bench.measuring import BenchSide, Seen
from router.commands.bench.page import html_of
from router.commands.bench.report import Compared, Report
from router.commands.bench.work import Work
from router.commands.streaming import Streamed


def seen(first_s: float) -> Seen:
    """Two answers, and a failure with a text that is markup."""
    answers = [Streamed("x", first_s * n, first_s * n + 0.3, 4, 100, 50, 4, "pod-0", 50) for n in (1, 2)]
    return Seen(answers, Counter({"<b>503</b>": 1}), Counter({"pod-0": 2}), 2, 1.0)


def report(*works: Compared) -> Report:
    """Of two sides."""
    sides = BenchSide("pods & in turn", ["http://a"], "m"), BenchSide("warmroute", ["http://b"], "m")
    return Report("concurrent", "<how>", 0.0, sides, works)


def test_by_concurrency() -> None:
    """A plot over the levels, beside two for each of them."""
    works = [Compared(Work(f"concurrent {n}", "w", (), n), (seen(0.2 * n), seen(0.1 * n))) for n in (1, 4, 16)]
    page = html_of(report(*works))
    plots = [ET.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(plots) == 7 and "By concurrency" in page
    texts = ["".join(node.itertext()) for node in plots[-1]]
    assert "16 at a time" in texts and "pods & in turn" in texts
    assert "0.50x" in page and "&lt;how&gt;" in page and "&lt;b&gt;503" in page and "<b>503" not in page


def test_nothing_was_measured() -> None:
    """All failed: there is a page all the same."""
    page = html_of(report(Compared(Work("cache", "w", ()), (Seen(), Seen()))))
    assert all(ET.fromstring(plot) is not None for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "By concurrency" not in page
