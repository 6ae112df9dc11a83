"""What a pod says of its version, its models in /v1/models and its cache, as far as anything depends on it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

Version: TypeAlias = tuple[int, int]
"""vLLM's (major, minor)."""

_NUMBERS = re.compile(r"v?([0-9]{1,6})\.([0-9]{1,6})")


class Card(NamedTuple):
    """One entry. vLLM makes `created` and `permission` anew for each answer: they are no change, and not in here."""

    id: str
    root: str | None  # where the weights are from
    parent: str | None  # of an adapter: its base model
    max_model_len: int | None  # tokens; None of an adapter


class Served(NamedTuple):
    """A model name that requests may give: the base model, whose tokenizer it has, and its adapter if it is one."""

    base: str
    lora: str | None


def version_of(told: object) -> Version | None:
    """What a pod says of its version, as numbers; None where it says none: it is taken for the newest.

    Builds of a source without tags say 0.1.dev…, which is none.
    """
    numbers = _NUMBERS.match(told) if isinstance(told, str) else None
    version = (int(numbers[1]), int(numbers[2])) if numbers is not None else (0, 0)
    return version if version > (0, 1) else None


def card_of(model: Mapping[str, Any]) -> Card:
    """Of an entry with an id; what else is missing or of another type is None."""
    length = model.get("max_model_len")
    return Card(
        str(model["id"]), _text(model.get("root")), _text(model.get("parent")), length if type(length) is int else None
    )


def served_by(cards: Sequence[Card]) -> dict[str, Served]:
    """The names that a pod serves."""
    bases = [card.id for card in cards if not card.parent]
    return {card.id: Served(_base(card, bases), card.id if card.parent else None) for card in cards}


def shared_base(served: Sequence[Mapping[str, Served]]) -> str | None:
    """The first base model that all pods serve, of what each of them does."""
    bases = [name for name, one in served[0].items() if one.lora is None] if served else []
    for name in bases:
        base = Served(name, None)  # what such a name stands for, wherever it is served
        if all(names.get(name) == base for names in served):
            return name
    return None


def only(model: str, cards: Iterable[Card]) -> list[str]:
    """The names of `model` and its adapters; empty if it is not among `cards`."""
    cards = list(cards)
    base = next((card for card in cards if card.id == model), None)
    if base is None:
        return []
    if base.parent:
        return [model]
    bases = [card.id for card in cards if not card.parent]
    return [card.id for card in cards if card is base or (card.parent and _base(card, bases) == model)]


def _base(card: Card, bases: Sequence[str]) -> str:
    parent = card.parent
    if not parent:
        return card.id
    if parent in bases or not bases:
        return parent
    return bases[0]  # vLLM names the parent by its path; a pod has one base model


def _text(value: object) -> str | None:
    return value if type(value) is str and value else None


@dataclass(slots=True, eq=False)
class Evidence:
    """How a pod's predictions are checked: by each response's usage, else by its counters of cached tokens.

    The counters prove something only of a stretch between two looks in which the pod looked up just what we sent it.
    """

    usage: bool = False  # its responses report cached tokens
    asked_tokens: int = 0  # in requests served since the last look
    predicted_tokens: int = 0
    queries: float | None = None  # its counters, at the last look
    hits: float | None = None

    @property
    def source(self) -> str:
        if self.usage:
            return "usage"
        return "counters" if self.queries is not None else "none"

    def unreported(self, asked_tokens: int, predicted_tokens: int) -> None:
        """A request was served, and its response does not tell."""
        self.asked_tokens += asked_tokens
        self.predicted_tokens += predicted_tokens

    def looked(self, queries: float | None, hits: float | None) -> tuple[int, int] | None:
        """The counters now: predicted and reported tokens of the stretch since the last look, if it proves anything."""
        if queries is not None and queries == self.queries:
            return None  # it counts a moment after it has answered
        had_queries, had_hits = self.queries, self.hits
        asked, predicted = self.asked_tokens, self.predicted_tokens
        self.queries, self.hits, self.asked_tokens, self.predicted_tokens = queries, hits, 0, 0
        if queries is None or hits is None or had_queries is None or had_hits is None or self.usage:
            return None
        if not asked or queries - had_queries != asked:
            return None
        return predicted, round(hits - had_hits)
