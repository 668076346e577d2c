"""What an administrator of a broker reads before saying yes: one page about one trial."""
