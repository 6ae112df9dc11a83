"""Fingerprints of prompts: hashes of their parts, never their texts; and what sets one apart from an earlier one. Pure.

A chat's parts are its tools and its messages, a text's its sentences. Two prompts that are alike behind the place where
they differ are one prompt that was changed; where nothing is alike behind it, the second one is new from there on.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

_PARTS_MAX = 256  # of one prompt: what comes behind is not compared
_CANDIDATES = 6  # earlier prompts that one is compared with
_SHIFT_MAX = 16  # messages that were put in, or left out
_ALIKE_BYTES = 64  # that must be alike behind a change, where little is before it
_ALIKE_BYTES_OF_SYSTEM = 256  # likewise, behind a system prompt that is another one
_SLACK = 64  # tokens: places in a prompt are told by bytes
_NEAR = 24  # bytes: what starts before is at the beginning

_MONTH = rb"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]*\.?"
_DAY = rb"(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?"
_VARYING = re.compile(
    rb"(?P<timestamp>\d{4}[-/]\d\d[-/]\d\d(?:[T ]+\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)?(?: ?Z|[+-]\d\d:?\d\d)?"
    rb"|\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?(?: ?[AaPp]\.?[Mm]\b)?"
    rb"|\b(?:%b,? +)?(?:%b +\d{1,2}(?:st|nd|rd|th)?|\d{1,2}(?:st|nd|rd|th)? +%b)(?:,? +\d{4})?\b"
    rb"|\b%b,? (?=\d)|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b|\b(?:UTC|GMT) +\d{4}\b|\b1[5-9]\d{8}(?:\d{3})?(?:\.\d+)?\b)"
    rb"|(?P<id>\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b|\b(?=[a-f]*\d)[0-9a-f]{12,}\b)"
    % (_DAY, _MONTH, _MONTH, _DAY)
)
_SENTENCE = re.compile(rb"[^.!?\n]*[.!?\n]*\s*")
_SYSTEM, _TOOLS, _TEXT = "system", "tools", "text"
_INSTRUCTING = (_SYSTEM, "developer")
_WORDS = {"timestamp": "a timestamp", "id": "an id"}


class Print(NamedTuple):
    """One prompt's. `digests`, `kinds` and `ends` (in bytes) are of its parts; `masked`: of those with something in
    them that varies, the digest without it, what it is, and where. `tools`: digests of each. `first`: the part that is
    message 0."""

    tokens: int
    kinds: tuple[str, ...]
    digests: tuple[int, ...]
    ends: tuple[int, ...]
    masked: Mapping[int, tuple[int, str, int]]
    tools: tuple[int, ...] = ()
    first: int = 0

    def end(self, parts: int) -> int:
        """Tokens up to the end of so many parts, by their share of the bytes."""
        return round(self.tokens * self.ends[parts - 1] / max(1, self.ends[-1])) if parts else 0


class Difference(NamedTuple):
    """What sets a prompt apart from an earlier one. `kind`: in words that are few; `detail`: of this one.

    `until`: the token where what differs first has ended; `tokens`: up to here it would have been the same.
    """

    kind: str
    detail: str
    until: int
    tokens: int


def print_of(fields: Mapping[str, Any], tokens: int, digest: Callable[[bytes], int]) -> Print | None:
    """The fingerprint of a body's prompt of so many `tokens`; None: it has none that can be compared."""
    kinds: list[str] = []
    digests: list[int] = []
    ends: list[int] = []
    masked: dict[int, tuple[int, str, int]] = {}
    first = size = 0
    for kind, text in _parts(fields):
        if len(kinds) == _PARTS_MAX:
            break
        first += kind == _TOOLS
        if kind in (_SYSTEM, _TEXT) and (found := _VARYING.search(text)) is not None:
            masked[len(kinds)] = (digest(_VARYING.sub(b"", text)), str(found.lastgroup), found.start())
        kinds.append(kind)
        digests.append(digest(text))
        size += len(text)
        ends.append(size)
    if not kinds:
        return None
    tools = tuple(digest(orjson.dumps(tool)) for tool in fields["tools"]) if _TOOLS in kinds else ()
    return Print(tokens, tuple(kinds), tuple(digests), tuple(ends), masked, tools, first)


