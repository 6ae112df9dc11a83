"""A request's body to a `Prompt`, and a prompt to its text, as vLLM makes it.

`prompt` is the door; `renderings` makes the text, as each version in use does. It never tokenizes, asks no pod and
reads no clock but what a template asks for.
"""
