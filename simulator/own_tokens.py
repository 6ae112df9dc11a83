"""A pod that serves other tokens than its /tokenize tells, as real ones do: own encodings, other templates, BOS twice.

All kinds are made from the ids of the pod's template. Those in EQUAL keep their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

Kind = Literal[
    "bos", "bos_twice", "preamble", "other_vocabulary", "one_id", "swapped", "reversed", "truncated", "spaces",
    "before_answer", "system", "tools", "tool_history", "parts", "kwargs", "field", "some", "completions",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
EQUAL: frozenset[Kind] = frozenset(
    ("other_vocabulary", "one_id", "swapped", "reversed", "system", "parts", "field", "some", "spaces", "completions")
)
FIELD = "style"
"""Of a request: what /tokenize does not know of, and changes the prompt of kind `field`."""

_PREAMBLE = tuple(range(200, 243))
_Make = Callable[[list[int]], list[int]]


def served_tokens(kind: Kind | None, body: Mapping[str, Any], ids: Sequence[int]) -> list[int]:
    """What is computed of a request whose template gives `ids`; at least one token."""
    if kind is None or not _applies(kind, body, ids):
        return list(ids)
    return _MAKE.get(kind, _from_a_third)(list(ids)) or list(ids)


def _applies(kind: Kind, body: Mapping[str, Any], ids: Sequence[int]) -> bool:
    messages = [message for message in body.get("messages") or () if isinstance(message, dict)]
    if kind == "some":
        return sum(ids) % 3 == 0
    if kind == "field":
        return body.get(FIELD) is not None
    if kind == "completions":
        return not messages
    if not messages:
        return kind not in ("system", "tools", "tool_history", "parts", "kwargs", "before_answer")
    return {
        "system": any(message.get("role") == "system" for message in messages),
        "tools": bool(body.get("tools")),
        "tool_history": any(message.get("tool_calls") for message in messages),
        "parts": any(isinstance(message.get("content"), list) for message in messages),
        "kwargs": bool(body.get("chat_template_kwargs")),
    }.get(kind, True)


def _other(token: int) -> int:
    return token + 1 if token % 2 == 0 else token - 1


def _from_a_third(ids: list[int]) -> list[int]:
    """The first third is equal, all behind it is other ids."""
    third = len(ids) // 3
    return ids[:third] + [_other(token) for token in ids[third:]]


def _one_id(ids: list[int]) -> list[int]:
    return [*ids[: len(ids) // 4], _other(ids[len(ids) // 4]), *ids[len(ids) // 4 + 1 :]]


def _swapped(ids: list[int]) -> list[int]:
    """Two halves of the second half, the other way round."""
    half, rest = len(ids) // 2, len(ids) - len(ids) // 4
    return ids[:half] + ids[rest:] + ids[half:rest]


_MAKE: Mapping[Kind, _Make] = {
    "bos": lambda ids: [1, *ids],
    "bos_twice": lambda ids: [ids[0], *ids],
    "preamble": lambda ids: [*_PREAMBLE, *ids],
    "other_vocabulary": lambda ids: [_other(token) for token in ids],
    "one_id": _one_id,
    "swapped": _swapped,
    "reversed": lambda ids: ids[::-1],
    "truncated": lambda ids: ids[len(ids) // 4 :],
    "spaces": lambda ids: [_other(token) if place % 9 == 8 else token for place, token in enumerate(ids)],
    "before_answer": lambda ids: [*ids[: len(ids) // 2], 5, *ids[len(ids) // 2 :]],
    "tools": lambda ids: [*ids[: len(ids) // 4], *_PREAMBLE, *ids[len(ids) // 4 :]],
    "tool_history": lambda ids: ids[: len(ids) // 3] + ids[len(ids) // 2 :],
    "kwargs": lambda ids: [*ids[: len(ids) // 5], 6, *ids[len(ids) // 5 :]],
}
