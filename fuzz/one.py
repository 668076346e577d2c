"""Fuzz one target under atheris: `python -m fuzz.one TARGET [libFuzzer options] [corpus folders]`."""

from __future__ import annotations

import logging
import sys
from random import Random

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["ppdl_mq", "tomllib"], enable_loader_override=False):
    from fuzz.targets import TARGETS

from fuzz.harness import execute, execute_measured
from fuzz.mutation import mutated

MEASURED_EVERY = 64  # tracing every allocation costs more than the decoder


def main() -> None:
    """Run until libFuzzer ends the process."""
    target = TARGETS[sys.argv[1]]
    logging.disable(logging.CRITICAL)
    runs = 0

    def one_input(data: bytes) -> None:
        nonlocal runs
        runs += 1
        (execute if runs % MEASURED_EVERY else execute_measured)(target, data)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)
        changed = mutated(target, data, random) if random.random() < 0.3 else atheris.Mutate(data, longest)
        return bytes(changed[:longest])

    options = [f"-max_len={target.longest_bytes}", "-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[2:]], one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