def _parts(fields: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    messages, prompt, tools = fields.get("messages"), fields.get("prompt"), fields.get("tools")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(messages, list):
        if isinstance(tools, list) and tools:
            yield _TOOLS, orjson.dumps(tools)
        if fields.get("system"):
            yield _SYSTEM, _bytes(fields["system"])
        for message in messages:
            if not isinstance(message, dict):
                return
            role = message.get("role")
            content = {name: value for name, value in message.items() if name not in ("role", "content")}
            text = _bytes(message.get("content")) + (orjson.dumps(content) if content else b"")
            yield _SYSTEM if role in _INSTRUCTING else str(role), text
    elif isinstance(prompt, str):
        yield from ((_TEXT, text) for text in _SENTENCE.findall(prompt.encode("utf-8", "replace")) if text)


def _bytes(content: object) -> bytes:
    return content.encode("utf-8", "replace") if isinstance(content, str) else orjson.dumps(content)


def compare(new: Print, old: Print) -> tuple[int, Difference | None]:
    """Up to which token `new` begins as `old` did, and what was changed there, if that is a change."""
    same = 0
    for ours, theirs in zip(new.digests, old.digests, strict=False):
        if ours != theirs:
            break
        same += 1
    begins = new.end(same)
    if same in (len(new.digests), len(old.digests)):
        return begins, None  # the one continues the other
    return begins, _of_tools(new, old, same) or _varying(new, old, same) or _of_message(new, old, same)


def _of_tools(new: Print, old: Print, at: int) -> Difference | None:
    ours, theirs = new.kinds[at] == _TOOLS, old.kinds[at] == _TOOLS
    if not ours and not theirs:
        return None
    parts, _ = _alike(new, old, at + ours, at + theirs)
    until, end = new.end(at + ours), new.end(at + ours + parts)
    if ours and theirs and Counter(new.tools) == Counter(old.tools):
        return Difference("its tools come in another order", "tools in another order", until, end)
    shared = sum((Counter(new.tools) & Counter(old.tools)).values())
    if not parts and not shared:
        return None
    if ours and theirs:
        others = max(len(new.tools), len(old.tools)) - shared
        return Difference("its tools are others", f"{others} of {len(new.tools)} tools are others", until, end)
    return Difference("its tools are others", "tools were put in" if ours else "tools were left out", until, end)


def _varying(new: Print, old: Print, at: int) -> Difference | None:
    """The same but for what varies in it: a time, an id."""
    ours, theirs = new.masked.get(at), old.masked.get(at)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return None
    parts, alike = _alike(new, old, at + 1, at + 1)
    if new.kinds[at] != _SYSTEM and alike < _ALIKE_BYTES:
        return None
    what, place = _WORDS[ours[1]], ours[2] + (new.ends[at - 1] if at and new.kinds[at] == _TEXT else 0)
    where = "the system prompt" if new.kinds[at] == _SYSTEM else "the prompt"
    said = f"begins with {what}" if place < _NEAR else f"has {what} in it"
    detail = f"{what} at byte {place} of {where}"
    return Difference(f"{where} {said}", detail, new.end(at + 1), new.end(at + 1 + parts))


def _of_message(new: Print, old: Print, at: int) -> Difference | None:
    """Another message in its place; one more; some less."""
    found: list[tuple[int, int, int, str, str]] = []  # bytes alike, parts alike, where in `new`, kind, detail
    number, kind = at - new.first, new.kinds[at]
    where = "sentence" if kind == _TEXT else "message"
    parts, alike = _alike(new, old, at + 1, at + 1)
    if kind == _SYSTEM and old.kinds[at] == _SYSTEM:
        found.append((alike, parts, at + 1, "its system prompt was edited", f"edited: message {number} (system)"))
    else:
        said = "an earlier turn was edited" if kind != _TEXT else "an earlier passage was edited"
        found.append((alike, parts, at + 1, said, f"edited: {where} {number} ({kind})"))
    for shift in range(1, _SHIFT_MAX + 1):
        parts, alike = _alike(new, old, at + shift, at)
        said = f"put in: {where} {number}" if shift == 1 else f"put in: {shift} {where}s from {number} on"
        found.append((alike, parts, at + shift, f"earlier {where}s were put in", said))
        parts, alike = _alike(new, old, at, at + shift)
        said = f"left out: {where} {number}" if shift == 1 else f"left out: {shift} {where}s from {number} on"
        found.append((alike, parts, at, f"earlier {where}s were left out", said))
    alike, parts, behind, what, detail = max(found, key=lambda one: one[0])
    if not parts:
        return None
    talked = any(kind not in (_SYSTEM, _TOOLS, _TEXT) for kind in new.kinds[:at])
    answered = "assistant" in new.kinds[behind : behind + parts]
    least = _ALIKE_BYTES_OF_SYSTEM if kind == _SYSTEM else _ALIKE_BYTES
    if alike < least and not talked and not answered:
        return None
    return Difference(what, detail, new.end(behind), new.end(behind + parts))


def _alike(new: Print, old: Print, at: int, theirs: int) -> tuple[int, int]:
    """How many parts are the same from there on, and their bytes."""
    parts = 0
    for ours, other in zip(new.digests[at:], old.digests[theirs:], strict=False):
        if ours != other:
            break
        parts += 1
    return parts, new.ends[at + parts - 1] - (new.ends[at - 1] if at else 0) if parts else 0


class Prints:
    """The fingerprints of the newest prompts, found by what they have in common with others."""

    def __init__(self, prompts_max: int) -> None:
        self._prompts_max = prompts_max
        self._prints: OrderedDict[int, Print] = OrderedDict()  # by the prompt's last key
        self._newest: dict[int, int] = {}  # by marks: the prompt that had it last

    def __len__(self) -> int:
        return len(self._prints)

    def __contains__(self, name: int) -> bool:
        return name in self._prints

    def add(self, name: int, made: Print) -> None:
        """Of the prompt whose last block key this is."""
        if not self._prompts_max:
            return
        self._prints[name] = made
        for mark in _marks(made):
            self._newest[mark] = name
        while len(self._prints) > self._prompts_max:
            gone, old = self._prints.popitem(last=False)
            for mark in _marks(old):
                if self._newest.get(mark) == gone:
                    del self._newest[mark]

    def used(self, name: int) -> None:
        """The same prompt came again."""
        self._prints.move_to_end(name)

    def change(self, new: Print, known: int) -> Difference | None:
        """What sets this prompt apart from an earlier one that is most like it; None: it is new, or goes on.

        `known`: so many leading tokens were asked for before: a change that comes before their end is none of it.
        """
        found = Counter(name for mark in _marks(new) if (name := self._newest.get(mark)) is not None)
        compared = [compare(new, self._prints[name]) for name, _ in found.most_common(_CANDIDATES)]
        least = known - max(_SLACK, new.tokens // 10)
        changes = [change for _, change in compared if change is not None and change.until >= least]
        best = max(changes, key=lambda change: change.tokens, default=None)
        if best is None or any(begins >= best.tokens for begins, change in compared if change is None):
            return None
        return best


def _marks(made: Print) -> Sequence[int]:
    """By what a prompt is recognised: its messages, and its system prompt without what varies."""
    marks = list(made.digests)
    marks += [mask for mask, _, _ in made.masked.values()]
    if made.tools:
        marks.append(hash(tuple(sorted(made.tools))))
    return marks
