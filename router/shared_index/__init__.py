"""The index that several gateways share through Redis.

`sharing` is the door. Imported only where `index.redis` is set.
"""
