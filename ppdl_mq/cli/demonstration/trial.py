"""One trial of the demonstration: real processes, a real relay, and a tap on it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ppdl_mq.cli.demonstration.children import Children
from ppdl_mq.cli.demonstration.folder import Organisation
from ppdl_mq.cli.demonstration.screen import Screen, TrialView
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import PpdlError, RelayRefused, TrainingError
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.peer.folders import MODEL_NAME, state_folder
from ppdl_mq.peer.progress import PROGRESS_NAME, STATUS_NAME
from ppdl_mq.protocol.terms import WEIGHTS
from ppdl_mq.report.result import ALL_HOLDOUTS, Curve
from ppdl_mq.training.saving import load_model
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_tap, open_transport
from ppdl_mq.transport.tap import Tap
from ppdl_mq.wire.entries import LOG_NAME, read_line

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
        turns: that were trained; in masked-average, rounds.
        seconds: from the first process's start to the last one's end.
        seconds_a_turn: between the first turn's end and the last one's; in masked-average, a round.
        model_paths: by peer, its file.
        holdouts: accuracy over rounds, on all hold-outs together and on each peer's own; nothing but in masked-average.
        agreed: what masked-average's first peer signed as agreed: SHA-256 of weights, and of evaluations.
    """

    models: Mapping[str, bytes] = field(repr=False)
    passed: tuple[bytes, ...] | None = field(repr=False)
    published_messages: int
    published_bytes: int
    holdout: Mapping[str, float | None]
    turns: int
    seconds: float
    seconds_a_turn: float
    model_paths: Mapping[str, Path]
    holdouts: tuple[Curve, ...]
    agreed: frozenset[bytes] = field(repr=False)


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
    is_masked = manifest.averaging is not None
    turns = manifest.training.epochs * manifest.training.turns_per_epoch * (1 if is_masked else len(organisations))
    passed: list[bytes] = []
    with _tap(broker, manifest) as tap, _inboxes(broker, manifest):
        started = time.monotonic()
        with Children(path, configs, logs) as children, _view(screen, manifest, turns) as view:
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
    # In masked-average every peer notes every round.
    noting = [progress[manifest.peer_names[0]]] if is_masked else progress.values()
    ends = sorted(at for each in noting for at in each.turn_ends)
    paths = {name: folder / MODEL_NAME for name, folder in folders.items()}
    return Ran(
        models={name: bytes(load_model(model, layout)[0]) for name, model in paths.items()},
        passed=tuple(passed) if tap is not None else None,
        published_messages=sum(status["published_messages"] for status in statuses),
        published_bytes=sum(status["published_bytes"] for status in statuses),
        holdout={name: each.final_accuracy for name, each in progress.items()},
        turns=len(ends),
        seconds=seconds,
        seconds_a_turn=(ends[-1] - ends[0]) / max(1, len(ends) - 1),
        model_paths=paths,
        holdouts=_holdouts(progress) if is_masked else (),
        agreed=agreed_digests(folders[manifest.peer_names[0]] / LOG_NAME) if is_masked else frozenset(),
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
        self.own: list[tuple[float, float]] = []  # rounds and accuracy on the own hold-out
        self.all: list[tuple[float, float]] = []  # ... and on all hold-outs together

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
        elif event["event"] == "round":
            self.turn = event["round"]
            self.turn_ends.append(event["at"])
        elif event["event"] == "measured" and event["holdout_accuracy"] is not None:
            self.accuracy = event["holdout_accuracy"]
            self.own.append((event["round"], event["holdout_accuracy"]))
        elif event["event"] == "evaluation" and event["accuracy"] is not None:
            self.all.append((event["round"], event["accuracy"]))


def _known(progress: Mapping[str, _Progress]) -> dict[str, float]:
    return {name: each.accuracy for name, each in progress.items() if each.accuracy is not None}


def _view(screen: Screen, manifest: Manifest, turns: int) -> AbstractContextManager[TrialView]:
    return screen.trial(manifest.protocol, turns, "turn" if manifest.averaging is None else "round")


def _holdouts(progress: Mapping[str, _Progress]) -> tuple[Curve, ...]:
    """Return what masked-average's evaluations came to: everybody learns the first curve, each peer one other."""
    first = next(iter(progress.values()))
    own = [Curve(name=name, points=tuple(each.own)) for name, each in progress.items() if each.own]
    return (*([Curve(name=ALL_HOLDOUTS, points=tuple(first.all))] if first.all else []), *own)


def agreed_digests(path: Path) -> frozenset[bytes]:
    """Return the digests that a peer's transcript says were agreed on."""
    agreed = set()
    try:
        with path.open("rb") as log:
            for line in log:
                entry, _ = read_line(line)
                if entry.says == "agreement":
                    agreed.add(entry.about["digest"])
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}.") from None
    return frozenset(agreed)


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
    addresses = (*manifest.peer_names, *((WEIGHTS,) if manifest.shares_weights else ()))

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
