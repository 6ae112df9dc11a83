"""One request to one pod after the other, and its answer back.

`proxy` is the door; `attempts` says who is next. It never chooses a pod itself.
"""
