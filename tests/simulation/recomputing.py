"""What the steps of masked-average come to, computed again from who took part: without masks, messages or journals."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ppdl_mq.errors import Dropped, TooFewPeers
from ppdl_mq.numeric.exponents import exponents
from ppdl_mq.numeric.fixed_point import FixedPoint, Share
from ppdl_mq.protocol.masked_average.outcome import figures_of
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.wire import canonical
from tests.simulation.work import LAYOUT, Work

if TYPE_CHECKING:
    from tests.simulation.trial import Simulation


def check_rounds(simulation: Simulation, models: dict[str, bytes]) -> None:
    """Hold everything that was agreed on, and every model, to what is computed again.

    Raises:
        AssertionError: they differ, somebody was left out whom nobody meant to, or gave up without a reason.
    """
    weights, missing = recomputed(simulation), simulation.people.missing
    for context in {context for said in simulation.agreed.values() for context, _ in said}:
        left_out = set(simulation.story.names) - set(_about(simulation, context)["members"])
        assert left_out <= missing, f"a step was made without {left_out}"
    for name, node in simulation.nodes.items():
        state = node.state
        assert isinstance(state, RoundState) or state is None
        if isinstance(node.gave_up, Dropped):
            assert node.has_been_lost, f"{name}: {node.gave_up}"
        elif node.has_ended:
            assert state is not None
            number = (state.base_step + 1) // 2
            # For one that was lost and is back, all others may have ended, and its people have let them go.
            are_few_here = simulation.people.are_too_few or node.has_been_lost
            are_too_few = are_few_here and isinstance(node.gave_up, TooFewPeers)
            may_end = number == node.terms.rounds or name in simulation.people.leavers or are_too_few
            assert may_end, f"{name} ended after {number}"
            assert models.get(name, weights[0]) == weights[number], f"the weights of {name} are not those of {number}"


def recomputed(simulation: Simulation) -> dict[int, bytes]:
    """Return the weights after each round, from 0, that anybody agreed on.

    Raises:
        AssertionError: somebody signed another result, or two agreed on a step in two contexts.
    """
    works = {name: Work(name, lambda _: None, simulation.story.grows_of(name)) for name in simulation.story.names}
    weights = {0: bytes(works["anna"].initial())}
    for step, said in sorted(simulation.agreed.items()):
        assert len(said) == 1, f"step {step} has {len(said)} results"
        ((context, digest),) = said
        about = _about(simulation, context)
        base = weights[max(weights)]
        assert about["base"] == hashlib.sha256(base).digest(), f"step {step} stands on other weights"
        members = [works[name] for name in about["members"]]
        result = _total(members, base) if step % 2 == 0 else _average(members, base, about["word"], (step + 1) // 2)
        assert hashlib.sha256(result).digest() == digest, f"step {step} has another result than {about['members']} make"
        if step % 2:
            weights[(step + 1) // 2] = result
    return weights


def _about(simulation: Simulation, context: bytes) -> Any:
    return canonical.decode(simulation.contexts[context], limit_bytes=4_096)


def _average(members: list[Work], base: bytes, word: Any, number: int) -> bytes:
    """Return what the members' weights average to after a round."""
    encoding = FixedPoint(LAYOUT, exponents(base, LAYOUT, floor=-2, head_room=3), word, len(members), "equal")
    total = np.zeros(encoding.words, dtype=f"uint{word}")
    for member in members:
        turn = Turn(number=number, epoch=number - 1, cycle=0, ordinal=number - 1, peer="")
        total += encoding.encode(member.train(turn, base, b"").weights, Share())
    return bytes(encoding.decode(total))


def _total(members: list[Work], weights: bytes) -> bytes:
    """Return the words to which the members' evaluations add up."""
    measured = [member.evaluate(weights) for member in members]
    figures = [figures_of(each.loss, each.accuracy, each.samples) for each in measured]
    return np.array([sum(column) % 2**64 for column in zip(*figures, strict=True)], dtype="<u8").tobytes()
