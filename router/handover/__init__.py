"""What pods that leave pass on: prompts of late are kept; what one pod alone holds is priced, and left to heirs.

`handover` is the door.
"""
