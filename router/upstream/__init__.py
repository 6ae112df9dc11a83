"""HTTP/1.1 towards pods: a pool of connections for each, replies as they come, and why one failed.

The proxy comes in by `pool`, probes by `pod_client`. It knows no prompt.
"""
