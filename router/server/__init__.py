"""HTTP/1.1 towards clients: ports, connections, requests, and what goes back.

The process comes in by `port`, an application answers through `exchange`. It knows no pod and no prompt.
"""
