"""What may be set: every key with its bounds, its default and its reason, and how it is read.

`settings` is the whole; a section stands beside its like. Commands come in by `reading`, which joins files, environment
and flags (`sources`). It never imports a room that is configured by it.
"""
