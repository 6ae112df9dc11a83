"""The commands that look at a fleet: `check`, `score`, `demo`.

`router.cli` is the door.
"""
