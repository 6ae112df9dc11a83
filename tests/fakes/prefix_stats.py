"""Figures of a prefix store."""

from __future__ import annotations

from typing import Any

from indexer.prefixes import PrefixStats


def no_stats() -> Any:
    """A prefix store that has seen nothing."""
    return stats_of()


def stats_of(**given: Any) -> PrefixStats:
    """Figures of a prefix store."""
    zero: dict[str, Any] = {
        name: {} if name in ("evictions", "invalidations") else 0 for name in PrefixStats.__dataclass_fields__
    }
    return PrefixStats(**{**zero, **given})
