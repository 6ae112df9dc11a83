"""The index that several gateways share through Redis.

`sharing` is the door: it asks for what others know (`hits`), and writes what this gateway's feeds say (`mirror`).
Imported only where `index.redis` is set. It never holds up a decision for longer than it was given.
"""
