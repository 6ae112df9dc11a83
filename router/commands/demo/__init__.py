"""`warmroute demo`: a simulated fleet, the gateway and a real workload, as real processes on loopback; then agents."""
