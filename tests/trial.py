"""A whole trial in one process, for tests: real identities, journals, workers and runners, one thread a peer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.settings import Privacy
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.progress import STATUS_NAME
from ppdl_mq.peer.protocols import vector_words
from ppdl_mq.peer.runner import Runner
from ppdl_mq.peer.spending import Spending
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.training.data.samples import Samples, Split
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.saving import load_model
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.base import Transport
from ppdl_mq.wire.trial_id import trial_id
from tests.people import PEERS as PEERS
from tests.people import identity_of as identity_of
from tests.people import manifest_for as manifest_for

WAIT_S = 20.0


def until(what: Callable[[], object]) -> None:
    """Return when something has come true."""
    ends_at = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < ends_at, "it takes too long"
        time.sleep(0.01)


def split_for(name: str, manifest: Manifest, *, rows: int | None = None) -> Split:
    """Random samples that follow from the name; the peers have different numbers of rows."""
    count = rows if rows is not None else 9 + 4 * (sum(name.encode()) % 5)
    seed = torch.Generator().manual_seed(sum(name.encode()))
    inputs = torch.randn((count + 5, *manifest.data.shape), generator=seed)
    targets = torch.randint(0, manifest.data.classes or 2, (count + 5,), generator=seed)
    return Split(train=Samples(inputs[:count], targets[:count]), holdout=Samples(inputs[count:], targets[count:]))


class TrialInProcess:
    """Runs every peer of a manifest in a thread and collects models and errors."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        transport_for: Callable[[str], Transport],
        *,
        splits: Mapping[str, Split] | None = None,
        manifests: Mapping[str, Manifest] | None = None,
        patience_s: float = 60.0,
        audit_rate: float = 0.0,
        broker_wait_s: float = 20.0,
        privacy: Privacy | None = None,
    ) -> None:
        self.manifest = manifest
        self.folder = folder
        self.transport_for = transport_for
        self.splits = splits or {name: split_for(name, manifest) for name in manifest.peer_names}
        self.manifests = manifests or {}
        self.patience_s = patience_s
        self.audit_rate = audit_rate
        self.broker_wait_s = broker_wait_s
        self.privacy = privacy
        self.runners: dict[str, Runner] = {}
        self.errors: dict[str, BaseException] = {}

    def run_one(self, name: str) -> None:
        """Run one peer in this thread until it ends; what it raises is kept in `errors`."""
        manifest = self.manifests.get(name, self.manifest)
        try:
            identity = identity_of(name)
            journal = Journal(self.folder / name, trial_id=trial_id(manifest), identity=identity)
            try:
                split, spending, mechanism = self.splits[name], None, None
                if self.privacy is not None:
                    spending = Spending(journal, self.privacy, manifest.training, rows=len(split.train))
                    mechanism = spending.mechanism
                worker = Worker(manifest, split, device=torch.device("cpu"), mechanism=mechanism)
                words = vector_words(manifest, worker.layout)
                terms = Terms.of(manifest, identity, layout=worker.layout.digest(), software="tests", words=words)
                runner = self.runners[name] = Runner(
                    terms,
                    manifest,
                    identity,
                    journal,
                    worker,
                    rehearsal_seed(7, name),
                    self.transport_for(name),
                    broker_wait_s=self.broker_wait_s,
                    patience_s=self.patience_s,
                    audit_rate=self.audit_rate,
                    spending=spending,
                )
                runner.run()
            finally:
                journal.close()
        except BaseException as error:
            self.errors[name] = error

    def start(self, *names: str) -> list[threading.Thread]:
        """Start peers; all of them if none is named."""
        chosen = names or self.manifest.peer_names
        threads = [threading.Thread(target=self.run_one, args=(name,), name=name, daemon=True) for name in chosen]
        for thread in threads:
            thread.start()
        return threads

    def run(self, *, timeout_s: float = 60.0) -> None:
        """Run every peer to the end, and raise what one of them raised."""
        ends_at = time.monotonic() + timeout_s
        for thread in self.start():
            while thread.is_alive() and not self.errors and time.monotonic() < ends_at:
                thread.join(0.1)
            if thread.is_alive():
                phases = {name: runner.state.phase.value for name, runner in self.runners.items()}
                for runner in self.runners.values():
                    runner.stop()
                for error in self.errors.values():
                    raise error
                raise AssertionError(f"{thread.name} is still running: {phases}")
        for error in self.errors.values():
            raise error

    def status(self, name: str) -> dict[str, Any]:
        """What a peer says of itself in its status file; nothing before it has written one.

        Its journal is its thread's alone: SQLite calls Python for sums over rows, and two threads would wait for each
        other for ever, one for the connection and one for the interpreter.
        """
        path = self.folder / name / STATUS_NAME
        return json.loads(path.read_text()) if path.exists() else {}

    def model(self, name: str) -> bytes:
        """The final weights of a peer, flat."""
        runner = self.runners[name]
        return bytes(load_model(runner.model_path, runner.worker.layout)[0])
