"""Which eviction keeps more in the same bytes: how much of each prompt of a trace the prefix store knows.

    python -m benchmarks.prefix_eviction FOLDER [--requests 12000] [--shares 0.02 0.1 0.3]

`FOLDER` has the traces. A store of a share of what a whole trace would take, `lru` against `weighted_lru` with some
weights: known bytes of prompts, in percent.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from indexer.blocks import KeySpace, Tokens
from indexer.eviction import EvictionLimits
from indexer.match import Match
from indexer.prefixes import PrefixLimits, PrefixStore
from router.config.tokens import EvictionConfig

TRACES = ("tool_bs512.jsonl.gz", "mooncake/conversation_0-1768s.jsonl.gz", "zipf_bs64.jsonl.gz")
_PIECE, _PIECE_TOKENS = 2048, 512  # bytes between two cuts, and the tokens that they are
_KEPT_BYTES = 1.6  # of the store, for each byte of a text: ids, keys, cuts
_PIECES_MAX = 200
USUAL = EvictionConfig()
KINDS = {
    "lru": EvictionLimits("lru", 0.0, 0.0, 1.0, USUAL.threshold, USUAL.batch_size),
    "default": EvictionLimits(
        USUAL.policy, USUAL.frequency, USUAL.size, USUAL.recency, USUAL.threshold, USUAL.batch_size
    ),
    **{
        f"{frequency:g}/{size:g}/1": EvictionLimits(
            "weighted_lru", frequency, size, 1.0, USUAL.threshold, USUAL.batch_size
        )
        for frequency, size in ((0.25, 0.0), (1.0, 0.0), (0.5, 0.25), (0.5, 0.5))
    },
}


class EachPiece:
    """Cuts at every piece."""

    window_bytes = _PIECE

    def first(self, data: bytes, window: int) -> int:
        start = window * _PIECE
        return start if window and start < len(data) else 0

    def ends(self, data: bytes, start: int = 0) -> list[int]:
        return [*range(start + _PIECE, len(data), _PIECE), len(data)]


def prompts(path: Path, requests: int) -> list[Sequence[int]]:
    """The pieces of each, in order: an id stands for all before it."""
    found = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            step = max(1, _PIECE_TOKENS * len(entry["hash_ids"]) // max(1, entry["input_length"]))
            pieces = entry["hash_ids"][step - 1 :: step][:_PIECES_MAX]
            if pieces:
                found.append(pieces)
            if len(found) == requests:
                break
    return found


def known_share(asked: Sequence[Sequence[int]], bytes_max: int, eviction: EvictionLimits) -> float:
    """Of all bytes of prompts, those that were known when they came."""

    def never(match: Match) -> bool:
        return False

    def count(ids: Tokens, nbytes: int) -> int:
        return nbytes // 4

    store = PrefixStore(KeySpace(1), 1, never, PrefixLimits(bytes_max, 30.0, 5, 16, eviction), False)
    family, known, total = store.family("bench", EachPiece(), count), 0, 0
    for pieces in asked:
        data = b"".join([piece.to_bytes(8, "little") * (_PIECE // 8) for piece in pieces])
        found = store.find_longest_tokens(family, data)
        known, total = known + found.known, total + len(data)
        if found.whole is None:
            store.extend(found, found.ends(), np.frombuffer(data[found.known :], np.uint32))
        if found.block is not None:
            store.ending(found.block, (16, None, None))
    return known / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.1, 0.3])
    options = parser.parse_args()
    print(f"{'trace':28} {'share':>5} " + " ".join(f"{name:>10}" for name in KINDS))
    for name in TRACES:
        asked = prompts(options.folder / name, options.requests)
        whole = len({piece for pieces in asked for piece in pieces}) * _PIECE * _KEPT_BYTES
        for share in options.shares:
            found = [known_share(asked, int(share * whole), eviction) for eviction in KINDS.values()]
            print(
                f"{Path(name).name[:28]:28} {share:>5} " + " ".join(f"{100 * each:>10.2f}" for each in found),
                flush=True,
            )


if __name__ == "__main__":
    main()
