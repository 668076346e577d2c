"""The manifest: the file that says what the organisations of a trial agreed on."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ppdl_mq.config import limits

# The program's own models, which every organisation has and no setting needs to allow.
MODELS: Final = "ppdl_mq.training.models"

# A description completes the sentence "FIELD must be ..." when the pattern does not hold.
Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,31}$",
        description="1 to 32 of a-z, 0-9 and '-', beginning with a letter or digit",
    ),
]
CallablePath = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$",
        max_length=200,
        description="of the form module:callable, such as company.models:network",
    ),
]
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="32 hex digits in lower case")]
PeerKeys = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_-]{86}$", description="86 characters of base64url, as `ppdl-mq identity show` prints"),
]


class Section(BaseModel):
    """A table of a configuration file: frozen, strict, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Model(Section):
    """Which network is trained. The callable must be installed at each peer; no code ever travels.

    Args:
        callable: `module:callable` that returns a `torch.nn.Module`.
        arguments: its keyword arguments.
    """

    callable: CallablePath
    arguments: dict[str, Any] = Field(default_factory=dict)


class Training(Section):
    """How every peer trains in its turn.

    Args:
        loss: which loss; `binary-cross-entropy` takes one logit a sample.
        learning_rate: of plain SGD, at epoch 0.
        momentum: kept within a turn, starting anew at each; never travels.
        weight_decay: L2 penalty of SGD.
        schedule: how the learning rate follows the epoch; it depends on nothing else.
        schedule_factor: `step`: multiply by this ...
        schedule_every: ... after this many epochs.
        batch_size: samples a step; the last, short batch of an epoch is kept.
        epochs: how many epochs the trial has.
        turns_per_epoch: how often each peer's turn comes in one epoch.
        turn_epochs: a turn is so many passes over the peer's own data; needs turns_per_epoch = 1.
        turn_steps: a turn is so many batches from the peer's own endless stream of batches. With neither, a turn is
            the peer's share of its epoch: its batches, cut into turns_per_epoch near-equal runs.
        seed: initial weights; public.
        threads: CPU threads of the training; part of what bit-identical means.
    """

    loss: Literal["cross-entropy", "binary-cross-entropy", "mse"] = "cross-entropy"
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "step", "cosine"] = "constant"
    schedule_factor: float = Field(default=0.1, gt=0, le=1)
    schedule_every: int = Field(default=10, ge=1, le=limits.MAX_EPOCHS)
    batch_size: int = Field(ge=1, le=limits.MAX_BATCH)
    epochs: int = Field(ge=1, le=limits.MAX_EPOCHS)
    turns_per_epoch: int = Field(default=1, ge=1, le=limits.MAX_TURNS_PER_EPOCH)
    turn_epochs: int | None = Field(default=None, ge=1, le=limits.MAX_EPOCHS)
    turn_steps: int | None = Field(default=None, ge=1, le=limits.MAX_TURN_STEPS)
    seed: int = Field(default=1, ge=0, lt=2**63)
    threads: int = Field(default=1, ge=1, le=256)


class Data(Section):
    """What every peer's samples look like.

    Args:
        shape: shape of one input sample, without the batch.
        classes: number of classes, or None for regression.
        standardise: `none`; `manifest`: with the mean and std below, the same for everyone; `own`: each peer with the
            mean and std of its own training rows (they never travel, and peers scale differently).
        mean: one for each feature, or one for all.
        std: one for each feature, or one for all.
    """

    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, max_length=limits.MAX_SHAPE_DIMENSIONS)
    classes: int | None = Field(default=None, ge=2, le=limits.MAX_CLASSES)
    standardise: Literal["none", "manifest", "own"] = "none"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class Relay(Section):
    """What the peers must agree on about the relay.

    Args:
        prefix: first word of every exchange and queue name.
        chunk_bytes: largest message handed to the relay, header and seal included.
    """

    prefix: Name = "ppdl"
    chunk_bytes: int = Field(default=limits.USUAL_CHUNK_BYTES, ge=limits.MIN_CHUNK_BYTES, le=limits.MAX_CHUNK_BYTES)


