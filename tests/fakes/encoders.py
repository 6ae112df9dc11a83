"""What an encoder is made of: prompts, stores, limits, and a tokenizer that waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from indexer.blocks import KeySpace, Tokens
from indexer.prefixes import PrefixStore
from router.tokens.tokenizer import Tokenizer
from tests.fakes.limits import local_tokens_limits, prefix_limits

SPACE = KeySpace(3)
POOLED = local_tokens_limits(
    inline_bytes_max=0, inline_bytes_slow_max=0, sliced_bytes_max=0, job_bytes=200, deadline_s=30.0
)


@dataclass(frozen=True, slots=True)
class Rendered:
    text: str
    add_special_tokens: bool = False
    truncate_prompt_tokens: int | None = None


def a_store(bytes_max: int = 50_000_000) -> PrefixStore:
    return PrefixStore(SPACE, 5, lambda match: False, prefix_limits(bytes_max))


class Waiting(Tokenizer):
    """A tokenizer that waits to be let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, window_bytes=64)
        self.go = Event()
        self.parts = 0

    def encode_cut(self, data: bytes, ends: Sequence[int]) -> tuple[Tokens, list[int] | None]:
        self.parts += 1
        if self.parts > 1:
            assert self.go.wait(20)
        return super().encode_cut(data, ends)
