"""Errors of the index's world: all that `indexer` may raise on bad input."""


class IndexerError(Exception):
    """The root of every error that this package raises on purpose."""


class WireError(IndexerError):
    """A frame or event that is not of a shape that vLLM has published."""
