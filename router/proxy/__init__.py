"""One request to one pod after the other, and its answer back.

`proxy` is the door: bytes in, the same bytes out; `attempts` says who is next, and gives back what was taken; `uploads`
are bodies that go on while they come; who must wait does so in `waiting_room`. It never chooses a pod itself, nor looks
into a body.
"""
