"""One request to one pod after the other, and its answer back.

`proxy` is the door; `attempts` says who is next; `uploads` are bodies that go on while they come. It never chooses a
pod itself.
"""
