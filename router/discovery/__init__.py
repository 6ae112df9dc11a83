"""Which pods there are, and how they are: joining, probing, leaving.

`pods` is the door: it follows the `sources` (a list, a file, a name, Kubernetes), and has a `prober` for each pod. It
tells what was found and what a probe said; what that means for a pod is decided in `core.fleet`, never here.
"""
