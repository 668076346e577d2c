"""What the journal kept of a state: taken back as it was, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fuzz import corpus
from fuzz.targets.memory import MASKED, SEQUENTIAL
from ppdl_mq.errors import JournalError
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.restoring import restored_state
from ppdl_mq.wire import canonical

KINDS = ("state-sequential", "state-masked")
STATES = [
    pytest.param(machine, canonical.decode(raw, limit_bytes=10**6), id=f"{kind}-{at}")
    for kind, machine in zip(KINDS, (SEQUENTIAL, MASKED), strict=True)
    for at, raw in enumerate(corpus.seeds(kind))
]


def test_most_phases_are_there() -> None:
    phases = [canonical.decode(raw, limit_bytes=10**6)["phase"] for kind in KINDS for raw in corpus.seeds(kind)]
    assert len(set(phases)) > len(Phase) // 2


@pytest.mark.parametrize(("machine", "data"), STATES)
def test_a_state_comes_back(machine: Any, data: dict[str, Any]) -> None:
    assert restored_state(machine, data).as_data().keys() == data.keys()


@pytest.mark.parametrize(("machine", "data"), STATES)
def test_a_missing_an_additional_and_a_wrong_entry_are_refused(machine: Any, data: dict[str, Any]) -> None:
    changes: list[Callable[[str], dict[str, Any]]] = [
        lambda name: {key: value for key, value in data.items() if key != name},
        lambda name: data | {name: None} if data[name] is not None else data | {name: "text"},
        lambda name: data | {name: {"x": 1.5}},
        lambda name: data | {name: 2**40 if not isinstance(data[name], int) else float(data[name])},
        lambda name: data | {f"{name}s": 1},
    ]
    for name in data.keys() - {"lowest_loss"}:  # may be None
        for change in changes:
            with pytest.raises(JournalError):
                restored_state(machine, change(name))
    others: tuple[Any, ...] = (None, [], "new", {})
    for other in others:
        with pytest.raises(JournalError):
            restored_state(machine, other)
