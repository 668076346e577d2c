"""Keys, seals, hashes: bytes in, bytes out."""
