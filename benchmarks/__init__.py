"""Benchmarks: each prints its figures as ratios against something measured in the same run."""
