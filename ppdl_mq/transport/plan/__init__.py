"""What a broker must have and allow for one trial, made from its manifest: pure functions, no broker is asked."""
