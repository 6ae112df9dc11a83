"""The gateway before AIPerf, a load generator of others: `make test-aiperf`. Not part of `make test`."""
