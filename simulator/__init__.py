"""A pod that behaves like vLLM, in a process of its own: for the demo, tests and benchmarks."""
