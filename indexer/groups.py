"""The KV-cache groups of one pod: which of them is indexed, and what the others keep beside it.

vLLM stores a hybrid model's blocks once a group, under the same engine hashes. The group that keeps every block is
indexed; a hit can end only where each of the others can go on, too. A *window* group needs the last blocks before the
end; a *state* group what it kept at just that block, and so does a further group that keeps every block. vLLM 0.20 and
0.21 name no kinds: there, a group that leaves blocks of a store out is a window.

Where windows are all that a model has, one of them is indexed: what comes before a window need not be held.

Where a rule is not known, or a group's blocks are smaller than those indexed, `unsure` says so: it takes the pod's own
reports to prove what is foretold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from indexer.events import ASIDE_KINDS, PREFIX_KINDS, STATE_KINDS, WINDOW_KINDS, BlockStored
from indexer.learned import GroupsKnown, Role

Stretches: TypeAlias = Sequence[tuple[int, int]]
"""(first block, block after the last) of each, in order, without overlap."""


class Groups:
    """Engine hashes by group beside the indexed one, each with its number of copies: for hybrid models only."""

    def __init__(self) -> None:
        self.indexed: int | None = None
        self.block_size = 0  # of whole blocks of the indexed group in the pod's own cache; 0: none came
        self.needed = 0  # blocks that windows need before the end of a hit
        self.mistaken = False  # another group than the right one was indexed: all that was made of it is wrong
        self.hybrid = False  # hits hang on other groups, too
        self.states = False  # of which one keeps states
        self.windowed = False  # the indexed group is a window itself: none keeps every block
        self.found: list[BlockStored] = []  # what the indexed group told before it was known to be that
        self._unsure = False
        self._roles: dict[int, Role] = {}
        self._copies: dict[int, Counter[int]] = {}
        self._size = 0  # as `block_size`, also of what came before the groups were emptied
        self._first: dict[int, BlockStored] = {}  # of windows, while no group is indexed

    @property
    def unsure(self) -> bool:
        """Where a hit ends is a guess."""
        return self._unsure or (self.indexed is None and bool(self._roles))

    @property
    def known(self) -> GroupsKnown:
        """See `GroupsKnown`."""
        return GroupsKnown(
            self.indexed, self.block_size, self.needed, self.hybrid, self.states, self._unsure, dict(self._roles)
        )

    @property
    def copies(self) -> Mapping[int, Counter[int]]:
        """What each group beside the indexed one keeps, and how many copies."""
        return self._copies

    def learn(self, known: GroupsKnown) -> None:
        """Be these groups, of which none keeps anything yet."""
        self.indexed, self.block_size, self.needed = known.indexed, known.block_size, known.needed
        self.hybrid, self.states, self._unsure = known.hybrid, known.states, known.unsure
        self._roles = dict(known.roles)
        self._copies = {group: Counter() for group in known.roles}

    def emptied(self) -> Groups:
        """The same groups, of which none keeps anything."""
        self._copies = {group: Counter() for group in self._copies}
        self.block_size, self.mistaken = 0, False
        self._first.clear()
        return self

    def is_content(self, event: BlockStored) -> bool:
        """Does this store tell what the indexed group holds? Learns from it which group that is."""
        group, kind = event.group, event.kind
        if event.tier != "gpu":
            return kind in PREFIX_KINDS and (group is None or self.indexed in (None, group))
        if group is None or (group == self.indexed and (kind is not None or event.whole)):
            told = kind in PREFIX_KINDS or self._is_window(event)
            return told and (event.block_size == self.block_size or self._is_whole_block(event))
        if kind in PREFIX_KINDS:
            return self._is_indexed(event, group)
        self._beside(event, group)
        return group == self.indexed

    def is_indexed(self, group: int | None) -> bool:
        """Of a removal: is it about the indexed group?"""
        if self.indexed is None:
            return group not in self._roles
        return group is None or group == self.indexed

    def role(self, group: int | None) -> Role | None:
        """What a group is beside the indexed one; None: nothing that prefixes hang on."""
        return None if group is None else self._roles.get(group)

    def store(self, group: int, engine_hashes: Iterable[int], again: bool = False) -> list[int]:
        """A group keeps these blocks. `again`: no further copies.

        Returns the hashes that others of its role keep, and that it did not: where it is new, these were taken for kept
        by all.
        """
        if group not in self._copies:
            self._copies[group] = Counter()
            role = self._roles[group]
            stale = [h for other, kept in self._copies.items() if self._roles.get(other) == role for h in kept]
        else:
            stale = []
        copies = self._copies[group]
        copies.update([h for h in engine_hashes if h not in copies] if again else engine_hashes)
        return [h for h in stale if h not in copies]

    def remove(self, group: int, engine_hashes: Iterable[int]) -> list[int]:
        """One copy less of each: the hashes that this group no longer keeps."""
        self._first.pop(group, None)
        copies, gone = self._copies.get(group, Counter()), []
        for engine_hash in engine_hashes:
            if copies[engine_hash] > 1:
                copies[engine_hash] -= 1
            elif copies.pop(engine_hash, 0):
                gone.append(engine_hash)
        return gone

    def holds(self, role: Role, engine_hash: int) -> bool:
        """Do all groups of a role keep this block?"""
        roles = self._roles
        return all(engine_hash in copies for group, copies in self._copies.items() if roles.get(group) == role)

    # --- inside ---

    def _is_whole_block(self, event: BlockStored) -> bool:
        """The tail of a prompt may be told of as a block of fewer tokens, whose parent nobody knows."""
        if self.block_size == event.block_size:
            return True
        if self.block_size > event.block_size:
            self._unsure = True
            return False
        self.block_size = event.block_size
        self._size = max(self._size, event.block_size)
        return True

    def _is_indexed(self, event: BlockStored, group: int) -> bool:
        """A store of a group that may keep every block, and is not known to be the one that is indexed."""
        if event.kind is None and not event.whole:  # it leaves blocks out: a window, which keeps these
            self.needed = max(self.needed, len(event.hashes))
            if group == self.indexed:
                self.indexed, self.mistaken = None, True
            self._enrol(group, "window")
            self._guess_anew()
            return False
        if self.windowed:  # it was not so: there is a group that keeps all
            self._enrol(self.indexed or 0, "window")
            self.indexed, self.block_size, self.windowed, self.mistaken = group, event.block_size, False, True
            return False
        self._first.clear()
        if group in self._roles and (event.kind is None or event.block_size <= self._size):
            return False
        if self.indexed is None:
            self.indexed = group
            return self._is_whole_block(event)
        self._unsure = True
        if event.block_size <= self._size:
            self._enrol(group, "state")
            return False
        self._enrol(self.indexed, "state")
        self._roles.pop(group, None)
        self._copies.pop(group, None)
        self.indexed, self.mistaken = group, True
        self.block_size = self._size = event.block_size
        return False

    def _guess_anew(self) -> None:
        """A group without a kind is a window. Another one that kept all so far may be the one to index, if none is."""
        if self.indexed is None:
            for other in [other for other, role in self._roles.items() if role == "state"]:
                del self._roles[other]
                self._copies.pop(other, None)
        self.states = "state" in self._roles.values()
        self._unsure = self._unsure and self.states

    def _beside(self, event: BlockStored, group: int) -> None:
        """A store of a group that does not keep every block."""
        kind = event.kind
        if kind in ASIDE_KINDS:
            return
        smaller = event.block_size < self.block_size
        if kind in WINDOW_KINDS and event.window and (event.block_size == self.block_size or not self.block_size):
            self.needed = max(self.needed, -(-(event.window - 1) // event.block_size))
            self._enrol(group, "window")
            if self.indexed is None:
                self._look_for_windows(event, group)
            return
        self._unsure = self._unsure or smaller or kind not in STATE_KINDS
        self._enrol(group, "state")

    def _look_for_windows(self, event: BlockStored, group: int) -> None:
        """In one step each group tells of the same request: where one speaks again, there is none that keeps all."""
        if group not in self._first:
            self._first[group] = event
            return
        self.indexed = next((number for number, first in self._first.items() if first.whole), None)
        if self.indexed is not None:
            self.found, self.windowed = [self._first[self.indexed]], True
            self.block_size = event.block_size
            del self._roles[self.indexed]
            self._copies.pop(self.indexed, None)
            self._first.clear()

    def _is_window(self, event: BlockStored) -> bool:
        if self.windowed and not event.whole:  # which of the blocks these are is not told
            self._unsure = True
        return self.windowed and event.whole

    def _enrol(self, group: int, role: Role) -> None:
        self._roles[group] = role
        self.hybrid = True
        self.states = self.states or role == "state"


def places_of(run: int, windows: Stretches | None, needed: int, states: Stretches | None) -> list[tuple[int, int]]:
    """Where a hit may end, of `run` blocks: (fewest, most) blocks of each stretch of such places, in order.

    `windows`, `states`: the stretches that all groups of a role keep; None: there is no such group.
    """
    places = [(1, run)] if run else []
    if windows is not None and needed:
        kept = [(start + needed if start else 1, end) for start, end in windows]
        places = [(first, last) for first, last in kept if first <= last]
    if states is not None:
        places = _common(places, [(start + 1, end) for start, end in states])
    return places


def _common(ours: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The places that both have."""
    common, one, other = [], 0, 0
    while one < len(ours) and other < len(others):
        first, last = max(ours[one][0], others[other][0]), min(ours[one][1], others[other][1])
        if first <= last:
            common.append((first, last))
        if ours[one][1] < others[other][1]:
            one += 1
        else:
            other += 1
    return common
