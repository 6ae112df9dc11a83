"""What a pod serves: names, tokens, template, limits of a prompt, and what the model answers."""

from __future__ import annotations

import json
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.events import Lora, Version
from simulator.template import ChatTemplate, load_template
from simulator.tokens import Vocabulary

DEVELOPER_AS_SYSTEM_SINCE = (0, 23)
NATURAL_TOKENS = (32, 160)
"""Shortest and longest answer where the client sets no limit."""


class ForcedOutputs:
    """Answers that are given, by prompt: used in order, the last one again and again."""

    def __init__(self) -> None:
        self._outputs: dict[tuple[int, ...], deque[list[int]]] = {}

    def add(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """One more answer to a prompt; at least one token."""
        if not output:
            raise ValueError("a forced output needs at least one token")
        self._outputs.setdefault(tuple(prompt), deque()).append(list(output))

    def take(self, prompt: Sequence[int]) -> list[int] | None:
        """The next answer; None: none is given."""
        outputs = self._outputs.get(tuple(prompt)) if self._outputs else None
        if not outputs:
            return None
        return outputs.popleft() if len(outputs) > 1 else outputs[0]

    @classmethod
    def read(cls, path: Path) -> ForcedOutputs:
        """JSON lines `{"prompt_token_ids": […], "output_token_ids": […]}`; raises ValueError."""
        forced = cls()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                forced.add(row["prompt_token_ids"], row["output_token_ids"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error!r}") from error
        return forced


@dataclass(frozen=True, slots=True)
class Model:
    """One served model with its adapters."""

    name: str
    folder: str
    vocabulary: Vocabulary
    template: ChatTemplate
    context_tokens_max: int
    version: Version
    version_text: str
    loras: Mapping[str, Lora] = field(default_factory=dict)
    forced: ForcedOutputs = field(default_factory=ForcedOutputs)

    @classmethod
    def load(cls, folder: Path, name: str, context_tokens_max: int, version: Version, version_text: str,
             loras: Sequence[str] = (), forced: ForcedOutputs | None = None) -> Model:  # fmt: skip
        """Reads tokenizer and template of a model folder; raises FileNotFoundError or ValueError."""
        return cls(
            name=name,
            folder=str(folder),
            vocabulary=Vocabulary(folder),
            template=load_template(folder, version >= DEVELOPER_AS_SYSTEM_SINCE),
            context_tokens_max=context_tokens_max,
            version=version,
            version_text=version_text,
            loras={lora: Lora(number, lora) for number, lora in enumerate(loras, 1)},
            forced=forced or ForcedOutputs(),
        )

    def output(self, prompt: Sequence[int], variant: int, tokens_max: int | None) -> tuple[list[int], str]:
        """The answer to a prompt and its finish reason; `variant` tells the siblings of n > 1 apart."""
        if (forced := self.forced.take(prompt)) is not None:
            cut = forced[:tokens_max]
            return cut, "length" if tokens_max is not None and len(forced) >= tokens_max else "stop"
        if tokens_max is not None:
            return self.vocabulary.answer(prompt, variant, tokens_max), "length"
        room = self.context_tokens_max - len(prompt)
        count = min(room, self.vocabulary.natural_length(prompt, *NATURAL_TOKENS))
        return self.vocabulary.answer(prompt, variant, count), "length" if count == room else "stop"

    def cards(self) -> dict[str, Any]:
        """The body of `/v1/models`: times and ids of permissions are new in each, as vLLM makes them."""
        base = self._card(self.name, None, self.folder, self.context_tokens_max)
        return {"object": "list", "data": [base, *(self._card(lora, self.name, lora, None) for lora in self.loras)]}

    def _card(self, name: str, parent: str | None, root: str, tokens_max: int | None) -> dict[str, Any]:
        now = int(time.time())
        permission = {
            "id": f"modelperm-{secrets.token_hex(8)}", "object": "model_permission", "created": now,
            "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
            "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False,
            "organization": "*", "group": None, "is_blocking": False,
        }  # fmt: skip
        return {
            "id": name, "object": "model", "created": now, "owned_by": "vllm", "root": root,
            "parent": parent, "max_model_len": tokens_max, "permission": [permission],
        }  # fmt: skip
