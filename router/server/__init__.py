"""HTTP/1.1 towards clients: ports, connections, requests, and what goes back. The twin of `upstream`.

The process comes in by `port` (all connections, and one sweeper), an application answers through `exchange`; `asgi` has
the words that both speak. It knows no pod and no prompt.
"""
