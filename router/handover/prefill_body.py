"""A request's body, changed so that a pod computes its prompt and one token. Pure.

The prompt stays what it is, with its adapter and salt; what only matters to the answer goes, so that there is little.
"""

from __future__ import annotations

from typing import Any

import orjson

_PATHS = {"/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens", "/v1/messages": "max_tokens"}
_OF_ANSWERS = (
    "max_completion_tokens", "min_tokens", "stream_options", "best_of", "n", "logprobs", "top_logprobs",
    "prompt_logprobs", "echo", "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "use_beam_search", "request_id", "kv_transfer_params", "stop", "stop_token_ids",
    "return_token_ids", "kv_cache_report_mode",
)  # fmt: skip


def prefill_body(path: str, body: bytes) -> bytes | None:
    """None where it can't be asked so."""
    limit = _PATHS.get(path)
    try:
        fields: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if limit is None or not isinstance(fields, dict):
        return None
    for name in _OF_ANSWERS:
        fields.pop(name, None)
    fields[limit], fields["stream"] = 1, False
    return orjson.dumps(fields)
