"""Models whose chats vLLM encodes by code of its own, not by their template, recognised from what is at hand. Pure.

Sources: vLLM's released packages up to 0.33. A template that such a model brings may give other ids, in equal number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

OwnEncoding = Literal["Harmony", "DeepSeek V3.2", "DeepSeek V4", "Kimi K3", "Inkling", "Mistral"]

_TYPES: Mapping[str, OwnEncoding] = {
    "gptoss": "Harmony",
    "deepseekv32": "DeepSeek V3.2",
    "deepseekv4": "DeepSeek V4",
    "deepseekv41": "DeepSeek V4",
    "kimik3": "Kimi K3",
    "inkling": "Inkling",
}
"""By `model_type` in config.json, and what `architectures` begin with: letters and digits only, in lower case."""
_NAMES: tuple[tuple[re.Pattern[str], OwnEncoding], ...] = (
    (re.compile(r"\bgpt-?oss\b", re.IGNORECASE), "Harmony"),
    (re.compile(r"\bdeepseek-?v3[.\-]?2\b", re.IGNORECASE), "DeepSeek V3.2"),
    (re.compile(r"\bdeepseek-?v4(\.\d+)?\b", re.IGNORECASE), "DeepSeek V4"),
    (re.compile(r"\bkimi-?k3\b", re.IGNORECASE), "Kimi K3"),
    (re.compile(r"\binkling\b", re.IGNORECASE), "Inkling"),
)
"""By the names that pods give a model. Not Mistral's: many are served by their template."""
_MISTRAL_FILES = ("tekken.json", "consolidated*.safetensors", "tokenizer.model.v*")
_HARMONY_TOKENIZES = (0, 33)  # from then on, /tokenize encodes its chats as the chat route does
_NUMBERS = re.compile(r"v?(\d+)\.(\d+)")
_APART = re.compile(r"[^a-z0-9]")


def by_config(config: Mapping[str, Any]) -> OwnEncoding | None:
    """What a model's config.json says."""
    kinds = [config.get("model_type")]
    architectures = config.get("architectures")
    if isinstance(architectures, list):
        kinds += architectures
    text = config.get("text_config")
    if isinstance(text, dict):
        kinds.append(text.get("model_type"))
    for kind in kinds:
        word = _APART.sub("", kind.lower()) if isinstance(kind, str) else ""
        word = re.sub(r"(for[a-z]+|mtp(model)?|model)$", "", word)
        if word in _TYPES:
            return _TYPES[word]
    return None


def by_folder(folder: Path, config: Mapping[str, Any]) -> OwnEncoding | None:
    """What a model's folder says; Mistral's own files make vLLM use Mistral's own tokenizer."""
    own = by_config(config)
    if own is None and any(next(folder.glob(pattern), None) is not None for pattern in _MISTRAL_FILES):
        return "Mistral"
    return own


def by_names(names: Iterable[str]) -> OwnEncoding | None:
    """What a pod's names for a model say: its id, and its `root`, which may be a path."""
    for name in names:
        spelled = name.replace("_", "-")
        for pattern, own in _NAMES:
            if pattern.search(spelled):
                return own
    return None


def is_tokenized(own: OwnEncoding | None, versions: Iterable[str | None]) -> bool:
    """Does the pods' /tokenize encode chats as serving them does? `versions`: of all the pods that might be asked."""
    if own != "Harmony":
        return True  # their tokenizers are replaced as a whole
    found = [_NUMBERS.match(version or "") for version in versions]
    return all(m is not None and (int(m[1]), int(m[2])) >= _HARMONY_TOKENIZES for m in found)
