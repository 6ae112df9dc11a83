"""Errors of the index's world: all that `indexer` may raise on bad input."""


class IndexerError(Exception):
    """The root of every error that this package raises on purpose."""


class WireError(IndexerError):
    """A frame or event that is not of a shape that vLLM has published."""


class SnapshotError(IndexerError):
    """What should be a snapshot is none, or not whole, or not as it was written: nothing of it is believed."""
