"""From an organisation's files to a running peer."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ppdl_mq import __version__
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.errors import PeerFileError
from ppdl_mq.peer.checkpoints import Checkpoints
from ppdl_mq.peer.driver import has_begun
from ppdl_mq.peer.exporter import shown
from ppdl_mq.peer.folders import state_folder
from ppdl_mq.peer.heartbeat import Heartbeat
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.preflight import check_relay
from ppdl_mq.peer.protocols import vector_words
from ppdl_mq.peer.runner import Runner
from ppdl_mq.peer.spending import spending_of
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.training import device, plugin
from ppdl_mq.training.data.prepare import load_split
from ppdl_mq.training.order import SEED_BYTES, rehearsal_seed
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.opening import open_transport
from ppdl_mq.wire.trial_id import trial_id

_SEED_FACT: Final = "sample seed"


def run_peer(
    manifest: Manifest,
    settings: PeerSettings,
    identity: Identity,
    *,
    folder: Path,
    on_ready: Callable[[Runner], None] = lambda _: None,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Take part in a trial until it has ended; return the path of the model.

    Args:
        manifest: of the trial.
        settings: the organisation's own.
        identity: its own.
        folder: of the settings' file; relative paths of the data start there.
        on_ready: is given the runner before it runs, so that a signal can stop it.
        environment: of the process: where a service manager listens.

    Raises:
        PpdlError: what keeps this peer from taking part, or from going on.
    """
    name = Terms.name_of(manifest, identity.public)
    if settings.sample_seed is not None and settings.mode != "rehearsal":
        raise PeerFileError("sample_seed is set, which makes the order of samples known.", hint="Take it out.")
    plugin.check_allowed(manifest.model.callable, settings.models)
    broker = BrokerAddress.from_settings(settings.broker, folder)
    journal = Journal(state_folder(settings, manifest), trial_id=trial_id(manifest), identity=identity)
    held = ExitStack()
    try:
        if not has_begun(journal):  # later the peer waits for whatever may come back
            check_relay(broker, manifest, name)
        show = held.enter_context(shown(settings.metrics))  # a port that is taken is said before the data are read
        seed = _sample_seed(journal, settings, name)
        split = load_split(settings.data, manifest, seed, folder=folder)
        spending = spending_of(journal, settings, manifest, split)
        checkpoints = Checkpoints(journal.folder, every_s=settings.checkpoint_s)
        if not settings.checkpoint_s:
            checkpoints.clear()
        worker = Worker(
            manifest,
            split,
            device=device.choose(settings.device),
            checkpoints=checkpoints if settings.checkpoint_s else None,
            mechanism=None if spending is None else spending.mechanism,
        )
        words = vector_words(manifest, worker.layout)
        terms = Terms.of(manifest, identity, layout=worker.layout.digest(), software=_software(), words=words)
        transport = open_transport(
            broker,
            trial=manifest.name,
            prefix=manifest.relay.prefix,
            peer=name,
            message_bytes=manifest.relay.chunk_bytes,
        )
        runner = Runner(
            terms,
            manifest,
            identity,
            journal,
            worker,
            seed,
            transport,
            broker_wait_s=settings.broker.wait_s,
            audit_rate=settings.audit_rate,
            heartbeat=Heartbeat(environment or {}),
            spending=spending,
        )
        show(lambda: runner.progress.latest)
        on_ready(runner)
        model = runner.run()
        checkpoints.clear()  # the trial is over: one that a crash left is of no use any more
        return model
    except sqlite3.Error as fault:  # of what is read before the runner runs
        raise journal.damaged(fault) from None
    finally:
        held.close()
        journal.close()


def _sample_seed(journal: Journal, settings: PeerSettings, name: str) -> bytes:
    """Return the peer's secret seed: drawn once and journalled, unless a rehearsal fixes it."""
    if settings.sample_seed is not None:
        return rehearsal_seed(settings.sample_seed, name)
    stored = journal.secret_fact(_SEED_FACT)
    if stored is None:
        stored = secrets.token_bytes(SEED_BYTES)
        journal.keep_secret_fact(_SEED_FACT, stored)
    return bytes(stored)


def _software() -> str:
    import torch

    return f"ppdl-mq {__version__}, torch {torch.__version__}"
