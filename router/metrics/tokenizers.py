"""Families of who makes the tokens, and how far that is proven."""

from __future__ import annotations

from collections.abc import Mapping

from router.core.fleet import Fleet
from router.core.token_states import SOURCES
from router.metrics.families import MetricFamily, Steps, counters, escaped

_STATES = ("unverified", "exact", "degraded", "pod")  # pod: it is not done here


def of_tokenizers(fleet: Fleet, questions: Mapping[str, int]) -> Steps:
    """`questions`: to the pods, by what came of them."""
    states, sources, proofs, compared = (
        MetricFamily("warmroute_tokenizer_state", "gauge", "1 for the state it is in.", "max", []),
        MetricFamily("warmroute_token_source", "gauge", "1 for whose tokens prompts are routed by.", "max", []),
        MetricFamily(
            "warmroute_token_proofs_total", "counter", "Requests by what events and counts said of their tokens.",
            "sum", [],
        ),
        MetricFamily("warmroute_tokenizer_comparisons_total", "counter", "Of our token ids with pods'.", "sum", []),
    )  # fmt: skip
    for model in fleet.base_models():
        yield None
        known, of = fleet.tokenizers.get(model), f'{{model="{escaped(model)}"'
        state_now = known.state if known is not None else "pod"
        states.samples.extend([(f'{states.name}{of},state="{s}"}}', int(s == state_now)) for s in _STATES])
        ladder = fleet.ladders.get(model)
        current = None if ladder is None else ladder.current
        sources.samples.extend([(f'{sources.name}{of},source="{s}"}}', int(s == current)) for s in SOURCES])
        for each in () if ladder is None else ladder.states:
            for result, count in (("confirmed", each.confirmed), ("contradicted", each.contradicted)):
                proofs.samples.append((f'{proofs.name}{of},result="{result}",source="{each.source}"}}', count))
        if known is not None:
            different = known.different
            for result, count in (("different", different), ("equal", known.compared - different)):
                compared.samples.append((f'{compared.name}{of},result="{result}"}}', count))
    yield from (states, sources, proofs, compared)
    yield counters("warmroute_tokenizer_questions_total", "To the pods' /tokenize.", "result", questions)
