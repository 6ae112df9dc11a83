"""A fleet in virtual time, in which the shipped core decides: what another number of pods, or another policy, would do.

Pods are made of arithmetic (`engine`, `cache`, by `profiles`), requests come from traces (`traces`) or users that wait
for their answers, and every decision is the core's own (`gateway`). Deterministic under a seed. `figures` is what comes
out.
"""