class Averaging(Section):
    """The rules of masked-average.

    Args:
        weighting: whose weights count how much. `equal`; `declared`: by the samples that the manifest names for each
            peer; `secret`: by counts that travel inside the sum, and that nobody learns.
        word: bits of a ring word to begin with; a value that does not fit 32 starts an attempt with 64. `secret` needs
            64, and has it by default.
        exponent_floor: weights are taken to be at least as large as 2 to this, whatever they are ...
        head_room: ... and may grow by 2 to this in one round before 32 bits do not hold them.
        on_absent: what happens when a peer has been waited for `absent_after_s`: nothing; this peer gives up; it goes
            on without the absent one, unasked.
        absent_after_s: seconds in which the peer that waits had a connection to the relay.
        min_peers: with fewer the trial ends early.
        evaluate_every: rounds between evaluations over all hold-outs; 0 for none. The last round has one, then.
        stop_at_accuracy: end early once it is reached.
        stop_at_loss: end early once the loss is as low.
        stop_patience: end early after so many evaluations without a lower loss.
    """

    weighting: Literal["equal", "declared", "secret"] = "equal"
    word: Literal[32, 64] = Field(default_factory=lambda data: 64 if data.get("weighting") == "secret" else 32)
    exponent_floor: int = Field(default=-2, ge=-100, le=100)
    head_room: int = Field(default=3, ge=0, le=20)
    on_absent: Literal["wait", "abort", "drop"] = "wait"
    absent_after_s: float = Field(default=86_400.0, gt=0, allow_inf_nan=False)
    min_peers: int = Field(default=2, ge=2, le=limits.MAX_PEERS)
    evaluate_every: int = Field(default=1, ge=0, le=limits.MAX_TURNS)
    stop_at_accuracy: float | None = Field(default=None, gt=0, le=1)
    stop_at_loss: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    stop_patience: int | None = Field(default=None, ge=1, le=limits.MAX_TURNS)


class Peer(Section):
    """One organisation, pinned by its public keys.

    Args:
        name: unique in the trial; peers sort by it.
        keys: 86 characters of base64url: Ed25519 public key (32 bytes), then X25519 public key (32 bytes).
        samples: how many it declares, where the weighting goes by that.
    """

    name: Name
    keys: PeerKeys
    samples: int | None = Field(default=None, ge=1, le=limits.MAX_DECLARED_SAMPLES)


class Manifest(Section):
    """What the organisations of a trial agreed on. The hash of its canonical form is the trial's id.

    Args:
        version: of this format.
        name: of the trial; names its queues.
        nonce: 16 random bytes in hex, so that the same text run twice is two trials.
        protocol: how the weights move.
        order: of the peers: sorted by name, or shuffled anew in each epoch by a public rule.
        averaging: the rules of masked-average; only there, and filled in with its defaults.
    """

    version: Literal[1]
    name: Name
    nonce: Nonce
    protocol: Literal["server-aided", "fully-connected", "masked-average"]
    order: Literal["fixed", "shuffled"] = "fixed"
    model: Model
    training: Training
    data: Data
    relay: Relay = Relay()
    # The data are what is valid so far: nothing of the protocol, where that is not.
    averaging: Averaging | None = Field(
        default_factory=lambda data: Averaging() if data.get("protocol") == "masked-average" else None
    )
    peers: tuple[Peer, ...] = Field(default=(), max_length=limits.MAX_PEERS)

    @property
    def peer_names(self) -> tuple[str, ...]:
        """The names of the peers, sorted."""
        return tuple(sorted(peer.name for peer in self.peers))

    @property
    def shares_weights(self) -> bool:
        """Whether one copy of the weights rests at the relay, for all peers to read."""
        return self.protocol == "server-aided"

    def as_data(self) -> dict[str, Any]:
        """Return the whole manifest, defaults filled in, peers sorted by name, as plain dicts, lists and scalars."""
        data = self.model_dump(mode="python")
        data["peers"] = sorted(data["peers"], key=lambda peer: peer["name"])
        # What a protocol does not have is not in its trials' ids.
        if data["averaging"] is None:
            del data["averaging"]
        for peer in data["peers"]:
            if peer["samples"] is None:
                del peer["samples"]
        return data
