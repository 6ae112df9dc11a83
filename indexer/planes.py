"""The planes of a set of holders: in what way a pod may hold a block, or keep something beside it."""

from __future__ import annotations

from indexer.learned import Role

PLANES = ("gpu", "predicted", "cpu", "disk")
"""In what way a pod may hold a block, the best first."""
PREDICTED = PLANES.index("predicted")
WINDOW, STATE = len(PLANES), len(PLANES) + 1
"""The planes behind them: the block is kept by all the pod's further KV-cache groups of this role, too."""
PROMISED = STATE + 1
"""It is the last block of a predicted prompt, so groups of states are about to keep theirs there."""
PLANE_OF_ROLE: dict[Role, int] = {"window": WINDOW, "state": STATE}
