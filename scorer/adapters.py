"""Which LoRA adapters a pod has loaded: it has room for some at a time, and what was used last stays.

What is in use stays in any case. Of what others use there, the pod itself tells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class Adapters:
    """Of one pod. `slots`: adapters that it has loaded at most; 0: it has not told, and any number is."""

    __slots__ = ("_told", "_used", "slots")

    def __init__(self) -> None:
        self.slots = 0
        self._used: OrderedDict[str, int] = OrderedDict()  # by so many requests of ours; the one used last is last
        self._told: frozenset[str] = frozenset()

    def begin(self, name: str) -> None:
        """A request for it goes there."""
        self._used[name] = self._used.get(name, 0) + 1
        self._used.move_to_end(name)
        self._shrink()

    def end(self, name: str) -> None:
        """Such a request is over."""
        users = self._used.get(name, 0)
        if users:
            self._used[name] = users - 1
            self._shrink()

    def told(self, names: Iterable[str], slots: int) -> None:
        """The pod says which it runs now, and how many it can have loaded."""
        self._told, self.slots = frozenset(filter(None, map(str.strip, names))), slots
        self._shrink()

    def forget(self) -> None:
        """It was started anew: what is in use now will be gone."""
        self._told = frozenset()
        for name in [name for name, users in self._used.items() if not users]:
            del self._used[name]

    def has(self, name: str) -> bool:
        """It is loaded, or about to be."""
        return name in self._used or name in self._told

    def loads(self, name: str) -> int:
        """How many loads follow if it is asked for: its own, and that of another one which has to go for it."""
        if self.has(name):
            return 0
        return 2 if self.slots and len(self._told.union(self._used)) >= self.slots else 1

    def takes(self, name: str) -> bool:
        """It is loaded, or another one can go for it: a request need not wait for a slot."""
        if not self.slots or self.has(name):
            return True
        running = self._told | {each for each, users in self._used.items() if users}
        return len(running) < self.slots

    def _shrink(self) -> None:
        """Others have had to go for those that were used last."""
        if not self.slots:
            return
        for name in [name for name, users in self._used.items() if not users]:
            if len(self._used) <= self.slots:
                return
            del self._used[name]
