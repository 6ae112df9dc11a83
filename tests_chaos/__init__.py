"""Troubled pods under steady load, as real processes: `make test-chaos`. Takes about six minutes."""
