"""Several processes on one port: started, watched, and told of each other.

`supervisor` starts them; each is a `worker`. It knows no prompt.
"""
