"""Real data: four hospitals as four processes, and handwritten digits whose shares are skewed by label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdl_mq.config.settings import OwnData
from ppdl_mq.training.data.prepare import load_split
from ppdl_mq.training.data.samples import Samples, Split
from ppdl_mq.training.order import rehearsal_seed
from tests.deployment.heart import planned
from tests.processes import Processes
from tests.rabbit import RabbitNode
from tests.transport.relays import new_trial
from tests.trial import TrialInProcess, manifest_for
from tests.trials.exact import SAMPLE_SEED, assert_equal_bits, expected_state
from tests.trials.files import TrialFiles
from tests.trials.relays import opener

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
HOSPITALS = {"cleveland": "cleveland", "hungary": "hungarian", "switzerland": "switzerland", "va": "va"}
PASSWORD_VARIABLE = "BROKER_PASSWORD"
TRIAL = ("--preset", "heart", "--order", "shuffled", "--epochs", "5", "--turns-per-epoch", "2")


def need(folder: str) -> Path:
    found = DATA / folder
    if not found.exists():
        pytest.skip(f"needs the data folder {folder}")
    return found


def table(file: Path) -> tuple[str, ...]:
    """Return the options of `peer new` for a hospital's file as UCI distributes it."""
    arguments = {
        "header": "false",
        "label": "13",
        "labels": "{ 0 = 0, 1 = 1, 2 = 1, 3 = 1, 4 = 1 }",
        "drop": "[10, 11, 12]",  # slope, ca, thal: hardly recorded outside Cleveland
        "drop_missing": "true",
    }
    options = [option for key, value in arguments.items() for option in ("--data-arg", f"{key}={value}")]
    return ("--data", f"csv:{file}", *options)


def four_hospitals(folder: Path, broker: str, protocol: str, *, password_env: str | None = None) -> TrialFiles:
    heart = need("heart")
    return TrialFiles(
        folder,
        tuple(HOSPITALS),
        broker=broker,
        new=(*TRIAL, "--protocol", protocol),
        data={name: table(heart / f"processed.{file}.data") for name, file in HOSPITALS.items()},
        password_env=password_env,
        name="heart",
    )


def run_all(files: TrialFiles, started: Processes, environments: dict[str, dict[str, str]]) -> None:
    """Run every peer in a process of its own, and compare what they wrote with the oracle."""
    running = [started.start(*files.run_arguments(peer), environment=environments.get(peer)) for peer in files.names]
    for process in running:
        ended = process.wait()
        assert ended.code == 0, ended.err
        assert "has ended" in ended.out
    expected = expected_state(files.manifest, files.splits())
    for peer in files.names:
        assert_equal_bits(files.model(peer), expected)
    assert len({files.model(peer).read_bytes() for peer in files.names}) == 1


@pytest.mark.rabbitmq
def test_four_hospitals_with_few_rights_at_a_broker(tmp_path: Path, started: Processes, rabbit: RabbitNode) -> None:
    vhost = "hospitals"
    files = four_hospitals(tmp_path, rabbit.url("{peer}", vhost), "server-aided", password_env=PASSWORD_VARIABLE)
    for peer in files.names:
        files.edit(peer, "[broker]", "[broker]\ndeclare = false")
    plan = planned(files.manifest_path, "--vhost", vhost)
    (tmp_path / "definitions.json").write_text(json.dumps(plan["definitions"]))
    rabbit.ctl("import_definitions", str(tmp_path / "definitions.json"))
    try:
        for peer in files.names:
            rabbit.ctl("change_password", peer, f"password of {peer}")
        run_all(files, started, {peer: {PASSWORD_VARIABLE: f"password of {peer}"} for peer in files.names})
        # Theirs to empty, not to remove.
        assert rabbit.waiting(vhost) == {f"ppdl.heart.{address}": 0 for address in (*files.names, "weights")}
    finally:
        rabbit.start()
        for peer in files.names:
            rabbit.delete_user(peer)
        rabbit.ctl("delete_vhost", vhost)


def test_four_hospitals_on_one_machine(tmp_path: Path, started: Processes) -> None:
    run_all(four_hospitals(tmp_path, "embedded:relay.sqlite", "fully-connected"), started, {})


@pytest.mark.rabbitmq
def test_digits_of_which_each_peer_has_a_few(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    manifest = manifest_for(
        name=new_trial(),
        protocol="server-aided",
        order="shuffled",
        model={"callable": "ppdl_mq.training.models:small_cnn", "arguments": {"size": 28, "outputs": 10}},
        training={"learning_rate": 0.05, "momentum": 0.9, "batch_size": 32, "epochs": 2, "turn_steps": 6},
        data={"shape": [1, 28, 28], "classes": 10, "standardise": "manifest", "mean": [0.1307], "std": [0.3081]},
    )
    splits = skewed_digits(manifest, need("mnist"))
    trial = TrialInProcess(manifest, tmp_path, opener("classic", manifest, tmp_path, request), splits=splits)
    trial.run()
    expected = expected_state(manifest, splits)
    for runner in trial.runners.values():
        assert_equal_bits(runner.model_path, expected)


def skewed_digits(manifest: Any, folder: Path) -> dict[str, Split]:
    """Return 600 rows of MNIST for each peer, each of a few digits only."""
    names = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
    arguments = {"images_path": names[0], "labels_path": names[1]}
    settings = OwnData(callable="ppdl_mq.training.data:idx", arguments=arguments, holdout=0.0)
    everything = load_split(settings, manifest, rehearsal_seed(SAMPLE_SEED, "all"), folder=folder).train
    digits = {"anna": (0, 1, 2, 3), "bert": (4, 5, 6), "cleo": (7, 8, 9)}
    splits = {}
    for name, own in digits.items():
        rows = np.flatnonzero(np.isin(everything.targets.numpy(), own))[:600]
        samples = Samples(everything.inputs[rows], everything.targets[rows])
        splits[name] = Split(train=samples, holdout=Samples(samples.inputs[:0], samples.targets[:0]))
    return splits
