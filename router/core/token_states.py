"""Whose token ids a model's prompts are routed by, and how far each source is proven. Pure.

A source is proven shape by shape (plain, with tools, …): what holds for one kind of request says little of another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

Source = Literal["local", "render", "tokenize", "text"]
"""Tokens are made here; by the pods' /render; by their /tokenize; or not at all: prompts are known by their text."""
SOURCES: tuple[Source, ...] = ("local", "render", "tokenize", "text")
"""The best first."""

Shape = Literal[
    "completion", "messages", "continue", "kwargs", "parts", "tool history", "tools", "reasoning", "system", "plain"
]
"""What decides how a prompt is made, beside its texts; of several, the first."""
SHAPES: tuple[Shape, ...] = get_args(Shape)

VERDICTS = 32
"""So many of the last judgements count, of each shape and of all together."""
_WRONG_MIN = 2
"""Of these, so many contradictions prove that the tokens are wrong: one may be an accident that nobody foresaw."""
TRIAL_RIGHTS = 4
"""A source that was wrong is believed again when so many prompts in a row, of the shape that failed, come out right."""


@dataclass(slots=True, eq=False)
class TokenizerState:
    """One source of one model's tokens. `degraded`: its ids are not the pods', so the next source is used.

    `assured`: the pods make them in the very way in which they make a request's, so there is nothing to be proven.
    """

    state: Literal["unverified", "exact", "degraded"] = "unverified"
    reason: str | None = None
    compared: int = 0  # with what pods told
    different: int = 0
    source: Source = "local"
    assured: bool = False
    confirmed: int = 0  # requests whose blocks came as they were predicted
    contradicted: int = 0  # requests of which others came, or which had another number of tokens
    proven: set[Shape] = field(default_factory=set)
    failed: Shape | None = None  # where events proved it wrong
    trial_at: float = 0.0  # then it may be tried again
    trial_rights: int = 0
    _verdicts: dict[Shape | None, deque[bool]] = field(default_factory=dict)  # since one was wrong; None: of all

    def is_clean(self, shape: Shape) -> bool:
        """Proven, and not contradicted of late."""
        return shape in self.proven and shape not in self._verdicts

    def is_settled(self, shape: Shape) -> bool:
        """A further confirmation would change nothing but a count."""
        return shape in self.proven and not self._verdicts

    def is_verified(self, shape: Shape) -> bool:
        return self.state != "degraded" and (self.is_clean(shape) or (self.assured and shape not in self._verdicts))

    def equal(self, shape: Shape) -> None:
        """A pod told the same ids of a prompt of this shape: good news, and no proof against what events said."""
        if shape not in self._verdicts:
            self.confirm(shape)

    def confirm(self, shape: Shape) -> None:
        """A prompt of this shape came out as it was predicted."""
        for of in (shape, None):
            verdicts = self._verdicts.get(of)
            if verdicts is not None:
                verdicts.append(False)
                if not any(verdicts):
                    del self._verdicts[of]
        if self.state != "degraded":
            self.state, self.reason = "exact", None
            self.proven.add(shape)

    def contradict(self, shape: Shape) -> bool:
        """A prompt of this shape did not. Is that proof by now?"""
        self.contradicted += 1
        self.proven.discard(shape)
        for of in (shape, None):
            self._verdicts.setdefault(of, deque(maxlen=VERDICTS)).append(True)
        return any(sum(self._verdicts[of]) >= _WRONG_MIN for of in (shape, None))

    def degrade(self, reason: str, shape: Shape | None, trial_at: float) -> None:
        """It is wrong. `shape`: where the pods' events or counts proved that, None where a comparison did."""
        self.state, self.reason, self.failed = "degraded", reason, shape
        self.trial_at, self.trial_rights = trial_at, 0
        self.proven.clear()

    def restore(self) -> None:
        """It is to be proven anew."""
        self.state, self.reason, self.failed = "unverified", None, None
        self.proven.clear()
        self._verdicts.clear()

    def wants_trial(self, shape: Shape, now: float) -> bool:
        """Was it proven wrong by requests like this one, some time ago?"""
        return self.failed == shape and now >= self.trial_at

    def tried(self, right: bool, later: float) -> bool:
        """One trial's outcome; True when it is right again. `later`: not to be tried before, after a wrong one."""
        if not right:
            self.trial_rights, self.trial_at = 0, later
            return False
        self.trial_rights += 1
        return self.trial_rights >= TRIAL_RIGHTS


class Witness(NamedTuple):
    """A request as it came: what its tokens were made from can be made anew if they are doubted. Not of large ones."""

    path: str
    body: bytes


@dataclass(slots=True, eq=False)
class Origin:
    """Where one request's tokens came from; `trial`: a source that was wrong, and is to be tried on this prompt."""

    state: TokenizerState
    shape: Shape
    model: str | None
    lora: str | None = None
    salt: str | None = None
    trial: TokenizerState | None = None

    @property
    def verified(self) -> bool:
        return self.state.is_verified(self.shape)


@dataclass(slots=True, eq=False)
class Ladder:
    """One base model's sources. `current`: the one that its newest prompt was encoded by, and why not a better one."""

    local: TokenizerState | None
    render: TokenizerState = field(default_factory=lambda: TokenizerState(source="render", assured=True))
    tokenize: TokenizerState = field(default_factory=lambda: TokenizerState(source="tokenize"))
    text: TokenizerState = field(default_factory=lambda: TokenizerState(source="text"))
    current: Source | None = None
    why: str = "no prompt has come yet"

    @property
    def states(self) -> list[TokenizerState]:
        """In order."""
        return [state for state in (self.local, self.render, self.tokenize) if state is not None]

    def asked(self, renders: bool, tokenizes: bool) -> TokenizerState | None:
        """By what pods that do this are asked; None: they would tell nothing true."""
        if renders and self.render.state != "degraded":
            return self.render
        return self.tokenize if tokenizes and self.tokenize.state != "degraded" else None

    def trial(self, shape: Shape, now: float) -> TokenizerState | None:
        """The best source that this prompt might prove right again."""
        for state in self.states:
            if state.state == "degraded":
                return state if state.wants_trial(shape, now) else None
        return None
