"""The demonstration: several organisations on this machine, on real data, with everything measured."""
