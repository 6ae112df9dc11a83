"""What kind of work comes, recognised by its prompts: how many continue others, how long they are, what they share.

Means over the last prompts, as they are sent to pods.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

MixName: TypeAlias = Literal["unknown", "agents", "chat", "documents", "batch"]

_FORGET = 0.998  # for each prompt: about the last 500 count
_FEW = 50.0  # prompts: before, nothing is recognised
_USUAL_TURNS = 4.0  # that follow each, as if so few prompts had shown it
_CONTINUING = 0.5  # share of prompts from which on they are conversations,
_LONG_TOKENS = 8192.0  # of prompts that are so long on the average where agents have them
_SHARED = 0.3  # share of the tokens that were asked for before, from which on prompts are about the same things


class Mix:
    """See the module. `continuing`: share of prompts that continue others; `shared`: share of their tokens that others
    had asked for, but for those that continue; `tokens`: of a prompt."""

    __slots__ = ("_answered", "_continued", "_count", "continuing", "shared", "tokens")

    def __init__(self) -> None:
        self.continuing = 0.0
        self.shared = 0.0
        self.tokens = 0.0
        self._count = 0.0
        self._answered = 0.0  # prompts
        self._continued = 0.0

    def learn(self, tokens: int, known: int, continues: bool) -> None:
        """A prompt, of which some leading tokens were known."""
        self._count = _FORGET * self._count + 1.0
        self._answered *= _FORGET
        self._continued = _FORGET * self._continued + continues
        turn = 1.0 / self._count
        self.continuing += ((1.0 if continues else 0.0) - self.continuing) * turn
        self.tokens += (tokens - self.tokens) * turn
        if not continues:
            self.shared += (known / max(1, tokens) - self.shared) * turn

    @property
    def is_known(self) -> bool:
        """Enough prompts were seen to say what is usual."""
        return self._count >= _FEW

    def answered(self) -> None:
        """A prompt has its answer: from now on another one may continue it."""
        self._answered += 1.0

    @property
    def turns(self) -> float:
        """How many prompts are taken to follow each that continue it, one after the other, by those with answers."""
        if not self.is_known:  # first ones follow nothing, whatever comes
            return _USUAL_TURNS
        ended = max(0.0, self._answered - self._continued)
        return (self._continued + ended + _FEW) / (ended + _FEW / (1.0 + _USUAL_TURNS)) - 1.0

    @property
    def name(self) -> MixName:
        """`agents` and `chat` continue, at length or not; `documents` are asked about more than once; of a `batch`,
        each prompt stands for itself."""
        if not self.is_known:
            return "unknown"
        if self.continuing >= _CONTINUING:
            return "agents" if self.tokens >= _LONG_TOKENS else "chat"
        return "documents" if self.shared >= _SHARED else "batch"
