"""The organisation's own, private settings: peer.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ppdl_mq.config import limits, listening
from ppdl_mq.config.manifest import MODELS, CallablePath, Section

AllowedModel = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*(:[A-Za-z_][A-Za-z0-9_]*)?$",
        max_length=200,
    ),
]


class Broker(Section):
    """Where the relay is and how to log in. The URL carries no password.

    Args:
        url: `amqp://user@host:port/vhost`, `amqps://...` or `embedded:PATH`. Instead of one host there may be the nodes
            of a cluster, `amqps://user@a,b:5673,c/vhost`.
        password_env: name of the environment variable that holds the password.
        password_file: file whose first line is the password.
        password_keyring: name of the service under which the keyring holds the password of the URL's user.
        ca_file: PEM certificates to trust, for amqps.
        certificate_file: PEM client certificate.
        key_file: its private key.
        declare: False where an administrator made the queues beforehand: they are only checked.
        queue_type: what to ask for when declaring; a queue that exists stays of its type.
        wait_s: how long to wait for a broker that does not answer when the peer starts, or leaves, in seconds; without
            it 300, but for ever at the start of a trial that resumes.
    """

    url: str
    password_env: str | None = None
    password_file: Path | None = None
    password_keyring: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    declare: bool = True
    queue_type: Literal["classic", "quorum"] = "quorum"
    wait_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class OwnData(Section):
    """Where the organisation's samples come from; they never leave it.

    Args:
        callable: `module:callable` that returns the samples.
        arguments: its keyword arguments.
        holdout: share of the rows kept for evaluation, unless the callable returns its own hold-out.
    """

    callable: CallablePath
    arguments: dict[str, Any] = Field(default_factory=dict)
    holdout: float = Field(default=0.2, ge=0, lt=1)


class Metrics(Section):
    """Where a running peer shows its metrics, to Prometheus for instance; nowhere by default.

    Args:
        listen: HOST:PORT; whoever reaches it may read them.
        private: whether they tell of the organisation's samples, too: how many there are, losses, accuracies.
    """

    listen: str | None = Field(default=None, pattern=listening.PATTERN, description=listening.FORM)
    private: bool = False


class Privacy(Section):
    """Differential privacy of the organisation's training rows, which it applies by itself. See docs/PRIVACY.md.

    Args:
        epsilon: what one trial may cost at most.
        delta: the probability with which the bound may fail; below 1 / training rows.
        clip: the largest L2 norm of one row's gradient; larger ones are shortened to it.
        noise: standard deviation of the noise in units of `clip`; without it the least that `epsilon` allows.
        unprotected_holdout: says that the figures of the hold-out, which masked-average shares without noise, may be.
    """

    epsilon: float = Field(gt=0, le=100, allow_inf_nan=False)
    delta: float = Field(ge=1e-9, lt=0.1, allow_inf_nan=False)
    clip: float = Field(default=1.0, ge=1e-9, le=1e9, allow_inf_nan=False)
    noise: float | None = Field(default=None, ge=limits.LEAST_NOISE, le=limits.MOST_NOISE, allow_inf_nan=False)
    unprotected_holdout: bool = False


class PeerSettings(Section):
    """One organisation's settings. Relative paths are relative to the file.

    Args:
        identity: the key file.
        passphrase_env: name of the environment variable that holds its passphrase, if it has one.
        passphrase_file: file whose first line is the passphrase.
        state_dir: folder of the journal; one for each trial is made in it.
        device: where to train.
        models: what a manifest, which others write, may name as its model: `package.module` for whatever is defined in
            exactly that module, or `package.module:callable` for that one.
        mode: `rehearsal` allows `sample_seed`; nothing else differs.
        sample_seed: fixes the private order of samples, so that a demonstration can be repeated.
        audit_rate: in masked-average, how often this peer asks for the shards behind a sum and adds them up again: 0
            for never, 1 for every sum.
        checkpoint_s: seconds between two checkpoints of a turn that is being trained; 0 for none at all.
        broker: the relay.
        data: the samples.
        privacy: differential privacy; without it there is none.
        metrics: what a monitor may see.
    """

    identity: Path
    passphrase_env: str | None = None
    passphrase_file: Path | None = None
    state_dir: Path
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$",
        description="auto, cpu, cuda, cuda:N or mps",
    )
    models: tuple[AllowedModel, ...] = Field(
        default=(MODELS,), description="a list of package.module or package.module:callable, such as company.models"
    )
    mode: Literal["production", "rehearsal"] = "production"
    sample_seed: int | None = Field(default=None, ge=0, lt=2**63)
    audit_rate: float = Field(default=0.05, ge=0, le=1, allow_inf_nan=False)
    checkpoint_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    broker: Broker
    data: OwnData
    privacy: Privacy | None = None
    metrics: Metrics = Field(default_factory=Metrics)
