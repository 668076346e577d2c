"""What people look at when a trial has ended."""
