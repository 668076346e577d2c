"""Every decoder under Hypothesis: valid input, and valid input with a few things changed in it.

`make fuzz` runs the same targets for much longer. What it finds is put into fuzz/found and tried here from then on.
"""

from __future__ import annotations

import functools
import random
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import corpus
from fuzz.harness import Form, OutOfMemoryLimit, Target, execute, execute_measured
from fuzz.mutation import mutated
from fuzz.targets import TARGETS
from ppdl_mq.errors import JournalError, Malformed, PpdlError
from ppdl_mq.wire import canonical

# How often in `make test`: about a second a target. The slow ones verify a hundred signatures, or open a database.
EXAMPLES = {
    "statements": 25,
    "journal": 30,
    "log": 100,
    "identity-file": 200,
    "state-masked": 200,
    "manifest-text": 200,
}
MEASURED = 20

seeds = functools.cache(corpus.seeds)
FOUND_IDS = sorted((path.parent.name, path.name) for path in corpus.FOUND.glob("*/*"))
FOUND = [pytest.param(name, (corpus.FOUND / name / file).read_bytes(), id=f"{name}/{file}") for name, file in FOUND_IDS]


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_valid_and_small(name: str) -> None:
    """A corpus of which nothing is accepted would test the first check of a decoder only."""
    outcomes = [execute_measured(TARGETS[name], seed) for seed in seeds(name)[:40]]
    assert None in outcomes
    assert all(len(seed) <= TARGETS[name].longest_bytes for seed in seeds(name))


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_once_broke_a_decoder(name: str, data: bytes) -> None:
    execute_measured(TARGETS[name], data)


def test_there_is_something_that_once_broke_a_decoder() -> None:
    assert {name for name, _ in FOUND_IDS} <= set(TARGETS)
    assert len(FOUND) >= 20


@pytest.mark.parametrize("name", TARGETS)
def test_changed_input(name: str) -> None:
    target, starts = TARGETS[name], seeds(name)
    runs = 0

    @settings(
        max_examples=EXAMPLES.get(name, 300), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(starts), st.integers(0, 2**32))
    def check(start: bytes, seed: int) -> None:
        nonlocal runs
        runs += 1
        data = mutated(target, start, random.Random(seed))
        (execute if runs % MEASURED else execute_measured)(target, data)

    check()


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "journal"])
def test_any_bytes(name: str) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=300))
    def check(data: bytes) -> None:
        execute(TARGETS[name], data)

    check()


# --- the harness can fail --------------------------------------------------------------------------------------------


def test_another_exception_is_a_finding() -> None:
    def run(data: bytes) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        execute(Target(name="broken", run=run), b"")


def test_an_error_of_another_class_is_a_finding() -> None:
    def run(data: bytes) -> None:
        raise Malformed("of the wire, where the journal was read")

    assert execute(Target(name="right", run=run), b"") is Malformed
    with pytest.raises(PpdlError):
        execute(Target(name="wrong", run=run, errors=(JournalError,)), b"")


def test_too_much_memory_is_a_finding() -> None:
    def run(data: bytes) -> None:
        assert list(range(1_000, 1_000 + 10 * len(data)))

    target = Target(name="greedy", run=run, fixed_bytes=10_000)
    assert execute_measured(target, bytes(10)) is None
    with pytest.raises(OutOfMemoryLimit):
        execute_measured(target, bytes(100_000))
    assert not tracemalloc.is_tracing()


def test_mutations_change_what_is_said_and_repeat_from_their_seed() -> None:
    target = Target(name="data", run=lambda _: None, form=Form.CANONICAL)
    start = canonical.encode({"a": 1, "b": [b"bytes", "text"]})
    made = [mutated(target, start, random.Random(seed)) for seed in range(200)]
    assert made == [mutated(target, start, random.Random(seed)) for seed in range(200)]
    decoded = 0
    for data in made:
        try:
            canonical.decode(data, limit_bytes=10_000)
            decoded += 1
        except Malformed:
            pass
    assert decoded > 100, "most of them get past the encoding"
