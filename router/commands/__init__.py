"""The commands that look at a fleet: `check`, `score`, `demo`, `bench`.

`router.cli` is the door; `check` has each pod examined by `examination`. They change nothing in a fleet that is not
theirs, and no part of the gateway imports them.
"""
