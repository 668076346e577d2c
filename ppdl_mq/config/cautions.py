"""What a person should know of a manifest that holds, before the organisation agrees to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ppdl_mq.config.manifest import MODELS, Averaging, Manifest

FEW_BATCH_SAMPLES: Final = 8
FEW_TURN_SAMPLES: Final = 64
FEW_DECLARED_SAMPLES: Final = 300  # the known attacks fail from a few hundred distinct records on


def cautions_of(manifest: Manifest) -> list[str]:
    """Return a sentence for each thing that the manifest allows and that may give samples away, or stop a peer.

    Source: SECURITY.md, "What is not"; docs/PROTOCOL.md, section 16.
    """
    found = []
    training = manifest.training
    if manifest.model.callable.partition(":")[0] != MODELS:
        found.append(
            f"the model {manifest.model.callable} is not the program's own: each organisation must read it, and allow "
            "it with `models` in its peer.toml."
        )
    if training.batch_size < FEW_BATCH_SAMPLES:
        found.append(
            f"a batch is only {_samples(training.batch_size)}: little hides each of them, and a model with BatchNorm "
            "carries the batches' means in its weights."
        )
    is_masked = manifest.averaging is not None
    if is_masked and training.turn_steps == 1:
        found.append(
            "a round is one local step: what that changes in the weights is a gradient, and gives samples away."
        )
    elif training.turn_steps is not None and training.turn_steps * training.batch_size < FEW_TURN_SAMPLES:
        found.append(
            f"a turn is only {_samples(training.turn_steps * training.batch_size)}: what it changes in the weights is "
            "close to a gradient, and gives samples away."
        )
    if len(manifest.peers) == 2:
        found.append(
            "with two peers, the other peer can subtract its own part from every sum, and then has yours."
            if is_masked
            else "with two peers, each knows exactly what the other's turns changed in the weights."
        )
    if manifest.averaging is not None:
        found += _of_averaging(manifest, manifest.averaging)
    return found


def _of_averaging(manifest: Manifest, rules: Averaging) -> Iterator[str]:
    """Yield a sentence for each rule of masked-average that has a price."""
    few = sorted(peer.name for peer in manifest.peers if peer.samples and peer.samples < FEW_DECLARED_SAMPLES)
    if few:
        yield (
            f"fewer than {FEW_DECLARED_SAMPLES} samples stand behind {', '.join(few)}: what protects records, even in "
            "a sum, is their number."
        )
    if rules.weighting == "secret":
        yield (
            "with secret weighting, a count that stays the same shows when the membership changes: it is the "
            "difference between the totals before and after."
        )
    if rules.on_absent == "drop":
        yield (
            f'with on_absent = "drop", {rules.absent_after_s:g} s of silence are enough to drop a peer: a relay that '
            "silences all honest peers but one gets that one's weights from a coalition of the others."
        )


def _samples(count: int) -> str:
    return f"{count} sample{'s' if count > 1 else ''}"
