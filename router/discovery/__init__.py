"""Which pods there are, and how they are: joining, probing, leaving.

`pods` is the door. What a change means is decided in `core`.
"""
