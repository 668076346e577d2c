"""The files people write, parsed once into frozen objects: manifest, peer settings, broker address, limits."""
