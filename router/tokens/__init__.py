"""A prompt to token ids and block keys: made here, asked of pods, or given by the client.

`encoder` is the front door. It never decides who serves.
"""
