"""What a gateway remembers over restarts, and what gateways of one fleet tell each other.

`keeping` is the door: it saves, restores, and takes from other gateways what they know. It believes nothing by itself:
feeds do, once their publishers are proven the same (`indexer.filling`).
"""
