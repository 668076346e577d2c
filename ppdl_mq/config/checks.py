"""What must hold between the fields of a manifest; pydantic has checked each one by itself."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Iterator

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Averaging, Data, Manifest, Peer, Training

Fault = tuple[str, str]  # a sentence and a hint

RESERVED_NAMES = frozenset({"weights"})  # the address of the queue that holds the current weights


def fault_of(manifest: Manifest, *, complete: bool) -> Fault | None:
    """Return the first thing that does not hold, or None.

    Args:
        manifest: with every field valid by itself.
        complete: False for a draft, which may have fewer than two peers.
    """
    faults = [*_training(manifest.training), *_data(manifest.data, manifest.training), *_peers(manifest.peers)]
    faults += _masked_average(manifest, complete=complete)
    if complete and len(manifest.peers) < 2:
        faults.append(("peers must be at least 2.", "Pin each organisation with `ppdl-mq trial add-peer FILE LINE`."))
    turns = manifest.training.epochs * manifest.training.turns_per_epoch * max(1, len(manifest.peers))
    if turns > limits.MAX_TURNS:
        faults.append(
            (
                f"training.epochs times training.turns_per_epoch times the number of peers is {turns} turns, "
                f"over the limit of {limits.MAX_TURNS}.",
                "Make one of them smaller.",
            )
        )
    return faults[0] if faults else None


def _training(training: Training) -> Iterator[Fault]:
    if training.turn_epochs is not None and training.turn_steps is not None:
        yield "training.turn_epochs and training.turn_steps exclude each other.", "Remove one of them."
    if training.turn_epochs is not None and training.turns_per_epoch > 1:
        yield (
            "training.turn_epochs needs training.turns_per_epoch = 1.",
            "For several short turns in an epoch use training.turn_steps, or neither.",
        )


def _data(data: Data, training: Training) -> Iterator[Fault]:
    values = math.prod(data.shape)
    if values > limits.MAX_SAMPLE_VALUES:
        yield f"data.shape has {values} numbers in a sample, over the limit of {limits.MAX_SAMPLE_VALUES}.", ""
        return
    if training.loss == "cross-entropy" and data.classes is None:
        yield "data.classes is missing, and the loss cross-entropy needs it.", 'For regression, set loss = "mse".'
    if training.loss == "binary-cross-entropy" and data.classes != 2:
        yield "data.classes must be 2 for the loss binary-cross-entropy.", "More classes need cross-entropy."
    if training.loss == "mse" and data.classes is not None:
        yield "data.classes has no meaning for the loss mse.", "Remove it, or set another loss."
    for name, constants in (("mean", data.mean), ("std", data.std)):
        if data.standardise != "manifest":
            if constants:
                yield f'data.{name} is used with standardise = "manifest" only.', f"Remove {name}, or set standardise."
        elif len(constants) not in (1, values):
            yield f"data.{name} must have 1 number or {values}, one for each feature, not {len(constants)}.", ""
        elif not all(map(math.isfinite, constants)):
            yield f"data.{name} must be finite numbers.", ""
    if any(constant <= 0 for constant in data.std):
        yield "data.std must be above 0.", "A feature that never varies can have std 1."


def _peers(peers: tuple[Peer, ...]) -> Iterator[Fault]:
    for peer in peers:
        if peer.name in RESERVED_NAMES:
            yield f"peers.{peer.name}: this name is reserved for a queue.", "Choose another name."
        if _unpadded(base64.urlsafe_b64decode(peer.keys + "==")) != peer.keys:
            yield f"peers.{peer.name}.keys is not in its one encoding.", "Copy it again from that peer's public line."
    parts: tuple[Callable[[Peer], object], ...] = (
        lambda peer: base64.urlsafe_b64decode(peer.keys + "==")[:32],
        lambda peer: base64.urlsafe_b64decode(peer.keys + "==")[32:],
    )
    for name, count in Counter(peer.name for peer in peers).items():
        if count > 1:
            yield f"peers.{name} stands there {count} times.", "Every peer has a name of its own."
    for part in parts:
        first: dict[object, str] = {}
        for peer in peers:
            other = first.setdefault(part(peer), peer.name)
            if other != peer.name:
                yield f"peers.{peer.name}.keys are those of {other}.", "Every peer has an identity of its own."


def _masked_average(manifest: Manifest, *, complete: bool) -> Iterator[Fault]:
    """Yield what does not hold of the rules of masked-average, or of their place in another protocol."""
    rules = manifest.averaging
    if manifest.protocol != "masked-average":
        if rules is not None:
            yield (
                f"averaging has no meaning in the protocol {manifest.protocol}.",
                'Remove the section, or set protocol = "masked-average".',
            )
        yield from _samples(manifest.peers, declared=False)
        return
    assert rules is not None, "filled in where it is missing"
    if manifest.order != "fixed":
        yield 'order must be "fixed" in masked-average.', "All peers train at once: there is no order to shuffle."
    yield from _samples(manifest.peers, declared=rules.weighting == "declared")
    if rules.weighting == "secret" and rules.word != 64:
        yield (
            "averaging.word must be 64 for the weighting secret.",
            "Leave word out: products of weights and counts do not fit 32 bits.",
        )
    if complete and rules.min_peers > len(manifest.peers) >= 2:
        yield (
            f"averaging.min_peers is {rules.min_peers}, and the trial has only {len(manifest.peers)} peers.",
            "Lower it, or pin more peers.",
        )
    yield from _early_end(rules, manifest.training)


def _samples(peers: tuple[Peer, ...], *, declared: bool) -> Iterator[Fault]:
    for peer in peers:
        if declared and peer.samples is None:
            yield (
                f"peers.{peer.name}.samples is missing, and the weighting declared needs it.",
                "`ppdl-mq trial add-peer FILE LINE --samples N` pins a peer with it.",
            )
        if not declared and peer.samples is not None:
            yield (
                f"peers.{peer.name}.samples is used in masked-average with the weighting declared only.",
                'Remove it, or set weighting = "declared" under [averaging].',
            )


def _early_end(rules: Averaging, training: Training) -> Iterator[Fault]:
    for field in ("stop_at_accuracy", "stop_at_loss", "stop_patience"):
        if getattr(rules, field) is not None and not rules.evaluate_every:
            yield f"averaging.{field} needs evaluate_every above 0.", "Nothing is measured without."
    if rules.stop_at_accuracy is not None and training.loss == "mse":
        yield "averaging.stop_at_accuracy has no meaning for the loss mse.", "Use stop_at_loss."


def _unpadded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
