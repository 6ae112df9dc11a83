"""What a pod does wrong on purpose."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import msgspec

from simulator.own_tokens import Kind


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All off by default. Shares are in [0, 1] of event frames, drawn from `seed`."""

    drop: float = 0.0
    """Share of event frames that are lost on the wire (the replay still has them)."""
    duplicate: float = 0.0
    """Share of event frames that are sent twice."""
    reorder: float = 0.0
    """Share of event frames that are sent after the next one."""
    seed: int = 0
    silent: bool = False
    """No event frames at all; sequence numbers and the replay go on."""
    no_replay: bool = False
    """Replay requests are not answered."""
    replay_cut: int | None = None
    """So many batches of a replay's answer are sent, the rest is dropped: as vLLM up to 0.32 does with long ones."""
    replay_cut_end: bool = False
    """The end marker of an answer that is cut is sent nevertheless."""
    slow: float = 1.0
    """Multiplies the time of every step."""
    die_after_chunks: int | None = None
    """A stream's connection is cut after this many chunks."""
    fail_after_chunks: int | None = None
    """After this many chunks a stream tells an error, and ends as if it was whole."""
    refuse: Literal["close", "503"] | None = None
    """Connections are cut before any byte of an answer, or answered 503."""
    hang: bool = False
    """Requests for tokens are accepted and never answered."""
    tokens: Kind | None = None
    """What is served has other tokens than /tokenize tells: see `own_tokens`."""

    def __post_init__(self) -> None:
        if not all(0.0 <= share <= 1.0 for share in (self.drop, self.duplicate, self.reorder)):
            raise ValueError("drop, duplicate and reorder are shares between 0 and 1")
        if self.slow <= 0:
            raise ValueError("slow must be above 0")
        for name in ("die_after_chunks", "fail_after_chunks", "replay_cut"):
            count = getattr(self, name)
            if count is not None and count < 0:
                raise ValueError(f"{name} must not be negative")


FAULT_NAMES = frozenset(Faults.__struct_fields__)


def change(faults: Faults, changes: dict[str, object]) -> Faults:
    """`faults` with some fields changed. Raises ValueError for unknown names and bad values."""
    unknown = sorted(set(changes) - FAULT_NAMES)
    if unknown:
        raise ValueError(f"unknown fault {unknown[0]!r}; known: {', '.join(sorted(FAULT_NAMES))}")
    try:
        return msgspec.convert({**msgspec.structs.asdict(faults), **changes}, Faults)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Frame:
    """One event frame: sequence number and payload."""

    seq: int
    payload: bytes


class Wire:
    """Decides for each frame what leaves the pod: nothing, it, it twice, or it after the next one."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._random = random.Random(faults.seed)
        self._held: list[Frame] = []

    def send(self, frame: Frame) -> list[Frame]:
        """The frames to put on the wire now."""
        faults = self._faults
        if faults.silent:
            return []
        drop, duplicate, reorder = (self._random.random() for _ in range(3))
        held, self._held = self._held, []
        if drop < faults.drop:
            return held
        if reorder < faults.reorder and not held:
            self._held = [frame]
            return []
        return [frame, *([frame] if duplicate < faults.duplicate else []), *held]
