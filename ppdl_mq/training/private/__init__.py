"""Differential privacy of the rows that a peer trains on: which rows, how much of each, what noise, what it costs.

Source: docs/PRIVACY.md.
"""
