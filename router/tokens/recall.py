"""Request bodies seen before: what their bytes mean, so that the same request again is neither parsed nor rendered.

Parsing, rendering and tokenizing are pure functions of the body (and of what the fleet serves, which `epoch` stands
for), so what is kept here never goes stale; who holds the blocks is asked anew each time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import xxhash

from router.tokens.understanding import Understood

_BYTES_BESIDE = 2_500  # of one entry beside its keys, measured with tracemalloc: nothing of the body itself is kept
_NAME_BYTES = 160  # of a name beside its characters, with its place in a set


class Recalled(NamedTuple):
    """One body's meaning, as of an `epoch` of the fleet."""

    meaning: Understood
    epoch: int


class Recall:
    """The most recent bodies, within `bytes_max`; larger ones than `body_max` are not kept."""

    def __init__(self, seed: int, bytes_max: int, body_max: int) -> None:
        """`seed`: a random 64-bit number, kept secret: nobody can make two bodies of one name."""
        self._seed = seed
        self._bytes_max = bytes_max
        self._body_max = body_max
        self._entries: OrderedDict[tuple[str, int], tuple[Recalled, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, path: str, body: bytes, epoch: int) -> Understood | None:
        """What is known of a body, if it was learned at this `epoch`."""
        if len(body) > self._body_max:
            return None
        name = (path, xxhash.xxh3_128_intdigest(body, self._seed))
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry[0].epoch != epoch:
            self._remove(name)
            return None
        self._entries.move_to_end(name)
        return entry[0].meaning

    def put(self, path: str, body: bytes, meaning: Understood, epoch: int) -> None:
        """Keep what a body means."""
        if len(body) > self._body_max:
            return
        name = (path, xxhash.xxh3_128_intdigest(body, self._seed))
        if name in self._entries:
            self._remove(name)
        demand = meaning.demand
        nbytes = _BYTES_BESIDE if demand.text is None else _BYTES_BESIDE + demand.text.nbytes
        nbytes += sum(keys.nbytes for each in demand.versions for keys in each.keys.values())
        nbytes += sum(keys.nbytes for keys in demand.apart.plain.values()) if demand.apart is not None else 0
        nbytes += sum(_NAME_BYTES + 4 * len(pod) for pod in demand.pods or ())
        self._entries[name] = (Recalled(meaning, epoch), nbytes)
        self.nbytes += nbytes
        while self.nbytes > self._bytes_max:
            self._remove(next(iter(self._entries)))

    def _remove(self, name: tuple[str, int]) -> None:
        self.nbytes -= self._entries.pop(name)[1]
