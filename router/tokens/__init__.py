"""A prompt to token ids and block keys: made here (`local`), asked of pods (`remote`), or given by clients (`given`).

`encoder` is the front door: a body comes in, a `Demand` goes out, the same one for the same body; `parity` has
proven what is in use. It never decides who serves.
"""
