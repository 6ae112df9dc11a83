"""What may be set: every key with its bounds, its default and its reason, and how it is read.

`settings` is the whole; a section stands beside its like. Commands come in by `reading`, which joins files,
environment and flags (`sources`); the other rooms are handed a section each, and make their limits of it
(`X.of(section)`). It never imports a room that is configured by it, and nobody else has defaults.
"""
