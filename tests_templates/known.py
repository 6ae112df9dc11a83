"""Differences that are left, each with its reason. Short, or something is to be mended."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple


class Known(NamedTuple):
    """One kind: patterns of a template's and a conversation's names, where vLLM refuses what we render."""

    template: str
    conversation: str
    reason: str

    def covers(self, template: str, conversation: str, ours: str | None, theirs: str | None) -> bool:
        """Is this difference of that kind?"""
        if ours is None or theirs is not None:
            return False
        return fnmatchcase(template, self.template) and fnmatchcase(conversation, self.conversation)


_TYPED = "the types of vLLM's request refuse it before any template: the pod answers 400 and computes nothing"

KNOWN = (
    Known("*", "an output's part", _TYPED),
    Known("*", "a call of unknown kind", _TYPED),
    Known("*", "content that is no part", _TYPED),
    Known("*", "a null system", _TYPED),
    Known("*", "a null result", _TYPED),
)
