"""Hostile input for every decoder: targets, a harness, mutations and a corpus. See fuzz/README.md."""
