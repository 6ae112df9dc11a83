"""Why so much of a prompt was not cached, and how each request ended: told to operators, after the request is over.

What a decision was made from is kept with it, as it was; what became of blocks, and which prompts came before, is
remembered within bounds, without their texts. So nothing here costs a request more than to say that it has ended.
"""
