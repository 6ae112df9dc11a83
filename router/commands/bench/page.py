"""The report as one HTML file that needs nothing else: tables, and plots as SVG."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from html import escape

from router.commands.bench.figures import Figure, first_tokens_ms
from router.commands.bench.report import Compared, Report, ratio_shown, shown

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 14, 40
_COLOURS = ("#8a8f98", "#1f6feb")
_POINTS_MAX = 400  # of a curve
_BAR = 22
_STYLE = """
:root { color-scheme: light dark; --text: #1c2128; --faint: #6b7280; --line: #d0d7de; --back: #fff }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --faint: #9198a1; --line: #3d444d; --back: #0d1117 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 48rem;
       margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal }
.better { color: #1a7f37 } .worse { color: #d1242f } .faint { color: var(--faint) }
svg { width: 100%; height: auto; margin: 1rem 0 } svg text { font: 12px system-ui, sans-serif; fill: var(--text) }
svg .axis { stroke: var(--line) } svg .curve { fill: none; stroke-width: 2 }
""".strip()


def html_of(report: Report) -> str:
    """The whole page."""
    first, second = report.sides
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report.began))
    body = [
        f"<h1>warmroute bench {escape(report.mode)}</h1>",
        f'<p>{escape(report.how)} <span class="faint">{began}, warmroute {escape(str(report.values()["warmroute"]))}'
        "</span></p>",
        f"<p>Each figure was measured on both sides in the same run; the ratio is <b>{escape(second.title)}</b> to "
        f"<b>{escape(first.title)}</b>.</p>",
    ]
    for one in report.compared:
        body += _section(one, report)
    if len(levels := [one for one in report.compared if one.work.name.startswith("concurrent ")]) > 1:
        body.append("<h2>By concurrency</h2>")
        body.append(_by_level(levels, report))
    title = f"warmroute bench {escape(report.mode)}"
    head = f'<meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _section(one: Compared, report: Report) -> list[str]:
    titles = [side.title for side in report.sides]
    figures = [figure for figure in one.figures if figure.values != (None, None)]
    curves = [first_tokens_ms(seen) for seen in one.seen]
    return [
        f"<h2>{escape(one.work.name)}</h2>",
        f"<p>{escape(one.work.what)}.</p>",
        _table(figures, titles),
        _bars([figure for figure in figures if ratio_shown(figure)]),
        _distribution(curves, titles),
        *(
            f'<p class="worse">{escape(title)}: {count} failed: {escape(said)}</p>'
            for title, seen in zip(titles, one.seen, strict=True)
            for said, count in seen.failures.items()
        ),
    ]


def _table(figures: Sequence[Figure], titles: Sequence[str]) -> str:
    kinds = {True: ' class="better"', False: ' class="worse"', None: ""}
    rows = [
        f"<tr><td>{escape(figure.name)}</td>"
        + "".join(f"<td>{escape(shown(value, figure.unit))}</td>" for value in figure.values)
        + f"<td{kinds[figure.improves]}>{ratio_shown(figure)}</td></tr>"
        for figure in figures
    ]
    heads = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f"<table><thead><tr><th></th>{heads}<th>ratio</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _bars(figures: Sequence[Figure]) -> str:
    """Ratios on a scale of powers: twice as much is as far from the middle as half."""
    logs = [math.log2(min(64.0, max(1 / 64, figure.ratio or 1.0))) for figure in figures]
    reach = max(1.0, *(abs(value) for value in logs)) if logs else 1.0
    left, middle, half = 220.0, 220.0 + (_WIDTH - 290.0) / 2, (_WIDTH - 290.0) / 2
    parts = [_line(middle, 4, middle, _BAR * len(figures) + 4)]
    for place, (figure, value) in enumerate(zip(figures, logs, strict=True)):
        y, length = _BAR * place + 6.0, abs(value) / reach * half
        colour = {True: "#1a7f37", False: "#d1242f", None: "#8a8f98"}[figure.improves]
        x = middle if value > 0 else middle - length
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{length:.1f}" height="{_BAR - 8}" fill="{colour}"/>')
        parts += [_text(left - 8, y + 11, figure.name, "end"), _text(_WIDTH - 60.0, y + 11, ratio_shown(figure))]
    return _svg(_BAR * len(figures) + 12, "ratios", parts)


def _distribution(curves: Sequence[Sequence[float]], titles: Sequence[str]) -> str:
    """Which share of requests had their first token within a time."""
    curves = [curve[:: max(1, len(curve) // _POINTS_MAX)] for curve in curves]
    most = max((value for curve in curves for value in curve), default=1.0) or 1.0
    drawn = [[(value / most, (place + 1) / len(curve)) for place, value in enumerate(curve)] for curve in curves]
    ticks = [(share, shown(most * share, "ms")) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return _plot(drawn, titles, ticks, ["0%", "50%", "100%"], "share of requests by time to the first token")


def _by_level(levels: Sequence[Compared], report: Report) -> str:
    """TTFT p90 of both sides at each level."""
    names = [one.work.name.removeprefix("concurrent ") for one in levels]
    values = [
        [next(figure for figure in one.figures if figure.name == "TTFT p90").values[side] or 0.0 for one in levels]
        for side in (0, 1)
    ]
    most, last = max(max(values[0]), max(values[1])) or 1.0, len(levels) - 1
    drawn = [[(place / last, value / most) for place, value in enumerate(side)] for side in values]
    ticks = [(place / last, f"{name} at a time") for place, name in enumerate(names)]
    heights = ["0", shown(most / 2, "ms"), shown(most, "ms")]
    return _plot(drawn, [side.title for side in report.sides], ticks, heights, "TTFT p90 by concurrency")


def _plot(
    curves: Sequence[Sequence[tuple[float, float]]],
    titles: Sequence[str],
    ticks: Sequence[tuple[float, str]],
    heights: Sequence[str],
    label: str,
) -> str:
    """Curves of points in [0, 1] x [0, 1]."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    parts = []
    for share, name in zip((0.0, 0.5, 1.0), heights, strict=True):
        y = _TOP + height * (1 - share)
        parts += [_line(_LEFT, y, _LEFT + width, y), _text(_LEFT - 6, y + 4, name, "end")]
    for place, (share, name) in enumerate(ticks):
        anchor = "start" if place == 0 else "end" if place == len(ticks) - 1 else "middle"
        parts.append(_text(_LEFT + width * share, _HEIGHT - _BOTTOM + 16, name, anchor))
    for place, curve in enumerate(curves):
        colour = _COLOURS[place]
        points = " ".join(f"{_LEFT + width * x:.1f},{_TOP + height * (1 - y):.1f}" for x, y in curve)
        parts.append(f'<polyline class="curve" stroke="{colour}" points="{points}"/>')
        x = _LEFT + place * width / 2
        parts.append(f'<rect x="{x:.1f}" y="{_HEIGHT - 14}" width="12" height="4" fill="{colour}"/>')
        parts.append(_text(x + 18, _HEIGHT - 8, titles[place]))
    return f'<p class="faint">{escape(label)}</p>' + _svg(_HEIGHT, label, parts)
