"""The one place that knows which protocols there are: a machine, hands, and the size of blobs for each."""

from __future__ import annotations

from typing import Any

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.peer.hands import Hands, Tools
from ppdl_mq.peer.rounds import RoundHands
from ppdl_mq.peer.turns import TurnHands
from ppdl_mq.peer.vectors import words_of
from ppdl_mq.protocol.machine import Machine
from ppdl_mq.protocol.masked_average.machine import MaskedAverageMachine
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.terms import Terms

_WIDEST_WORD_BYTES = 8


def machine_of(terms: Terms) -> Machine[Any]:
    """Return the machine of a trial's protocol."""
    return MaskedAverageMachine(terms) if terms.is_masked else SequentialMachine(terms)


def hands_of(tools: Tools, *, audit_rate: float) -> Hands:
    """Return the hands for a trial's protocol.

    Args:
        tools: of the runner.
        audit_rate: in masked-average, how often this peer has a sum recomputed, 0 to 1.
    """
    return RoundHands(tools, audit_rate=audit_rate) if tools.terms.is_masked else TurnHands(tools)


def vector_words(manifest: Manifest, layout: Layout) -> int:
    """Return how many ring words the model's weights become; 0 where the protocol has none."""
    return 0 if manifest.averaging is None else words_of(layout, manifest.averaging)


def largest_blob_bytes(terms: Terms, weights_bytes: int) -> int:
    """Return the size that no message's blob exceeds: a shard has at most the whole vector, in the widest words."""
    return max(weights_bytes, _WIDEST_WORD_BYTES * terms.words)
