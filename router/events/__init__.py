"""Pods' KV events over ZMQ, from the socket to `indexer.feed`.

`reader` keeps one feed fed; pods that connect to us come in by `bound_endpoint`. It never interprets an event.
"""
