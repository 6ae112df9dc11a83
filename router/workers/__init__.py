"""Several processes on one port: started, watched, and told of each other.

`supervisor` starts them and serves nothing; each is a `worker`, told so by its `control`; operators who ask one hear of
all by `peers`. It knows no prompt; what workers know of each other's load is the scorer's board.
"""
