"""The chart through a real Helm and Kubernetes' own schemas: `make test-chart`."""
