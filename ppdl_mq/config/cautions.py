"""What a person should know of a manifest that holds, before the organisation agrees to it."""

from __future__ import annotations

from typing import Final

from ppdl_mq.config.manifest import MODELS, Manifest

FEW_BATCH_SAMPLES: Final = 8
FEW_TURN_SAMPLES: Final = 64


def cautions_of(manifest: Manifest) -> list[str]:
    """Return a sentence for each thing that the manifest allows and that may give samples away, or stop a peer.

    Source: SECURITY.md, "What is not".
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
    if training.turn_steps is not None and training.turn_steps * training.batch_size < FEW_TURN_SAMPLES:
        found.append(
            f"a turn is only {_samples(training.turn_steps * training.batch_size)}: what it changes in the weights is "
            "close to a gradient, and gives samples away."
        )
    if len(manifest.peers) == 2:
        found.append("with two peers, each knows exactly what the other's turns changed in the weights.")
    return found


def _samples(count: int) -> str:
    return f"{count} sample{'s' if count > 1 else ''}"
