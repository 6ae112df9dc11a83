"""A request's body to a `Prompt`, and a prompt to its text, as vLLM makes it.

`prompt` is the door; `rendering` makes the text. It never tokenizes.
"""
