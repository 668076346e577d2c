"""Metrics in whole trials: of real processes over RabbitMQ while they run, and of every protocol at its end."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path

import pytest

from ppdl_mq.config.listening import Listening, parse_listening
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.settings import Privacy
from ppdl_mq.peer.exporter import Exporter
from ppdl_mq.peer.figures import FIGURES
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.trial_id import trial_id
from tests.peer.test_exporter import Samples, ask, samples_in
from tests.processes import SOON_S, Process, Processes
from tests.rabbit import RabbitNode
from tests.trial import TrialInProcess, manifest_for
from tests.trials.files import PASSWORD, TrialFiles
from tests.trials.masked import agreed, entries

# Shown while it is so, and not at the end of a trial in which all went well.
WHILE_WAITING = {
    "ppdl_mq_waiting_for",
    "ppdl_mq_waiting_since_timestamp_seconds",
    "ppdl_mq_without_inbox",
    "ppdl_mq_unsent_messages",
}
OTHERWISE = {"ppdl_mq_refused_messages_total", "ppdl_mq_checkpoint_timestamp_seconds"}


def address_of(process: Process) -> Listening:
    """Wait until a peer has said where its metrics are."""
    process.wait_for("/metrics.")
    found = re.search(r"Metrics are at http://(\S+)/metrics\.", process.err)
    assert found is not None
    return parse_listening(found[1])


def scrape(address: Listening) -> Samples | None:
    """Return what is shown now, or None once nobody answers any more."""
    try:
        status, _, text = ask(address)
    except OSError:  # a connection that the process's end has broken, among others
        return None
    assert status == 200
    assert PASSWORD not in text
    return samples_in(text)


def watch(addresses: dict[str, Listening]) -> dict[str, list[Samples]]:
    """Scrape until everybody has ended; return what was shown, by peer."""
    seen: dict[str, list[Samples]] = {name: [] for name in addresses}
    deadline = time.monotonic() + SOON_S
    left = set(addresses)
    while left:
        assert time.monotonic() < deadline, f"{left} go on"
        for name in sorted(left):
            samples = scrape(addresses[name])
            if samples is None:
                left.discard(name)
            else:
                seen[name].append(samples)
    return seen


@pytest.mark.slow
def test_real_peers_over_rabbitmq_are_scraped_while_they_run(
    rabbit: RabbitNode, tmp_path: Path, started: Processes
) -> None:
    rabbit.add_user("metrics-user", PASSWORD)
    broker = f"amqp://metrics-user@127.0.0.1:{rabbit.port}/"
    new = ("--protocol", "server-aided", "--epochs", "20")
    names = ("anna", "bert")
    files = TrialFiles(tmp_path, names, broker=broker, new=new, password_env="BROKER_PASSWORD", name="scraped")
    files.edit("anna", '# [metrics]\n# listen = "127.0.0.1:9464"', '[metrics]\nlisten = "127.0.0.1:0"')
    secret = {"BROKER_PASSWORD": PASSWORD}
    anna = started.start(*files.run_arguments("anna"), environment=secret)
    addresses = {"anna": address_of(anna)}

    # One alone waits, and says for whom.
    anna.wait_for("Waiting for bert (has not opened its inbox)")
    waiting: Samples | None = {}
    deadline = time.monotonic() + SOON_S
    while waiting is not None and ("ppdl_mq_without_inbox", (("name", "bert"),)) not in waiting:
        assert time.monotonic() < deadline, waiting
        waiting = scrape(addresses["anna"])  # the log is a moment ahead
    assert waiting is not None, anna.err
    for name in WHILE_WAITING:
        assert waiting[name, (("name", "bert"),)] >= 1, name
    assert waiting["ppdl_mq_relay_state", (("state", "connected"),)] == 1
    assert waiting["ppdl_mq_phase", (("phase", "awaiting hellos"),)] == 1
    assert waiting["ppdl_mq_turns", ()] == 40
    assert waiting["ppdl_mq_trainings_total", ()] == 0
    (info,) = (dict(labels) for name, labels in waiting if name == "ppdl_mq_peer_info")
    identifier = trial_id(files.manifest).hex()
    assert (info["trial"], info["trial_id"], info["peer"]) == ("scraped", identifier, "anna")
    assert abs(waiting["ppdl_mq_updated_timestamp_seconds", ()] - time.time()) < SOON_S

    options = ("--metrics", "127.0.0.1:0", "--log-format", "json")
    bert = started.start("--debug", *files.run_arguments("bert"), *options, environment=secret)
    addresses["bert"] = address_of(bert)
    seen = watch(addresses)
    for name, process in (("anna", anna), ("bert", bert)):
        ended = process.wait()
        assert ended.code == 0, ended.err
        assert PASSWORD not in ended.err
        check_course(seen[name], json.loads((files.state(name) / "status.json").read_text()))
    assert {json.loads(line)["peer"] for line in bert.err.splitlines()} == {"bert"}
    rabbit.delete_user("metrics-user")


def check_course(seen: list[Samples], status: dict[str, float]) -> None:
    """Hold what was scraped in turn to itself, to the table, and to the status that the peer left."""
    kinds = {figure.name: figure for figure in FIGURES}
    assert len(seen) >= 2
    for before, after in itertools.pairwise(seen):
        for (name, labels), value in after.items():
            if name.startswith("ppdl_mq_"):
                assert not kinds[name].private, name
                if kinds[name].kind == "counter":
                    assert value >= before.get((name, labels), 0), name
    last = seen[-1]
    assert 0 < last["ppdl_mq_turn", ()] <= status["turns"]
    assert 0 < last["ppdl_mq_published_bytes_total", ()] <= status["published_bytes"]
    assert 0 < last["ppdl_mq_received_bytes_total", ()] <= status["received_bytes"]
    assert 0 < last["ppdl_mq_fetched_bytes_total", ()] <= status["fetched_bytes"]
    assert 0 < last["ppdl_mq_trainings_total", ()] <= 20
    assert len({labels for samples in seen for name, labels in samples if name == "ppdl_mq_phase"}) > 1


def at_the_end(
    manifest: Manifest, folder: Path, *, privacy: Privacy | None = None
) -> tuple[TrialInProcess, dict[str, Samples]]:
    """Run a trial in this process; return it and what each peer's metrics, the private ones too, say of its end."""
    relay = MemoryRelay()
    trial = TrialInProcess(manifest, folder, lambda _: MemoryTransport(relay), privacy=privacy)
    trial.run()
    found = {}
    for name, runner in trial.runners.items():
        with Exporter("127.0.0.1:0", private=True) as exporter:
            exporter.watch(lambda: runner.progress.latest)  # noqa: B023 (read within this turn of the loop)
            found[name] = samples_in(ask(exporter.address)[2])
    return trial, found


