"""What all processes of a trial of rounds are told. Imports no torch: those that only move bytes start fast."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.crypto.identity import SECRET_BYTES, Identity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.report.bench.cleaning import PREFIX
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_transport


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundJob:
    """One trial of rounds without training, as all processes are told of it.

    Args:
        broker: the relay.
        trial: names the queues; drawn for this run of the benchmark.
        params: float32 numbers in the model.
        peers: how many.
        rounds: how many are counted, 2 or more; one more goes before them.
        folder: for the journals.
        secrets: by index, the identities'; thrown away with the run.
    """

    broker: BrokerAddress
    trial: str
    params: int
    peers: int
    rounds: int
    folder: Path
    secrets: tuple[bytes, ...] = field(repr=False, default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The peers, in the protocol's order."""
        return tuple(f"peer-{index:03}" for index in range(self.peers))

    @property
    def relay_names(self) -> Names:
        """The names of its queues."""
        return Names(prefix=PREFIX, trial=self.trial)

    def identity(self, name: str) -> Identity:
        """Return a peer's identity."""
        return Identity(name=name, secret=Secret(self.secrets[self.names.index(name)]))

    def manifest(self) -> Manifest:
        """Return the manifest; its model is never built."""
        return manifest_from_data(
            {
                "version": 1,
                "name": self.trial,
                "nonce": "00" * 16,
                "protocol": "masked-average",
                "model": {"callable": "ppdl_mq.training.models:mlp"},
                "training": {"loss": "mse", "learning_rate": 0.1, "batch_size": 1, "epochs": 1 + self.rounds},
                "data": {"shape": [1]},
                "averaging": {"evaluate_every": 0},
                "peers": [{"name": name, "keys": self.identity(name).public.keys} for name in self.names],
            }
        )

    def open_transport(self, me: str) -> Transport:
        """Make this package's own adapter, not yet connected."""
        largest = self.manifest().relay.chunk_bytes
        return open_transport(self.broker, trial=self.trial, prefix=PREFIX, peer=me, message_bytes=largest)


def new_secrets(peers: int) -> tuple[bytes, ...]:
    """Draw identities."""
    return tuple(secrets.token_bytes(SECRET_BYTES) for _ in range(peers))
