"""Fingerprints of prompts: what was changed in one, and what is only new."""

from __future__ import annotations

from typing import Any

import pytest
import xxhash

from router.causes.prints import Print, Prints, compare, print_of

SYSTEM = "You answer in the words of a careful engineer, and never guess. " * 5
TALK = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "What is a prefix?"},
    {"role": "assistant", "content": "What comes first."},
    {"role": "user", "content": "And a suffix?"},
    {"role": "assistant", "content": "What comes last."},
    {"role": "user", "content": "Thank you."},
]
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("one", "two", "three")]
TOKENS = 500


def made(**fields: Any) -> Print:
    found = print_of(fields, TOKENS, lambda text: xxhash.xxh3_64_intdigest(text, 5))
    assert found is not None
    return found


def kind(new: dict[str, Any], old: dict[str, Any]) -> str | None:
    """What is said of the change from one body to another."""
    _, change = compare(made(**new), made(**old))
    return None if change is None else change.kind


def talk(**changed: str) -> list[dict[str, str]]:
    """The conversation with other contents at `m0`, `m1` …"""
    return [message | {"content": changed.get(f"m{number}", message["content"])} for number, message in enumerate(TALK)]


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        ({"messages": talk(m1="What is a suffix?")}, {"messages": TALK}, "an earlier turn was edited"),
        ({"messages": talk(m2="I do not know.")}, {"messages": TALK}, "an earlier turn was edited"),
        ({"messages": talk(m0=SYSTEM + "Be brief.")}, {"messages": TALK}, "its system prompt was edited"),
        ({"messages": [TALK[0], *TALK[3:]]}, {"messages": TALK}, "earlier messages were left out"),
        ({"messages": TALK}, {"messages": [TALK[0], *TALK[3:]]}, "earlier messages were put in"),
        (
            {"messages": TALK, "tools": TOOLS[::-1]},
            {"messages": TALK, "tools": TOOLS},
            "its tools come in another order",
        ),
        ({"messages": TALK, "tools": TOOLS[:2]}, {"messages": TALK, "tools": TOOLS}, "its tools are others"),
        ({"messages": TALK, "tools": TOOLS}, {"messages": TALK}, "its tools are others"),
        (
            {"messages": [{"role": "user", "content": "One."}], "tools": TOOLS[1:] + TOOLS[:1]},
            {"messages": [{"role": "user", "content": "Two."}], "tools": TOOLS},
            "its tools come in another order",
        ),
        (
            {"prompt": f"2026-11-30 10:11. {SYSTEM}"},
            {"prompt": f"2026-11-29 10:12. {SYSTEM}"},
            "the prompt begins with a timestamp",
        ),
        ({"prompt": f"Of cats. {SYSTEM}"}, {"prompt": f"Of dogs. {SYSTEM}"}, "an earlier passage was edited"),
    ],
)  # fmt: skip
def test_changes(new: dict[str, Any], old: dict[str, Any], said: str) -> None:
    """What comes behind the change is alike, so it is one: of which kind is told."""
    assert kind(new, old) == said


@pytest.mark.parametrize(
    "varying",
    ["2026-11-30T10:11:12Z", "30 November 2026", "Monday, November 30, 2026", "11/30/2026 5:04 PM",
     "Mon Nov 30 00:13:04", "1764460000", "17:04", "123e4567-e89b-12d3-a456-426614174000", "9f8b7c6d5e4f3a2b"],
)  # fmt: skip
def test_what_varies_in_a_system_prompt(varying: str) -> None:
    """A time or an id: nothing else has to be alike. Where it is, is told."""
    other = varying.translate(str.maketrans("09", "18"))
    for text, place in (("{} is the time. ", "begins with"), (f"{SYSTEM} It is {{}}. ", "has")):
        bodies = [
            {"messages": [{"role": "system", "content": text.format(one) + SYSTEM}, {"role": "user", "content": asked}]}
            for one, asked in ((varying, "one"), (other, "two"))
        ]
        said = kind(*bodies)
        assert said is not None and said.startswith(f"the system prompt {place} a"), said


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"messages": TALK}, {"messages": TALK[:3]}),
        ({"messages": TALK[:3]}, {"messages": TALK}),
        ({"messages": TALK}, {"messages": TALK}),
        ({"messages": talk(m5="Something else.")}, {"messages": TALK}),
        ({"messages": [TALK[0], {"role": "user", "content": "Of another thing."}]}, {"messages": TALK}),
        ({"messages": talk(m0="Other words.")[:2]}, {"messages": TALK[:2]}),
        ({"messages": talk(m0="Number 5 speaks.")[:2]}, {"messages": talk(m0="Number 6 speaks.")[:1]}),
        ({"prompt": "One question?\nAnswer:"}, {"prompt": "Another question?\nAnswer:"}),
        ({"prompt": f"{SYSTEM}One question?"}, {"prompt": f"{SYSTEM}Another one?"}),
        ({"prompt": "It is 10:11 now. Tell me of cats."}, {"prompt": "It is 10:12 now. And what of dogs?"}),
        ({"messages": TALK[:2], "tools": TOOLS[:1]}, {"prompt": SYSTEM}),
    ],
)  # fmt: skip
def test_what_is_new_is_no_change(new: dict[str, Any], old: dict[str, Any]) -> None:
    """A conversation that goes on, another question behind the same beginning, another prompt."""
    assert kind(new, old) is None


def test_what_has_no_parts() -> None:
    """Bodies of other shapes have no fingerprint, or a short one; never an error."""
    for fields in (
        {},
        {"prompt": [1, 2]},
        {"prompt": ["a", "b"]},
        {"messages": []},
        {"messages": ["x"]},
        {"prompt": ""},
    ):
        assert print_of(fields, 1, hash) is None
    assert print_of({"messages": [{"role": "user"}, 5]}, 1, hash) is not None


def test_the_prompt_that_is_most_like_it() -> None:
    """Of many, the one with most in common tells what was changed; one that goes on is no change."""
    prints = Prints(100)
    for number in range(20):
        prints.add(number, made(messages=[TALK[0], {"role": "user", "content": f"Question {number}?"}]))
    prints.add(100, made(messages=TALK[:2]))
    prints.add(101, made(messages=TALK[:4]))
    assert prints.change(made(messages=TALK), 0) is None
    change = prints.change(made(messages=talk(m1="What is it?")), 0)
    assert change is not None and change.detail == "edited: message 1 (user)"
    assert 0 < change.until < change.tokens <= TOKENS
    assert prints.change(made(messages=talk(m1="What is it?")), TOKENS) is None  # what follows was known nevertheless


def test_only_the_newest_are_kept() -> None:
    """Beyond the bound the oldest is forgotten, with all by which it was found; 0 keeps none."""
    prints, none = Prints(3), Prints(0)
    talks = [[{"role": "user", "content": f"{number} is the first of it"}, *TALK[1:]] for number in range(5)]
    for number, messages in enumerate(talks):
        prints.add(number, made(messages=messages))
        none.add(number, made(messages=messages))
    assert [number in prints for number in range(5)] == [False, False, True, True, True]
    assert (len(prints), len(none)) == (3, 0)
    prints.used(2)
    prints.add(9, made(messages=[{"role": "user", "content": "another"}]))
    assert 2 in prints and 3 not in prints
    assert prints.change(made(prompt="none of these"), 0) is None
