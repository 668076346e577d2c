"""Weights as bytes."""
