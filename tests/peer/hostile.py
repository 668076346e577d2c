"""A trial with a hostile relay that holds the peers' keys, so that it can also play a corrupt one among them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.statements import turn_statement
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.envelope import Opened, body_bytes, open_part, read_body, seal_parts
from ppdl_mq.wire.header import NO_SESSION, Header, split_part, stride_for
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import FinalWeights, Lineage, Statement, TurnWeights
from ppdl_mq.wire.trial_id import trial_id
from tests.trial import TrialInProcess, identity_of


class HostileTrial:
    """A relay that tampers, in a trial whose peers' secrets it may use: it stands for the corrupt ones among them.

    Args:
        manifest: of the trial.
        folder: of the peers' journals.
        transport: how each peer reaches the relay.
        patience_s: how long a peer waits before it asks again.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        *,
        transport: Callable[[MemoryRelay], MemoryTransport] = MemoryTransport,
        patience_s: float = 0.1,
    ) -> None:
        self.relay = MemoryRelay()
        self._ids = itertools.count(1)  # of messages that nobody here sent
        self.trial = TrialInProcess(manifest, folder, lambda _: transport(self.relay), patience_s=patience_s)

    def key(self, header: Header) -> Any:
        """What seals a message of this header, as its sender knows it at this moment."""
        sender = self.trial.runners[header.sender]
        return Keyring(sender.terms, identity_of(header.sender)).key(sender.state, header)

    def opened(self, part: bytes) -> tuple[Opened, bytes]:
        """Return a message of one part, and its weights."""
        header, _, _ = split_part(part)
        assert header.parts == 1
        body = open_part(self.key(header), part)
        opened = read_body(header, memoryview(body), identity_of(header.sender).public)
        return opened, body[opened.blob_offset : opened.blob_offset + opened.blob_bytes]

    def sealed(self, header: Header, message: Any, *, key: Any = None, blob: bytes = b"") -> bytes:
        """A message of one part, signed by whom its header names, under a message id of its own."""
        header = dataclasses.replace(
            header, message_id=next(self._ids).to_bytes(16, "big"), body_bytes=body_bytes(message, len(blob))
        )
        sign = identity_of(header.sender).sign
        (part,) = seal_parts(header, message, key or self.key(header), sign, blob=memoryview(blob))
        return part

    def from_bert(self, kind: Kind, **changes: Any) -> Header:
        fields: dict[str, Any] = {
            "kind": kind,
            "trial_id": trial_id(self.trial.manifest),
            "session_id": NO_SESSION,
            "message_id": bytes(16),
            "turn": 0,
            "body_bytes": 100,
            "stride": stride_for(self.trial.manifest.relay.chunk_bytes, "bert", "anna"),
            "sender": "bert",
            "recipient": "anna",
        }
        return Header(**fields | changes)

    def second_version(self, part: bytes, value: float) -> bytes:
        """The same turn with other weights, which its maker states and signs as well: only their values tell."""
        opened, weights = self.opened(part)
        header, message = opened.header, opened.message
        assert isinstance(message, TurnWeights | FinalWeights)
        weights = struct.pack("<f", value) + weights[4:]
        digest = hashlib.sha256(weights).digest()
        *earlier, _ = message.lineage.chain
        before = earlier[-1].digest if earlier else message.lineage.anchor
        signature = identity_of(header.sender).sign(turn_statement(header.session_id, header.turn, before, digest))
        lineage = Lineage(
            anchor=message.lineage.anchor, chain=(*earlier, Statement(digest=digest, signature=signature))
        )
        return self.sealed(header, type(message)(lineage=lineage), blob=weights)

    def result(self) -> bytes:
        """Run the trial; return the model, which all peers share."""
        self.trial.run()
        (model,) = {self.trial.model(name) for name in self.trial.manifest.peer_names}
        return model

    def refused(self, name: str) -> list[str]:
        """What a peer refused, and why, in order."""
        with closing(sqlite3.connect(self.trial.folder / name / "journal.sqlite")) as journal:
            return [reason for (reason,) in journal.execute("SELECT reason FROM refused ORDER BY id")]

    def status(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.trial.folder / name / "status.json").read_text()))

    @contextmanager
    def running(self) -> Iterator[dict[str, threading.Thread]]:
        """Start every peer; stop those that still run at the end."""
        threads = {thread.name: thread for thread in self.trial.start()}
        try:
            yield threads
        finally:
            for runner in self.trial.runners.values():
                runner.stop()
            for thread in threads.values():
                thread.join(10)


def is_from(sender: str, kind: Kind, part: bytes) -> bool:
    header, _, _ = split_part(part)
    return (header.sender, header.kind) == (sender, kind)
