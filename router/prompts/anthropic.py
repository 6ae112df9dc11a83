"""A body of the Messages API -> the chat that vLLM makes of it, where all its versions make the same. Pure.

That is so for texts; how tools, images, results and thoughts are written differs between versions, and what is not
sure is routed by load.
"""

from __future__ import annotations

from router.prompts.decoding import Fields
from router.prompts.messages import BILLING_HEADER

_UNSURE = ("tools", "chat_template_kwargs", "output_config")
_TAKEN = ("model", "max_tokens", "stream", "priority")
_ROLES = ("user", "assistant")


class NotSure(Exception):
    """Versions of vLLM differ in what they make of this."""


def chat_of(fields: Fields) -> Fields:
    """The fields of the chat; raises NotSure with the reason. What else a chat may have, vLLM does not read here."""
    for name in _UNSURE:
        if fields.get(name):
            raise NotSure(f"{name} of the Messages API is not rendered here")
    messages = fields.get("messages")
    if type(messages) is not list or not messages:
        raise NotSure("there are no messages")
    system = "".join(_texts(fields.get("system") or "", "system"))
    chat: Fields = {"messages": [{"role": "system", "content": system}] if system else []}
    chat["messages"] += [_message(message) for message in messages]
    thinking = fields.get("thinking")
    if type(thinking) is dict and thinking.get("type") == "disabled":
        chat["reasoning_effort"] = "none"
    return {**{name: fields[name] for name in _TAKEN if name in fields}, **chat}


def _message(message: object) -> Fields:
    if type(message) is not dict or message.get("role") not in _ROLES:
        raise NotSure("a message's role is neither user nor assistant")
    content = message.get("content")
    if type(content) is str:
        return {"role": message["role"], "content": content}
    texts = _texts(content, "messages")
    if not texts:
        raise NotSure("a message is empty")
    parts = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
    return {"role": message["role"], "content": parts}


def _texts(content: object, where: str) -> list[str]:
    """The texts that are not empty, of a string or of blocks."""
    if type(content) is str:
        return [content] if content else []
    if type(content) is not list:
        raise NotSure(f"{where} is neither a string nor a list of blocks")
    texts: list[str] = []
    for block in content:
        if type(block) is not dict or block.get("type") != "text" or type(block.get("text")) is not str:
            raise NotSure(f"{where} has a block that is not text")
        texts.append(block["text"])
    if where == "system" and any(text.startswith(BILLING_HEADER) for text in texts):
        raise NotSure("the system's text has a billing header")
    return [text for text in texts if text]
