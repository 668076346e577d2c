"""Whole trials of the product's own peers under one seeded scheduler with a virtual clock."""
