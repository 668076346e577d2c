"""The demonstration: how the data are dealt, what counts as readable, and the whole of it with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from ppdl_mq.cli.demonstration import folder as folders
from ppdl_mq.cli.demonstration.children import Children
from ppdl_mq.cli.demonstration.datasets import ORGANISATIONS, deal, load
from ppdl_mq.cli.demonstration.inspection import Secrets, inspect
from ppdl_mq.cli.demonstration.run import comparer_for
from ppdl_mq.cli.main import run
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import read_manifest
from ppdl_mq.errors import TrainingError
from ppdl_mq.report.comparison import Comparer
from ppdl_mq.report.result import ALL_HOLDOUTS, in_short
from ppdl_mq.training.baselines import federated_averaging
from ppdl_mq.wire.header import Header
from ppdl_mq.wire.kinds import Kind
from tests.rabbit import RabbitNode

ALL_KEYS = {"accuracy", "differing_bits", "relay_messages", "relay_bytes", "seconds"}


@pytest.mark.parametrize("count", [2, 3, len(ORGANISATIONS)])
@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_shares_are_unequal_and_skewed_and_lose_nothing(name: str, count: int) -> None:
    dataset = load(name, seed=1)
    shares = deal(dataset, count, seed=1)
    parts = [shares.public, *shares.private.values()]
    rows = np.concatenate([part.inputs for part in parts])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, dataset.rows.inputs))  # each row once
    sizes = [len(part.labels) for part in shares.private.values()]
    assert len(sizes) == count
    assert sizes[0] > 1.5 * sizes[-1] >= 1.5 * 4
    counts = np.array([part.counts(len(dataset.classes)) for part in shares.private.values()])
    mixes = counts / counts.sum(axis=1, keepdims=True)
    assert np.abs(mixes - counts.sum(axis=0) / counts.sum()).sum(axis=1).min() > 0.3
    if name == "digits" and count >= 3:
        assert (counts == 0).any(axis=1).all()  # each misses a class


def three_organisations(dataset_name: str, protocol: str, folder: Path) -> tuple[Manifest, Comparer]:
    """Write the demo's trial with its defaults; return its manifest, and what compares it with other ways to train."""
    dataset = load(dataset_name, seed=folders.SEED)
    shares = deal(dataset, 3, seed=folders.SEED)
    organisations = folders.write_organisations(folder, shares, relay="embedded:relay.sqlite", password_env=None)
    manifest = folders.write_manifest(
        folder / "trial.toml",
        dataset,
        shares,
        organisations,
        protocol=protocol,
        activation="relu",
        epochs=folders.EPOCHS,
    )
    return manifest, comparer_for(manifest, organisations, shares.public)


@pytest.mark.parametrize("dataset_name", ["digits", "breast-cancer"])
def test_the_default_turn_length_keeps_the_promise(dataset_name: str, tmp_path: Path) -> None:
    _, comparer = three_organisations(dataset_name, "server-aided", tmp_path)
    comparison = comparer.compare()
    assert abs(comparison.same_order - comparison.shuffled) <= 0.02
    assert comparison.same_order > max(comparison.alone.values()) + 0.02


@pytest.mark.parametrize("dataset_name", ["digits", "breast-cancer"])
def test_the_default_rounds_are_short_enough(dataset_name: str, tmp_path: Path) -> None:
    manifest, comparer = three_organisations(dataset_name, "masked-average", tmp_path)
    comparison = comparer.compare()
    accuracy = comparer.accuracy(federated_averaging(manifest, comparer.workers, comparer.seeds))
    assert accuracy > comparison.shuffled - 0.03  # one round an epoch is further off: 0.034 on digits
    assert accuracy > max(comparison.alone.values()) + 0.02
    written = read_manifest(tmp_path / "trial.toml")
    assert written == manifest
    assert written.averaging is not None
    assert written.averaging.evaluate_every == written.training.turns_per_epoch  # once an epoch


def sealed(body: bytes, *, kind: Kind = Kind.TURN) -> bytes:
    header = Header(
        kind=kind,
        trial_id=b"\x01" * 32,
        session_id=bytes(32),
        message_id=b"\x02" * 16,
        turn=1,
        body_bytes=len(body) - 40,
        stride=900_000,
        sender="alder",
        recipient="birch",
    )
    return header.encode() + body


