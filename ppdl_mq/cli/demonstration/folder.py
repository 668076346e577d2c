"""The demonstration's folder: the same files that organisations would write, each for itself."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ppdl_mq.cli.demonstration.datasets import Dataset, Rows, Shares
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import manifest_from_data, read_settings
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.config.toml_text import toml_key, toml_value
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.errors import AlreadyRunning, ConfigError
from ppdl_mq.peer.identity_file import create_identity

SEED: Final = 1  # of shares, weights and orders of samples: a demonstration can be repeated
LEARNING_RATE: Final = 0.1
BATCH_SIZE: Final = 16
EPOCHS: Final = 15
TURNS_PER_EPOCH: Final = 4
ROUNDS_PER_EPOCH: Final = 4  # of masked-average; with skewed shares, longer ones drift apart before they are averaged
_HOLDOUT: Final = 0.1
_BROKER_WAIT_S: Final = 20.0

RELAY_NAME: Final = "relay.sqlite"
OUTPUTS: Final = ("model.safetensors", "report.html", "result.json")
_MARK: Final = ".ppdl-mq-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """One organisation's files.

    Args:
        name: of the peer.
        folder: everything that is its own.
        identity: its keys.
    """

    name: str
    folder: Path
    identity: Identity

    @property
    def settings_path(self) -> Path:
        """Its peer.toml."""
        return self.folder / "peer.toml"

    @property
    def settings(self) -> PeerSettings:
        """What its peer.toml says."""
        return read_settings(self.settings_path)


@contextmanager
def taken(out: Path) -> Iterator[None]:
    """Make the folder ready and hold it; what an earlier demonstration left is removed, and nothing else.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
        AlreadyRunning: another demonstration works in it.
    """
    mark = out / _MARK
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not mark.exists():
            raise ConfigError(
                f"{out} holds files that no demonstration wrote.", hint="Name another folder with --out, or empty it."
            )
        handle = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}.", hint="Name another with --out.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"Another demonstration works in {out}.", hint="Wait for it, or name another folder with --out."
            ) from None
        for path in (out / "peers", out / f"{RELAY_NAME}.d"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (*out.glob(f"{RELAY_NAME}*"), *out.glob("*.toml"), *(out / name for name in OUTPUTS)):
            path.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def write_organisations(
    out: Path, shares: Shares, *, relay: str, password_env: str | None
) -> Mapping[str, Organisation]:
    """Write each organisation's folder: identity.key, data.npz and peer.toml.

    Args:
        out: of the demonstration.
        shares: the samples.
        relay: its URL.
        password_env: environment variable of its password.
    """
    organisations = {}
    for name, rows in shares.private.items():
        folder = out / "peers" / name
        folder.mkdir(parents=True, mode=0o700)
        _write_rows(folder / "data.npz", rows)
        identity = create_identity(folder / "identity.key", name)
        broker = {"url": relay, "password_env": password_env, "wait_s": _BROKER_WAIT_S}
        settings = {
            "identity": "identity.key",
            "state_dir": "state",
            "device": "cpu",
            "mode": "rehearsal",
            "sample_seed": SEED,
            "broker": broker,
            "data": {
                "callable": "ppdl_mq.training.data:npz",
                "arguments": {"path": "data.npz"},
                "holdout": _HOLDOUT,
            },
        }
        organisation = Organisation(name=name, folder=folder, identity=identity)
        organisation.settings_path.write_text(_toml(settings), encoding="utf-8")
        organisations[name] = organisation
    _write_rows(out / "public-test.npz", shares.public)
    return organisations


def write_manifest(
    path: Path,
    dataset: Dataset,
    shares: Shares,
    organisations: Mapping[str, Organisation],
    *,
    protocol: str,
    activation: str,
    epochs: int,
) -> Manifest:
    """Write a trial's manifest and return it."""
    width = shares.public.inputs.shape[1]
    is_masked = protocol == "masked-average"
    mean, std = _constants(dataset, shares.public)
    data: dict[str, Any] = {
        "version": 1,
        "name": f"demo-{protocol}-{secrets.token_hex(4)}",  # nothing of an earlier run at a broker is in its way
        "nonce": secrets.token_hex(16),
        "protocol": protocol,
        "order": "fixed",
        "model": {
            "callable": "ppdl_mq.training.models:mlp",
            "arguments": {
                "inputs": width,
                "hidden": list(dataset.hidden),
                "outputs": len(dataset.classes),
                "activation": activation,
            },
        },
        "training": {
            "loss": "cross-entropy",
            "learning_rate": LEARNING_RATE,
            "schedule": "cosine",  # small steps at the end, so that no organisation has the last word
            "batch_size": BATCH_SIZE,
            "epochs": epochs,
            "turns_per_epoch": ROUNDS_PER_EPOCH if is_masked else TURNS_PER_EPOCH,
            "seed": SEED,
            "threads": 1,
        },
        "data": {
            "shape": [width],
            "classes": len(dataset.classes),
            "standardise": "manifest",
            "mean": mean,
            "std": std,
        },
        "peers": [{"name": each.name, "keys": each.identity.public.keys} for each in organisations.values()],
    }
    if is_masked:
        data["averaging"] = {"weighting": "equal", "evaluate_every": ROUNDS_PER_EPOCH}
    manifest = manifest_from_data(data, source=str(path))
    path.write_text(_toml(data), encoding="utf-8")
    return manifest


def _constants(dataset: Dataset, public: Rows) -> tuple[list[float], list[float]]:
    """Return mean and std of the public rows: pixels share one, measurements have their own."""
    axis = None if dataset.name == "digits" else 0
    mean = np.atleast_1d(public.inputs.mean(axis=axis, dtype=np.float64))
    std = np.atleast_1d(public.inputs.std(axis=axis, dtype=np.float64))
    return [float(value) for value in mean], [float(value) or 1.0 for value in std]


def _write_rows(path: Path, rows: Rows) -> None:
    np.savez(path, x=rows.inputs, y=rows.labels)


def _toml(data: Mapping[str, Any]) -> str:
    """Return a document as TOML: scalars, then tables, then arrays of tables; None is left out."""
    lines = _entries(data)
    for key, value in data.items():
        tables = value if isinstance(value, list) else [value]
        for table in tables:
            if isinstance(table, Mapping):
                head = f"[[{toml_key(key)}]]" if isinstance(value, list) else f"[{toml_key(key)}]"
                inner = {name: item for name, item in table.items() if item is not None}
                lines += ["", head, *(f"{toml_key(name)} = {toml_value(item)}" for name, item in inner.items())]
    return "\n".join(lines) + "\n"


def _entries(data: Mapping[str, Any]) -> list[str]:
    scalars = {key: value for key, value in data.items() if not isinstance(value, Mapping | list) and value is not None}
    return [f"{toml_key(key)} = {toml_value(value)}" for key, value in scalars.items()]
