"""Pods' KV events over ZMQ, from the socket to `indexer.feed`.

`reader` keeps one feed fed, and has gaps replayed (`replays`); pods that connect to us come in by `bound_endpoint`; all
share the loop by `turns`. It never interprets an event.
"""
