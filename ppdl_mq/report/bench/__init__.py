"""Figures of this machine and one relay, as ratios taken in one run. Source: docs/BENCHMARKS.md."""