@pytest.mark.parametrize("protocol", ["server-aided", "fully-connected"])
def test_the_end_of_a_sequential_trial(protocol: str, tmp_path: Path) -> None:
    trial, found = at_the_end(manifest_for(protocol=protocol), tmp_path)
    for unit in (
        "messages",
        "bytes",
    ):  # nothing was lost or came twice: what goes out is counted once where it comes in
        published, received, fetched = (
            sum(each.get((f"ppdl_mq_{way}_{unit}_total", ()), 0) for each in found.values())
            for way in ("published", "received", "fetched")
        )
        assert received + fetched == published > 0
    assert (fetched > 0) is (protocol == "server-aided")
    for name, samples in found.items():
        mine = [entry for entry in entries(trial, name, "turn") if entry["turn"]]
        assert samples["ppdl_mq_trainings_total", ()] == len(mine) == 2
        assert samples["ppdl_mq_training_seconds_total", ()] == pytest.approx(sum(each["seconds"] for each in mine))
        assert samples["ppdl_mq_trained_samples_total", ()] == sum(each["samples"] for each in mine)
        assert samples["ppdl_mq_training_loss", ()] == mine[-1]["loss"]
        (final,) = entries(trial, name, "final")
        assert samples["ppdl_mq_holdout_loss", ()] == final["holdout_loss"]
        assert samples["ppdl_mq_holdout_accuracy_ratio", ()] == final["holdout_accuracy"]
        assert samples["ppdl_mq_phase", (("phase", "ended"),)] == 1
        spent = {dict(labels)["phase"] for key, labels in samples if key == "ppdl_mq_phase_seconds_total"}
        assert {"new", "awaiting hellos", "training", "ended"} <= spent


def test_the_end_of_masked_average(tmp_path: Path) -> None:
    trial, found = at_the_end(agreed(3), tmp_path)
    for name, samples in found.items():
        trained = entries(trial, name, "trained")
        evaluation = entries(trial, name, "evaluation")[-1]
        assert samples["ppdl_mq_trainings_total", ()] == len(trained) == samples["ppdl_mq_rounds", ()]
        assert samples["ppdl_mq_evaluation_loss", ()] == evaluation["loss"]
        assert samples["ppdl_mq_evaluation_accuracy_ratio", ()] == evaluation["accuracy"]
        assert samples["ppdl_mq_members", ()] == 3
        assert samples["ppdl_mq_word_bits", ()] in (32, 64)


def test_every_metric_comes_from_a_real_trial(tmp_path: Path) -> None:
    """None is in the table that no peer ever shows."""
    shown = {name for name, _ in at_the_end(manifest_for(protocol="server-aided"), tmp_path / "turns")[1]["anna"]}
    privacy = Privacy(epsilon=50.0, delta=0.01, noise=2.0)
    private = at_the_end(agreed(3), tmp_path / "rounds", privacy=privacy)[1]["anna"]
    assert 0 < private["ppdl_mq_privacy_epsilon", ()] < private["ppdl_mq_privacy_epsilon_budget", ()] == 50
    shown |= {name for name, _ in private}
    assert {figure.name for figure in FIGURES} - shown == WHILE_WAITING | OTHERWISE
