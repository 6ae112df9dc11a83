"""How fast pods are in these tests, and how the gateway is configured."""

from __future__ import annotations

from typing import Any

PACE = ("--time-scale", "0.5")
SETTINGS: dict[str, Any] = {
    "upstream": {
        "connect_timeout": 0.5, "first_byte_timeout": 2.5, "idle_timeout": 2.5, "total_timeout": 12,
        "keep_alive_idle": 1,
    },
    "probe": {"interval": 0.5, "timeout": 1.0, "failures_max": 2},
    "breaker": {"open_time": 1, "open_time_max": 4},
    "admission": {"wait_max": 2},
    "events": {"replay_timeout": 2},
    "prefixStoreConfig": {"bytes_max": "1MiB"},
    "tokens": {"recall_max": "1MiB"},
    "handover": {"kept_max": "1MiB"},
    "scoring": {"slow_start": 2, "chain_keys_max": 1024},
    "index": {"text_blocks_max": 1024},
    "sessions": {"kept_max": 100},
    "decisions": {"kept": 100, "errors_kept": 10, "remembered_blocks": 4096, "remembered_prompts": 100},
}  # fmt: skip
"""Faster than by default; and what fills up in time is so small here that it is full after the first round."""
