"""What was measured, phase by phase, and what of it did not agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from tests_vllm.talk import Answered

LONG_TOKENS = 1000  # prompts whose prefill can be seen in the time to the first chunk
_COLD_SHARE, _CACHED_SHARE = 0.05, 0.9
_MISSES_SHOWN = 20


def agreement(answers: Sequence[Answered]) -> float:
    """The share of answers of which the gateway knew how much was cached."""
    return sum(each.agrees for each in answers) / len(answers)


def misses(answers: Iterable[Answered]) -> str:
    """The answers that were predicted wrongly, a line each."""
    return "\n".join(str(each) for each in answers if not each.agrees)


def report(answers: Sequence[Answered]) -> list[str]:
    """The lines of the report."""
    lines = [f"{'phase':24} {'requests':>8} {'agree':>14} {'with hits':>9} {'hit ratio':>9} {'by pod':>9}"]
    phases = dict.fromkeys(each.phase for each in answers)
    lines += [_row(phase, [each for each in answers if each.phase == phase]) for phase in phases]
    for name, sequential in (("all sequential", True), ("all concurrent", False)):
        if chosen := [each for each in answers if each.sequential is sequential]:
            lines.append(_row(name, chosen))
    lines += _first_chunks(answers)
    wrong = [f"  {each}" for each in answers if not each.agrees]
    return lines + [f"predicted wrongly: {len(wrong)}"] * bool(wrong) + wrong[:_MISSES_SHOWN]


def _row(name: str, answers: Sequence[Answered]) -> str:
    agreed, hits = sum(each.agrees for each in answers), sum(each.cached > 0 for each in answers)
    ratio = sum(each.cached for each in answers) / sum(each.prompt_tokens for each in answers)
    pods = Counter(each.pod for each in answers)
    shares = "/".join(str(pods[pod]) for pod in sorted(pods))
    share = f"{agreed} = {100 * agreed / len(answers):.1f}%"
    return f"{name:24} {len(answers):8} {share:>14} {hits:9} {ratio:9.2f} {shares:>9}"


def _first_chunks(answers: Iterable[Answered]) -> list[str]:
    """Time to the first chunk of long, sequential streams, cold and cached."""
    cold, cached = [], []
    for each in answers:
        if each.first_s is None or not each.sequential or each.prompt_tokens < LONG_TOKENS:
            continue
        if each.cached <= _COLD_SHARE * each.prompt_tokens:
            cold.append(each.first_s)
        elif each.cached >= _CACHED_SHARE * each.prompt_tokens:
            cached.append(each.first_s)
    if not cold or not cached:
        return []
    figures = f"cold {1e3 * median(cold):.0f} ms ({len(cold)}), cached {1e3 * median(cached):.0f} ms ({len(cached)})"
    return [f"first chunk, prompts from {LONG_TOKENS} tokens: {figures}, ratio {median(cold) / median(cached):.1f}"]
