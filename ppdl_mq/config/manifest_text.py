"""The commented manifest that `ppdl-mq trial new` writes, and the two changes the program makes to one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ppdl_mq.config.manifest import MODELS, Manifest
from ppdl_mq.config.reading import manifest_from_text
from ppdl_mq.config.toml_text import toml_key, toml_value
from ppdl_mq.errors import ManifestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What `trial new` fills in.

    Args:
        model: `module:callable`.
        arguments: of the model.
        loss: of the training.
        learning_rate: of plain SGD.
        batch_size: samples a step.
        epochs: of the trial.
        shape: of one sample.
        classes: or None for regression.
        standardise: `none`, `manifest` or `own`.
        mean: of the features, for `manifest`.
        std: of the features, for `manifest`.
    """

    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "cross-entropy"
    learning_rate: float = 0.1
    batch_size: int = 32
    epochs: int = 10
    shape: tuple[int, ...] = (1,)
    classes: int | None = 2
    standardise: str = "none"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


PRESETS: Final[Mapping[str, Preset]] = {
    "blank": Preset(
        model=f"{MODELS}:mlp", arguments={"inputs": 4, "hidden": [16], "outputs": 2}, shape=(4,), standardise="own"
    ),
    "heart": Preset(
        # The same as peers/heart/heart.toml: constants in the manifest, since scaling at each hospital would hide in
        # what the hospitals differ.
        model=f"{MODELS}:mlp",
        arguments={"inputs": 10, "hidden": [16], "outputs": 1, "activation": "relu"},
        loss="binary-cross-entropy",
        learning_rate=0.05,
        batch_size=16,
        epochs=40,
        shape=(10,),
        standardise="manifest",
        mean=(54.0, 0.7, 3.2, 132.0, 220.0, 0.15, 0.6, 138.0, 0.4, 0.9),
        std=(9.0, 0.5, 1.0, 19.0, 90.0, 0.35, 0.8, 26.0, 0.5, 1.1),
    ),
    "digits": Preset(
        model=f"{MODELS}:mlp",
        arguments={"inputs": 64, "hidden": [64], "outputs": 10, "activation": "relu"},
        shape=(64,),
        classes=10,
        standardise="manifest",
        mean=(4.88,),
        std=(6.02,),
    ),
    "mnist": Preset(
        model=f"{MODELS}:small_cnn",
        arguments={"channels": 1, "size": 28, "outputs": 10, "activation": "relu"},
        learning_rate=0.05,
        batch_size=64,
        epochs=5,
        shape=(1, 28, 28),
        classes=10,
        standardise="manifest",
        mean=(0.1307,),
        std=(0.3081,),
    ),
}


def manifest_text(
    preset: Preset,
    *,
    name: str,
    nonce: str,
    protocol: str,
    order: str,
    turns_per_epoch: int,
    turn_steps: int | None,
    weighting: str = "equal",
) -> str:
    """Return a manifest without peers, with a comment on every field.

    Args:
        preset: the model, its training and the shape of the data.
        name: of the trial.
        nonce: 32 fresh random hex digits.
        protocol: how the weights move.
        order: of the peers.
        turns_per_epoch: of each peer.
        turn_steps: batches in a turn, or None for the peer's share of its epoch.
        weighting: of masked-average; of no use in another protocol.
    """
    values = {key: toml_value(value) for key, value in [*_fields(preset), ("name", name), ("nonce", nonce)]}
    values |= {"protocol": toml_value(protocol), "order": toml_value(order), "turns_per_epoch": str(turns_per_epoch)}
    values["arguments"] = "\n".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in preset.arguments.items())
    values["classes"] = f"classes = {preset.classes}" if preset.classes is not None else "# classes = 2"
    values["mean"] = f"mean = {toml_value(preset.mean)}" if preset.mean else "# mean = [0.0]"
    values["std"] = f"std = {toml_value(preset.std)}" if preset.std else "# std = [1.0]"
    values["turn_steps"] = f"turn_steps = {turn_steps}" if turn_steps is not None else "# turn_steps = 8"
    values["averaging"] = ""
    if protocol == "masked-average":
        word = 64 if weighting == "secret" else 32
        values["averaging"] = _AVERAGING.format(weighting=toml_value(weighting), word=word)
    return _TEMPLATE.format_map(values)


def with_peer(text: str, *, name: str, keys: str, comment: str, source: str, samples: int | None = None) -> str:
    """Return the text with one more peer at its end; every comment stays.

    Args:
        text: of a manifest, or of a draft.
        name: of the peer.
        keys: its pinned public keys.
        comment: for people, beside it.
        source: names the text in errors.
        samples: how many it declares, or None.

    Raises:
        ManifestError: the text is not a manifest, or that peer cannot be added to it.
    """
    before = manifest_from_text(text, source=source, complete=False)
    entry = f"[[peers]]  # {comment}\nname = {toml_value(name)}\nkeys = {toml_value(keys)}\n"
    entry += "" if samples is None else f"samples = {samples}\n"
    try:
        changed = f"{text.rstrip()}\n\n{entry}"
        after = manifest_from_text(changed, source=source, complete=False)
    except ManifestError as fault:
        raise ManifestError(f"{fault.message.removesuffix('.')}; {name} was not added.", hint=fault.hint) from None
    added = [peer for peer in after.peers if peer not in before.peers]
    same = _without(before, "peers") == _without(after, "peers")
    if not same or [(peer.name, peer.keys, peer.samples) for peer in added] != [(name, keys, samples)]:
        raise ManifestError(
            f"{source}: {name} cannot be added at its end.", hint="Write each peer as a [[peers]] table, these last."
        )
    return changed


