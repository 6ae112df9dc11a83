"""The bodies and SSE chunks of answers, in vLLM's shapes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import orjson

from simulator.ask import Ask
from simulator.events import Version
from simulator.model import Model

DONE = b"data: [DONE]\n\n"
Json = dict[str, Any]


def sse(chunk: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


class Answer:
    """Shapes what goes back for one Ask."""

    def __init__(self, ask: Ask, model: Model, block_size: int) -> None:
        self._ask = ask
        self._model = model
        self._block_size = block_size
        self._created = int(time.time())
        self._call_id = "chatcmpl-tool-" + secrets.token_hex(8)
        self._siblings = len(ask.choices) // len(ask.prompts)

    def whole(self, texts: Sequence[str], cached_tokens: int) -> Json:
        """The body of an answer that is not streamed; `texts` and tokens by choice."""
        ask = self._ask
        body = self._head("chat.completion" if ask.chat else "text_completion")
        body["choices"] = [self._choice(index, text) for index, text in enumerate(texts)]
        body["system_fingerprint"] = self._fingerprint()
        body["usage"] = self.usage(sum(len(choice.output) for choice in ask.choices), cached_tokens)
        if ask.chat and ask.return_token_ids:
            body["prompt_token_ids"] = ask.prompts[0]
        return body

    def opening(self) -> list[bytes]:
        """What a chat stream says before its first token: the role of each choice."""
        if not self._ask.chat:
            return []
        chunks = []
        for index in range(len(self._ask.choices)):
            delta = {"role": "assistant", "content": ""}
            chunks.append(self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None}, 0))
        if self._ask.return_token_ids:
            chunks[0]["prompt_token_ids"] = self._ask.prompts[0]
        return [sse(chunk) for chunk in chunks]

    def chunk(self, index: int, text: str, tokens: Sequence[int], first: bool, last: bool, generated: int) -> bytes:
        """One piece of choice `index`; `generated` counts the tokens of all choices so far."""
        ask = self._ask
        choice: Json = {"index": index, "logprobs": None, "finish_reason": None}
        if ask.chat:
            choice["delta"] = self._tool_delta(text, first) if ask.tool else {"content": text}
        else:
            choice["text"] = (ask.echo[self._prompt_of(index)] if ask.echo and first else "") + text
            if first and ask.return_token_ids:
                choice["prompt_token_ids"] = ask.prompts[self._prompt_of(index)]
        if last:
            choice["finish_reason"] = ask.choices[index].finish_reason
        if ask.return_token_ids:
            choice["token_ids"] = list(tokens)
        return sse(self._chunk(choice, generated))

    def closing(self, generated: int, cached_tokens: int) -> list[bytes]:
        """The chunk with the usage, where it was asked for, and the end."""
        if not self._ask.include_usage:
            return [DONE]
        chunk = self._head("chat.completion.chunk" if self._ask.chat else "text_completion")
        usage = self.usage(generated, cached_tokens)
        last = {**chunk, "choices": [], "usage": usage, "system_fingerprint": self._fingerprint()}
        return [sse(last), DONE]

    def usage(self, generated: int, cached_tokens: int) -> Json:
        """Tokens of all prompts and choices; `cached_tokens` as vLLM reports it: those of the last sequence."""
        prompt = sum(len(prompt) for prompt in self._ask.prompts)
        usage: Json = {
            "prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated,
            "prompt_tokens_details": None,
        }  # fmt: skip
        version: Version = self._model.version
        if cached_tokens or version >= (0, 24):
            details = {"cached_tokens": cached_tokens}
            if self._ask.chat and version >= (0, 28):
                size = self._block_size
                details["created_cache_tokens"] = len(self._ask.prompts[-1]) // size * size - cached_tokens
            usage["prompt_tokens_details"] = details
        return usage

    def _head(self, kind: str) -> Json:
        return {"id": self._ask.id, "object": kind, "created": self._created, "model": self._ask.model}

    def _fingerprint(self) -> str:
        return f"vllm-{self._model.version_text}-simulated"

    def _prompt_of(self, index: int) -> int:
        return index // self._siblings

    def _choice(self, index: int, text: str) -> Json:
        ask = self._ask
        choice: Json = {"index": index, "logprobs": None, "finish_reason": ask.choices[index].finish_reason}
        if ask.chat:
            choice["message"] = self._message(text)
        else:
            choice["text"] = (ask.echo[self._prompt_of(index)] if ask.echo else "") + text
            if ask.return_token_ids:
                choice["prompt_token_ids"] = ask.prompts[self._prompt_of(index)]
        if ask.return_token_ids:
            choice["token_ids"] = ask.choices[index].output
        return choice

    def _message(self, text: str) -> Json:
        if self._ask.tool is None:
            return {"role": "assistant", "content": text, "tool_calls": []}
        function = {"name": self._ask.tool, "arguments": text}
        call = {"id": self._call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def _tool_delta(self, text: str, first: bool) -> Json:
        call: Json = {"index": 0, "function": {"arguments": text}}
        if first:
            call = {"id": self._call_id, "type": "function", "index": 0}
            call["function"] = {"name": self._ask.tool, "arguments": text}
        return {"tool_calls": [call]}

    def _chunk(self, choice: Json, generated: int) -> Json:
        ask = self._ask
        chunk = {**self._head("chat.completion.chunk" if ask.chat else "text_completion"), "choices": [choice]}
        if ask.continuous_usage:
            prompt = sum(len(prompt) for prompt in ask.prompts)
            chunk["usage"] = {
                "prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated
            }  # fmt: skip
        return chunk
