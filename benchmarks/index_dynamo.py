"""NVIDIA Dynamo's `RadixTree` on the fleet of `benchmarks.index`; run by an interpreter that has `ai-dynamo-runtime`.

    PYTHON index_dynamo.py FLEET.npz ROUNDS

FLEET: `keys` of all chains, where each of them `ends`, (pod, chain) as `placed`, (blocks, chain) as `asked`. Prints
JSON: median microseconds of `find_matches` by number of blocks asked for. The answers are checked once.
"""

import json
import statistics
import sys
from time import perf_counter

import numpy as np
from dynamo._core import RadixTree  # type: ignore[import-not-found]

EVENT_BLOCKS = 128


def stored(keys: list[int], start: int, number: int) -> bytes:
    """One event: a block's hash may be its key, as a key names all before it, too."""
    blocks = [{"block_hash": key, "tokens_hash": key} for key in keys[start : start + EVENT_BLOCKS]]
    parent = keys[start - 1] if start else None
    return json.dumps({"event_id": number, "data": {"stored": {"parent_hash": parent, "blocks": blocks}}}).encode()


def main() -> None:
    fleet, rounds = np.load(sys.argv[1]), int(sys.argv[2])
    chains = [part.tolist() for part in np.split(fleet["keys"], fleet["ends"][:-1])]
    tree, number = RadixTree(), 0
    for pod, chain in fleet["placed"].tolist():
        for start in range(0, len(chains[chain]), EVENT_BLOCKS):
            tree.apply_event(pod, stored(chains[chain], start, number))
            number += 1
    asked: dict[int, list[list[int]]] = {}
    for blocks, chain in fleet["asked"].tolist():
        asked.setdefault(blocks, []).append(chains[chain][:blocks])
    medians = {}
    for blocks, lists in asked.items():
        assert all(max(tree.find_matches(keys).scores.values()) == blocks for keys in lists)
        times = []
        for turn in range(rounds):
            keys = lists[turn % len(lists)]
            began = perf_counter()
            tree.find_matches(keys)
            times.append(perf_counter() - began)
        medians[blocks] = statistics.median(times) * 1e6
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
