"""The index that several gateways share through Redis.

`sharing` is the door: it asks for what others know (`hits`), and writes what this gateway's feeds say (`mirror`).
Imported only where `index.redis` is set. It never holds up a decision for longer than it was given.

Why it stays: a gateway whose feed of a pod has a gap knows that pod's blocks from one whose feed has none, and one that
has just started knows them all; whoever does not set it imports nothing and pays one comparison with None per request.
"""