def with_nonce(text: str, nonce: str, *, source: str) -> str:
    """Return the text with another nonce, and so of another trial; every comment stays.

    Raises:
        ManifestError: the text is not a manifest, or its nonce is not on a line of its own.
    """
    before = manifest_from_text(text, source=source, complete=False)
    changed = re.sub(rf"(?m)^(\s*nonce\s*=\s*[\"']){before.nonce}(?=[\"'])", rf"\g<1>{nonce}", text)
    after = manifest_from_text(changed, source=source, complete=False)
    if after.nonce == nonce and _without(before, "nonce") == _without(after, "nonce"):
        return changed
    raise ManifestError(f"{source}: the nonce was not found.", hint=f'Set it by hand: nonce = "{nonce}"')


def _without(manifest: Manifest, name: str) -> dict[str, Any]:
    return {key: value for key, value in manifest.as_data().items() if key != name}


def _fields(preset: Preset) -> list[tuple[str, Any]]:
    names = ("model", "loss", "learning_rate", "batch_size", "epochs", "shape", "standardise")
    return [(name, getattr(preset, name)) for name in names]


_TEMPLATE: Final = """\
# The manifest of a trial: what the organisations agree on. Everyone runs it with this file, unchanged.
# `ppdl-mq trial check FILE` validates it and prints the trial's id; compare the ids before you start.

version = 1
name = {name}  # names the queues at the relay
nonce = {nonce}  # makes every run a trial of its own: `ppdl-mq trial renew FILE` before a rerun

# "server-aided": one copy of the weights rests, sealed, at the relay; every peer can read it in its turn.
# "fully-connected": the weights go sealed to the next peer only.
# "masked-average": all peers train at once and learn the average of their weights, never one peer's; see [averaging].
protocol = {protocol}
# Of the peers in an epoch: "fixed" (sorted by name) or "shuffled" anew each epoch; masked-average has none to shuffle.
order = {order}

[model]
# Any module:callable that returns a torch.nn.Module and that every peer has installed and allows in its peer.toml.
callable = {model}

[model.arguments]
{arguments}

[training]
loss = {loss}  # one of "cross-entropy", "binary-cross-entropy" (one logit), "mse"
learning_rate = {learning_rate}  # of plain SGD
momentum = 0.0  # starts anew in each turn; never travels
weight_decay = 0.0
schedule = "constant"  # of the learning rate, by epoch: or "step", "cosine"
# schedule_factor = 0.1  # "step": times this ...
# schedule_every = 10  # ... every so many epochs
batch_size = {batch_size}
epochs = {epochs}
# Shorter turns come nearer to SGD on shuffled, pooled data, and send more. A turn is the peer's share of its epoch:
# its batches cut into turns_per_epoch runs; or so many batches; or so many passes over its data.
turns_per_epoch = {turns_per_epoch}
{turn_steps}
# turn_epochs = 1  # needs turns_per_epoch = 1
seed = 1  # of the initial weights; public
threads = 1  # CPU threads; equal results need equal threads

[data]
shape = {shape}  # of one sample
{classes}  # leave it out for regression
# "none"; "manifest": with the mean and std below; "own": each peer with those of its own training rows.
standardise = {standardise}
{mean}  # one number for each feature, or one for all
{std}

[relay]
prefix = "ppdl"  # first word of every queue's name
chunk_bytes = 900000  # largest message handed to the relay
{averaging}
# The peers follow, two or more. Each organisation sends the output of `ppdl-mq identity show`, and
# `ppdl-mq trial add-peer FILE LINE` pins it here.
"""

_AVERAGING: Final = """
[averaging]
# Whose weights count how much. "equal"; "declared": by the `samples` of each peer below; "secret": by each peer's own
# count, which travels inside the sum.
weighting = {weighting}
word = {word}  # bits of a number in the sum; where one does not fit 32, the round is done in 64; "secret" needs 64
exponent_floor = -2  # weights are taken to be at least as large as 2 to this ...
head_room = 3  # ... and may grow by 2 to this in a round before 32 bits do not hold them
on_absent = "wait"  # for a peer: or "abort": give up; "drop": go on without it, unasked, which costs secrecy
absent_after_s = 86400.0  # "abort", "drop": after so long, in seconds, the relay being there
min_peers = 2  # with fewer the trial ends early
evaluate_every = 1  # rounds between evaluations over all hold-outs, and the last round; 0: never
# stop_at_accuracy = 0.95  # end early once the accuracy is reached ...
# stop_at_loss = 0.1  # ... or the loss is as low ...
# stop_patience = 5  # ... or after so many evaluations without a lower loss
"""