def test_what_the_relay_could_read_is_found() -> None:
    random = np.random.default_rng(5)
    noise = random.bytes(5_000)
    weights = random.standard_normal(100).astype(np.float32)
    labels = random.integers(0, 10, 60)
    key = random.bytes(64)
    secrets = Secrets()
    secrets.add_weights(weights.tobytes())
    secrets.add_integers(labels)
    secrets.add_key(key)
    clean = [sealed(noise), sealed(random.bytes(150), kind=Kind.HELLO)]
    found = inspect(clean, secrets)
    assert (found.messages, found.readable) == (2, 0)
    assert found.bytes == sum(map(len, clean))
    planted = {
        "a few weights": weights[7:12].tobytes(),
        "weights as double, turned round": weights[:20].astype(">f8").tobytes(),
        "labels": labels[3:40].astype(np.uint8).tobytes(),
        "a key": key[:32],
        "a key as text": key.hex().encode()[:40],
    }
    for name, piece in planted.items():
        for at in (0, 1, 2_003):
            assert inspect([sealed(noise[:at] + piece + noise[at:])], secrets).known == 1, (name, at)
    assert inspect([sealed(b'{"accuracy": 0.97}' * 20)], secrets).shrinkable == 1
    assert inspect([noise], secrets).unsealed == 1
    assert inspect([sealed(noise) + b"more"], secrets).readable == 1


def test_the_number_of_a_part_beside_four_random_bytes_is_no_weight() -> None:
    """Both stood in the table once in seven runs: a part of number 0, and float32 as float64 in either byte order."""
    random = np.random.default_rng(5)
    weights = np.array([1.5 + 2.0**-20], dtype=np.float32)  # its last three bits are zeros
    secrets = Secrets()
    secrets.add_weights(weights.tobytes())
    half = weights.astype(">f8").tobytes()[:4]
    assert weights.astype(">f8").tobytes() == half + bytes(4)
    before = random.bytes(16) + half + bytes(4) + random.bytes(100)
    after = random.bytes(20) + bytes(4) + half[::-1] + random.bytes(100)
    assert inspect([sealed(before), sealed(after)], secrets).readable == 0
    for at in (0, 12, 24, 100):
        noise = random.bytes(200)
        assert inspect([sealed(noise[:at] + half + bytes(4) + noise[at:])], secrets).known == 1, at


def wait_for(children: Children) -> None:
    while not children.are_done():
        pass


def test_a_peer_that_fails_is_quoted_and_the_others_end(tmp_path: Path) -> None:
    configs = {name: tmp_path / f"{name}.toml" for name in ("alder", "birch")}
    logs = {name: tmp_path / f"{name}.log" for name in configs}
    with Children(tmp_path / "missing.toml", configs, logs) as children:
        pids = children.pids
        with pytest.raises(TrainingError, match=r"exit code 3(?s:.*)missing\.toml"):
            wait_for(children)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_what_stands_in_the_way_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--peers", "1", "--out", str(tmp_path)]) == 2
    assert "2<=x<=12" in capsys.readouterr().err
    assert run(["demo", "--protocol", "masked", "--out", str(tmp_path)]) == 2
    capsys.readouterr()
    assert run(["demo", "--activation", "relux", "--out", str(tmp_path / "a")]) == 5
    assert "There is no activation 'relux'" in capsys.readouterr().err
    assert run(["demo", "--broker", "amqp://u:p@h/", "--out", str(tmp_path / "b")]) == 3
    assert "password" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(["demo", "--out", str(tmp_path)]) == 3
    assert "holds files that no demonstration wrote" in capsys.readouterr().err
    with folders.taken(tmp_path / "c"):
        assert run(["demo", "--out", str(tmp_path / "c")]) == 8
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert run(["demo", "--out", str(tmp_path / "d")]) == 5
    assert 'pip install "ppdl-mq[demo]"' in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_an_earlier_demonstration_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    with folders.taken(tmp_path):
        (tmp_path / "peers" / "old").mkdir(parents=True)
        for name in ("report.html", "relay.sqlite-wal", "notes.txt"):
            (tmp_path / name).write_text("old")
    with folders.taken(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".ppdl-mq-demo", "notes.txt"}


