"""Prompts that are known before anybody asks for them: tokenized here, and computed by pods that are idle.

`warmup` is the door, for the service that begins with them and for operators who bring some. It makes no request wait,
and keeps no text that a request would not leave behind, too.
"""
