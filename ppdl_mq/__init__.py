"""Privacy-preserving deep learning over a message broker, by weight transmission."""

__version__ = "0.1.0"
