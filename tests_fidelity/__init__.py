"""The gateway's HTTP, checked by a tool that others wrote: `make test-fidelity` sets it up in .venv-fidelity."""
