"""How much of a trial waits at its relay, where its model is the program's own or its size is given."""

from __future__ import annotations

from ppdl_mq.config.manifest import MODELS, Manifest
from ppdl_mq.report.relay_plan.sizes import Sizes, sizes_of


def sizes_known(manifest: Manifest, weights_bytes: int | None = None) -> Sizes | None:
    """Build the model where it is the program's own; others' code is not run for this.

    Args:
        manifest: of the trial.
        weights_bytes: of a model that is not; or None.

    Returns:
        None where the model is another's and its size is not given.
    """
    if weights_bytes is not None:
        # One word for each number of four bytes, as nearly all models have.
        words = -(-weights_bytes // 4) if manifest.averaging is not None else 0
        return sizes_of(manifest, weights_bytes=weights_bytes, vector_words=words)
    if manifest.model.callable.partition(":")[0] != MODELS:
        return None
    # Imported here, because torch takes seconds.
    from ppdl_mq.numeric.flatten import Layout
    from ppdl_mq.peer.protocols import vector_words
    from ppdl_mq.training.plugin import build_model, check_allowed

    check_allowed(manifest.model.callable, (MODELS,))
    layout = Layout.of(build_model(manifest.model, manifest.training))
    return sizes_of(manifest, weights_bytes=layout.total_bytes, vector_words=vector_words(manifest, layout))
