"""What pods that leave pass on: prompts of late are kept; what one pod alone holds is priced, and left to heirs.

`handover` is the door, for `discovery` and for operators. It takes no pod's work for its own: only who is idle is
asked, and requests never wait for it.
"""
