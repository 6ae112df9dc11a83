"""What requests were like, written down as they end: lengths, keyed hashes and times, never a text.

It is for `warmroute plan`. A request costs one append; lines are made and written by a thread, once a second. All
workers of a gateway write one file.
"""
