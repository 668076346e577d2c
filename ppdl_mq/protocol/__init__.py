"""The machines: events in, effects out. No I/O, no clock, no threads, no randomness of their own."""
