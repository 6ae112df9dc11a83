"""What is counted and measured, and how it is told: Prometheus' text, and the same as JSON.

Whoever serves a request adds plain numbers to `metrics.Metrics`; families are made of them, and of what the core
knows, when somebody asks, in slices. Other rooms `join` with families of their own. Nothing here decides anything.
"""
