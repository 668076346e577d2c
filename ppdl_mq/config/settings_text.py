"""The commented peer.toml that `ppdl-mq peer new` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ppdl_mq.config.manifest import MODELS
from ppdl_mq.config.toml_text import toml_key, toml_value


def settings_text(
    *,
    identity: Path,
    state_dir: Path,
    device: str,
    broker: str,
    login: Mapping[str, str],
    declare: bool,
    data: str,
    data_arguments: Mapping[str, Any],
) -> str:
    """Return an organisation's settings, with a comment on every field.

    Args:
        identity: the key file.
        state_dir: folder of the journal.
        device: where to train.
        broker: the relay's URL, without a password.
        login: of `password_env`, `password_file`, `ca_file`, `certificate_file` and `key_file`, those that are set.
        declare: False where an administrator made the queues beforehand.
        data: `module:callable` of the samples.
        data_arguments: its keyword arguments.
    """
    shown = {
        key: f"{key} = {toml_value(login[key])}" if key in login else f"# {key} = {toml_value(example)}"
        for key, example in _LOGIN.items()
    }
    return _TEMPLATE.format(
        identity=toml_value(str(identity)),
        state_dir=toml_value(str(state_dir)),
        device=toml_value(device),
        broker=toml_value(broker),
        **shown,
        declare="# declare = false" if declare else "declare = false",
        models=toml_value([MODELS]),
        data=toml_value(data),
        data_arguments="\n".join(f"{toml_key(key)} = {toml_value(value)}" for key, value in data_arguments.items()),
    )


_LOGIN: Final = {
    "password_env": "BROKER_PASSWORD",
    "password_file": "broker-password",
    "ca_file": "ca.pem",
    "certificate_file": "client.pem",
    "key_file": "client.key",
}
_TEMPLATE: Final = """\
# The settings of one organisation; private, they go to nobody. Relative paths start from this file's folder.

identity = {identity}
# passphrase_env = "PPDL_PASSPHRASE"  # environment variable that holds the identity's passphrase
# passphrase_file = "passphrase"  # or a file of mode 0600 whose first line it is
state_dir = {state_dir}  # the journal of each trial; keep it until the trial has ended
device = {device}  # or "auto", "cpu", "cuda", "cuda:N", "mps"
# What manifests may name as their model: package.module or package.module:callable. Allow only what you have read.
# models = {models}
# mode = "rehearsal"  # allows sample_seed, so that a demonstration can be repeated; "production" otherwise
# sample_seed = 1
# Of masked-average, 0 to 1: how often this peer asks for the shards behind a sum and adds them up again.
# audit_rate = 0.05
# checkpoint_s = 60.0  # seconds between two checkpoints in the middle of a turn; 0 for none

[broker]
# amqp://user@host:port/vhost, amqps://... or embedded:PATH. Never with a password. Several nodes: amqps://user@a,b:5673,c/vhost.
url = {broker}
{password_env}  # environment variable that holds the password
{password_file}  # or a file whose first line it is
# password_keyring = "ppdl-mq"  # or the service under which the keyring holds it, where that library is installed
{ca_file}  # certificates to trust, for amqps
{certificate_file}  # to log in with, where the broker takes it
{key_file}
{declare}  # where an administrator made the queues beforehand
# queue_type = "classic"  # of a queue that this peer makes; "quorum" otherwise
# wait_s = 300.0  # how long to wait for a broker that is not up; without it, a trial that resumes waits for ever

[data]
# Any module:callable that is installed here; the samples never leave this organisation.
callable = {data}
# holdout = 0.2  # share of the rows kept for evaluation

[data.arguments]
{data_arguments}

# Differential privacy of the training rows: docs/PRIVACY.md. It costs accuracy, most where rows are few.
# [privacy]
# epsilon = 8.0  # what this trial may cost at most
# delta = 1e-5  # below 1 / training rows
# clip = 1.0  # the largest norm of one row's gradient
# noise = 1.1  # in units of clip; without it the least that epsilon allows
# unprotected_holdout = false  # whether masked-average may share the figures of the hold-out, which get no noise

# [metrics]
# listen = "127.0.0.1:9464"  # GET /metrics in the form of Prometheus; whoever reaches the port may read it
# private = false  # whether it tells of the own samples, too: how many there are, losses, accuracies
"""
