"""The commands that look at a fleet: `check`, `score`, `demo`.

`router.cli` is the door; `check` examines each pod by `examination`. They change nothing in a fleet that is not theirs.
"""
