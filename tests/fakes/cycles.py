"""What only the collector of cycles finds."""

from __future__ import annotations

import contextlib
import gc
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
PACKAGES = ("router", "scorer", "indexer")


def is_ours(thing: object) -> bool:
    """An instance of a class of ours, or a frame (and so all that it refers to) of a function of ours."""
    if isinstance(thing, types.FrameType):
        file = thing.f_code.co_filename.removeprefix(ROOT + "/")
        return file.split("/")[0] in PACKAGES
    return type(thing).__module__.split(".")[0] in PACKAGES


@contextlib.contextmanager
def garbage() -> Iterator[Counter[str]]:
    """What only the collector finds of what is ours; it is counted when the block ends."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        for thing in gc.garbage:
            if is_ours(thing):
                name = thing.f_code.co_qualname if isinstance(thing, types.FrameType) else type(thing).__name__
                found[name] += 1
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()
