"""Chats as real vLLM renders them: `PYTHON theirs.py QUESTIONS ANSWERS`, with the interpreter of vLLM's venv.

QUESTIONS is a JSON object of `templates` (sources), `bodies` and `special_tokens`; ANSWERS gets a line for each
template, a list with a text for each body, or null where vLLM refuses. What renders is vLLM's own: its request's model,
its reading of messages, its search for the content format, transformers' template engine.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers.utils.chat_template_utils as engine
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import resolve_chat_template_content_format, safe_apply_chat_template
from vllm.renderers.params import merge_kwargs

NOW = datetime(2026, 7, 26, 12, 0)


class _Clock(datetime):
    """Templates that write the date write the same one on both sides."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def _model() -> Any:
    """As much of vLLM's ModelConfig as a text model's rendering looks at."""
    return SimpleNamespace(
        multimodal_config=None,
        enable_prompt_embeds=False,
        is_multimodal_model=False,
        trust_remote_code=False,
        revision=None,
        code_revision=None,
        tokenizer_revision=None,
        model="model",
        tokenizer="model",
        hf_config=SimpleNamespace(model_type="llama"),
    )


def _text(request: ChatCompletionRequest, template: str, tokenizer: Any, model: Any) -> str:
    """As `OnlineRenderer.render_chat` and `HfRenderer.render_messages` go."""
    tools = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    params = request.build_chat_params(template, "auto").with_defaults(
        merge_kwargs(None, {"tools": tools, "tokenize": False})
    )
    content_format = resolve_chat_template_content_format(
        params.chat_template,
        params.chat_template_kwargs.get("tools"),
        params.chat_template_content_format,
        tokenizer,
        model_config=model,
    )
    # Reading them changes them; a request has only one template.
    messages, _, _ = parse_chat_messages(copy.deepcopy(request.messages), model, content_format)
    text = safe_apply_chat_template(model, tokenizer, messages, **params.get_apply_chat_template_kwargs())
    assert isinstance(text, str)
    return text


def _texts(requests: list[ChatCompletionRequest | None], template: str, tokenizer: Any, model: Any) -> list[str | None]:
    texts: list[str | None] = []
    for request in requests:
        try:
            texts.append(None if request is None else _text(request, template, tokenizer, model))
        except Exception:  # whatever it is, the server would answer with an error
            texts.append(None)
    return texts


def _request(body: dict[str, Any]) -> ChatCompletionRequest | None:
    try:
        return ChatCompletionRequest.model_validate(body)
    except ValueError:
        return None


def main(questions: Path, answers: Path) -> None:
    """See the module."""
    logging.disable(logging.CRITICAL)
    engine.datetime = _Clock
    asked = json.loads(questions.read_bytes())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **asked["special_tokens"])
    requests = [_request(body) for body in asked["bodies"]]
    model = _model()
    with answers.open("w", encoding="utf-8") as file:
        for template in asked["templates"]:
            print(json.dumps(_texts(requests, template, tokenizer, model)), file=file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
