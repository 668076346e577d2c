"""One trial of the demonstration: real processes, a real relay, and a tap on it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ppdl_mq.cli.demonstration.children import Children
from ppdl_mq.cli.demonstration.folder import Organisation
from ppdl_mq.cli.demonstration.screen import Screen
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import PpdlError, RelayRefused, TrainingError
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.peer.folders import state_folder
from ppdl_mq.peer.progress import PROGRESS_NAME, STATUS_NAME
from ppdl_mq.peer.runner import MODEL_NAME
from ppdl_mq.protocol.terms import WEIGHTS
from ppdl_mq.training.saving import load_model
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_tap, open_transport
from ppdl_mq.transport.tap import Tap

_LOOK_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a trial left behind.

    Args:
        models: by peer, its final weights, flat.
        passed: every message that passed the relay; None where nobody could look.
        published_messages: as the peers counted them.
        published_bytes: likewise.
        holdout: by peer, accuracy of the final model on its own hold-out; None without one.
        turns: that were trained.
        seconds: from the first process's start to the last one's end.
        seconds_a_turn: between the first turn's end and the last one's.
        model_path: the first peer's file.
    """

    models: Mapping[str, bytes] = field(repr=False)
    passed: tuple[bytes, ...] | None = field(repr=False)
    published_messages: int
    published_bytes: int
    holdout: Mapping[str, float | None]
    turns: int
    seconds: float
    seconds_a_turn: float
    model_path: Path


def run_trial(
    path: Path,
    manifest: Manifest,
    organisations: Mapping[str, Organisation],
    broker: BrokerAddress,
    layout: Layout,
    screen: Screen,
) -> Ran:
    """Run a trial from beginning to end.

    Args:
        path: of the manifest.
        manifest: what it says.
        organisations: by name.
        broker: the relay.
        layout: of the model.
        screen: shows how far it is.

    Raises:
        PpdlError: a peer failed, or the relay.
    """
    folders = {name: state_folder(each.settings, manifest) for name, each in organisations.items()}
    configs = {name: each.settings_path for name, each in organisations.items()}
    logs = {name: each.folder / f"{path.stem}.log" for name, each in organisations.items()}
    progress = {name: _Progress(folder / PROGRESS_NAME) for name, folder in folders.items()}
    turns = manifest.training.epochs * manifest.training.turns_per_epoch * len(organisations)
    passed: list[bytes] = []
    with _tap(broker, manifest) as tap, _inboxes(broker, manifest):
        started = time.monotonic()
        with Children(path, configs, logs) as children, screen.trial(manifest.protocol, turns) as view:
            done = False
            while not done:
                done = children.are_done()
                passed += tap.read() if tap is not None else []
                for each in progress.values():
                    each.read()
                view.show(max(each.turn for each in progress.values()), _known(progress))
                if not done:
                    time.sleep(_LOOK_EVERY_S)  # between two looks; nothing waits for it
            seconds = time.monotonic() - started
        passed += tap.read() if tap is not None else []
    statuses = [_status(folder) for folder in folders.values()]
    ends = sorted(at for each in progress.values() for at in each.turn_ends)
    return Ran(
        models={name: bytes(load_model(folder / MODEL_NAME, layout)[0]) for name, folder in folders.items()},
        passed=tuple(passed) if tap is not None else None,
        published_messages=sum(status["published_messages"] for status in statuses),
        published_bytes=sum(status["published_bytes"] for status in statuses),
        holdout={name: each.final_accuracy for name, each in progress.items()},
        turns=len(ends),
        seconds=seconds,
        seconds_a_turn=(ends[-1] - ends[0]) / max(1, len(ends) - 1),
        model_path=folders[manifest.peer_names[0]] / MODEL_NAME,
    )


class _Progress:
    """Follows the progress.jsonl of one peer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.turn = 0
        self.turn_ends: list[float] = []
        self.accuracy: float | None = None
        self.final_accuracy: float | None = None

    def read(self) -> None:
        """Take in the lines that are new and complete."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return  # the peer is about to start
        complete = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "turn" and event["turn"] > 0:
            self.turn = event["turn"]
            self.turn_ends.append(event["at"])
            self.accuracy = event.get("holdout_accuracy", self.accuracy)
        elif event["event"] == "final":
            self.final_accuracy = event["holdout_accuracy"]


def _known(progress: Mapping[str, _Progress]) -> dict[str, float]:
    return {name: each.accuracy for name, each in progress.items() if each.accuracy is not None}


def _status(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / STATUS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TrainingError(f"The peer in {folder} ended without a status.", hint="Its log says why.") from None
    return found


@contextmanager
def _tap(broker: BrokerAddress, manifest: Manifest) -> Iterator[Tap | None]:
    """Set a tap, or give None where the broker does not let this user."""
    try:
        tap = open_tap(broker, trial=manifest.name, prefix=manifest.relay.prefix)
    except RelayRefused:
        yield None
        return
    with tap:
        yield tap


@contextmanager
def _inboxes(broker: BrokerAddress, manifest: Manifest) -> Iterator[None]:
    """Make the trial's queues at a broker; remove them if it does not end well. (Otherwise the peers do.)

    With a tap every message finds a queue there, so that a peer would not learn that an inbox is missing.
    """
    if broker.scheme == "embedded":
        yield  # a tap hides nothing, and the whole file is removed by the next demonstration
        return
    addresses = (*manifest.peer_names, *((WEIGHTS,) if manifest.protocol == "server-aided" else ()))

    def relay() -> Transport:
        return open_transport(broker, trial=manifest.name, prefix=manifest.relay.prefix, peer="demo")

    with relay() as opened:
        for address in addresses:
            opened.declare(address)
    try:
        yield
    except BaseException:
        with contextlib.suppress(PpdlError), relay() as opened:
            for address in addresses:
                opened.delete(address)
        raise
