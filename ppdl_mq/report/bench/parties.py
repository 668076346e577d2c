"""Two peers with a session agreed, as the transfer of one set of weights finds them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.crypto.agreement import public_half, session_pair_key
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import PairKeys, SessionKey
from ppdl_mq.protocol.state import State
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.transport.address import WEIGHTS, Names
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_transport
from ppdl_mq.wire.messages import Lineage, Statement, TurnWeights
from ppdl_mq.wire.meta import DIGEST_BYTES, SIGNATURE_BYTES

SENDER: Final = "anna"
RECEIVER: Final = "bert"
ADDRESSES: Final = (SENDER, RECEIVER, WEIGHTS)
TURN: Final = 1  # the sender's, by the manifest below
_STATEMENT: Final = Statement(digest=bytes(DIGEST_BYTES), signature=bytes(SIGNATURE_BYTES))
MESSAGE: Final = TurnWeights(lineage=Lineage(anchor=bytes(DIGEST_BYTES), chain=(_STATEMENT,)))
_PREFIX: Final = "ppdl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One transfer, as both processes are told of it.

    Args:
        broker: the relay.
        trial: names the queues; drawn for this run of the benchmark.
        way: a key of `transfer.WAYS`.
        size_bytes: of the weights.
        folder: for the journals.
        secrets: by peer, the identity's 64 bytes and then the session's 32; thrown away with the run.
        session_id: 32 bytes.
    """

    broker: BrokerAddress
    trial: str
    way: str
    size_bytes: int
    folder: Path
    secrets: dict[str, bytes] = field(repr=False, default_factory=lambda: _drawn(96))
    session_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def names(self) -> Names:
        """The names of its queues."""
        return Names(prefix=_PREFIX, trial=self.trial)

    @property
    def chunk_bytes(self) -> int:
        """The manifest's default."""
        return self.manifest().relay.chunk_bytes

    def open_transport(self, me: str) -> Transport:
        """Make this package's own adapter, not yet connected."""
        return open_transport(self.broker, trial=self.trial, prefix=_PREFIX, peer=me, message_bytes=self.chunk_bytes)

    def identity(self, name: str) -> Identity:
        """Return a peer's identity."""
        return Identity(name=name, secret=Secret(self.secrets[name][:64]))

    def manifest(self) -> Manifest:
        """Return a manifest of one epoch; its model is never built."""
        return manifest_from_data(
            {
                "version": 1,
                "name": self.trial,
                "nonce": self.session_id[:16].hex(),
                "protocol": "server-aided" if self.way == "server-aided" else "fully-connected",
                "model": {"callable": "ppdl_mq.training.models:mlp"},
                "training": {"loss": "mse", "learning_rate": 0.1, "batch_size": 1, "epochs": 1},
                "data": {"shape": [1]},
                "peers": [{"name": name, "keys": self.identity(name).public.keys} for name in (SENDER, RECEIVER)],
            }
        )

    def terms(self, me: str) -> Terms:
        """Return the terms from one peer's point of view."""
        return Terms.of(self.manifest(), self.identity(me), layout=bytes(32), software="ppdl-mq bench")

    def state(self, me: str) -> State:
        """Return where a peer stands once the session is agreed."""
        session = {name: Secret(drawn[64:]) for name, drawn in self.secrets.items()}
        keys = {name: SessionKey(key=public_half(secret), signature=bytes(64)) for name, secret in session.items()}
        (other,) = {SENDER, RECEIVER} - {me}

        def key(sender: str, recipient: str) -> Secret:
            return session_pair_key(
                session[me], keys[other].key, session_id=self.session_id, sender=sender, recipient=recipient
            )

        pair = PairKeys(towards=key(me, other), back=key(other, me))
        return State(
            phase=Phase.FETCHING,
            pair_keys=MappingProxyType({other: pair}),
            session_keys=MappingProxyType(keys),
            contributions=MappingProxyType(session),
            session_id=self.session_id,
        )


def _drawn(size_bytes: int) -> dict[str, bytes]:
    return {name: secrets.token_bytes(size_bytes) for name in (SENDER, RECEIVER)}