@pytest.mark.slow
def test_the_whole_demonstration(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out of the way" / "demo"
    assert run(["demo", "--epochs", "2", "--out", str(out)]) == 0
    shown = capfd.readouterr()
    result = json.loads((out / "result.json").read_text())
    assert result["alone"].keys() == {"alder", "birch", "cedar"}
    assert list(result["protocols"]) == ["server-aided", "fully-connected", "masked-average"]
    masked = result["protocols"].pop("masked-average")
    for name, outcome in result["protocols"].items():
        assert outcome.keys() >= ALL_KEYS
        assert outcome["differing_bits"] == 0
        assert outcome["accuracy"] == result["pooled_same_order_accuracy"] > max(result["alone"].values())
        assert (outcome["relay_counted_by"], outcome["relay_readable"]) == ("tap", 0)
        assert outcome["relay_messages"] > outcome["turns"] == 2 * 4 * 3
        assert outcome["relay_bytes"] > outcome["turns"] * result["model_bytes"]
        assert f"{name}: turn 24 of 24" in shown.err
        row = next(line for line in shown.out.splitlines() if line.strip().startswith(name)).split()
        accuracy = f"{outcome['accuracy']:.1%}"
        assert [row[1], row[2], row[4], row[6]] == [accuracy, "0", str(outcome["relay_messages"]), "0"]
        assert outcome["distinct_models"] == 1
    averaged = masked["averaged"]
    assert masked["differing_bits"] is None
    assert (masked["turns"], masked["distinct_models"], masked["seconds_a_turn"] > 0) == (2 * 4, 1, True)
    assert (masked["relay_counted_by"], masked["relay_readable"]) == ("tap", 0)
    assert (averaged["values"], averaged["values_off"]) == (8 * result["model_bytes"] // 4, 0)
    assert averaged["largest_difference"] < 1e-5  # two epochs: roundings, hardly amplified
    assert [(curve["name"], [at for at, _ in curve["points"]]) for curve in averaged["holdouts"]] == [
        (name, [4, 8]) for name in (ALL_HOLDOUTS, "alder", "birch", "cedar")
    ]
    assert result["curves"][0]["points"][-1] == [2.0, masked["accuracy"]]
    assert "masked-average: round 8 of 8" in shown.err
    row = next(line for line in shown.out.splitlines() if line.strip().startswith("masked-average")).split()
    assert [row[1], row[2], row[4], row[6]] == [f"{masked['accuracy']:.1%}", "-", f"{masked['relay_messages']:,}", "0"]
    assert f"0 of {averaged['values']:,} values off by more than the stated bound" in shown.out
    assert f"within {in_short(averaged['largest_difference'])} of plain federated averaging" in shown.out
    assert result["cautions"] == []
    assert max(map(len, shown.out.splitlines()[:16])) <= 80
    assert set(load_file(out / "model.safetensors")) == {
        f"{layer}.{kind}" for layer in (1, 3) for kind in ("weight", "bias")
    }
    assert "</html>" in (out / "report.html").read_text()


@pytest.mark.slow
def test_json_is_the_result_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--peers", "2", "--dataset", "breast-cancer", "--protocol", "fully-connected", "--activation", "gelu"]
    assert run(["demo", *options, "--epochs", "1", "--json", "--out", str(tmp_path)]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert (result["dataset"], result["activation"], list(result["protocols"])) == (
        "breast-cancer",
        "gelu",
        ["fully-connected"],
    )
    assert result["protocols"]["fully-connected"]["differing_bits"] == 0


@pytest.mark.slow
def test_with_two_organisations_it_says_what_averages_do_not_hide(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--peers", "2", "--dataset", "breast-cancer", "--protocol", "masked-average", "--epochs", "1"]
    assert run(["demo", *options, "--out", str(tmp_path)]) == 0
    shown = capfd.readouterr()
    assert (shown.out + shown.err).count("each can subtract its own part") == 1
    assert "Differing bits" not in shown.out
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["cautions"]) == 1
    assert (result["turn_lengths"], len(result["round_lengths"])) == ([], 4)
    assert result["protocols"]["masked-average"]["averaged"]["values_off"] == 0


@pytest.mark.slow
def test_through_rabbitmq(tmp_path: Path, rabbit: RabbitNode) -> None:
    options = ["--broker", rabbit.url(), "--peers", "2", "--epochs", "1"]
    options += ["--protocol", "server-aided", "--protocol", "masked-average"]
    assert run(["demo", *options, "--out", str(tmp_path)]) == 0
    outcomes = json.loads((tmp_path / "result.json").read_text())["protocols"]
    assert outcomes["server-aided"]["differing_bits"] == 0
    assert outcomes["masked-average"]["averaged"]["values_off"] == 0
    for outcome in outcomes.values():
        assert (outcome["relay_counted_by"], outcome["relay_readable"]) == ("tap", 0)
    logs = [path.read_text() for path in tmp_path.glob("peers/*/*.log")]
    assert len(logs) == 2 * len(outcomes)
    assert not any("asking" in log for log in logs)  # the tap hid no missing inbox, so no message was lost
    assert "ppdl.demo-" not in rabbit.ctl("list_queues") + rabbit.ctl("list_exchanges")


def hear_ctrl_c() -> None:
    """Undo what a shell without a terminal does to the programs that it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ppdl_mq.cli.main", "demo", "--protocol", "fully-connected"]
    command += ["--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "the peers start" in line:
                break
        children = psutil.Process(demo.pid).children()
        os.kill(demo.pid, signal.SIGINT)
        assert "error: Interrupted." in demo.stderr.read()
        assert demo.wait(30) == 130
    assert len(children) == 3
    assert not any(child.is_running() for child in children)
    assert not list(tmp_path.glob("peers/*/state/*/model.safetensors"))  # they were stopped, not waited for
