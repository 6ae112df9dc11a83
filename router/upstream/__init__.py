"""HTTP/1.1 towards pods: a pool of connections for each, replies as they come, and why one failed.

The twin of `server`. The proxy comes in by `pool`, probes and questions by `pod_client`. It knows no prompt, and
retries nothing by itself.
"""
