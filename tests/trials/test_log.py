"""The log in JSON of real processes in a real trial: every line an object, and no secret in any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppdl_mq.wire.trial_id import trial_id
from tests.processes import Processes
from tests.trials.files import PASSWORD, TrialFiles

PASSWORDS = {"BROKER_PASSWORD": PASSWORD}


@pytest.mark.slow
def test_every_line_of_both_streams_is_an_object(files: TrialFiles, started: Processes) -> None:
    """As a container's log would have them: what is logged, and the answer at the end."""
    options = ("--log-format", "json", "--json")
    running = {
        name: started.start("--debug", *files.run_arguments(name), *options, environment=PASSWORDS)
        for name in files.names
    }
    identifier = trial_id(files.manifest).hex()
    for name, process in running.items():
        ended = process.wait()
        assert ended.code == 0, ended.err
        lines = [json.loads(line) for line in ended.err.splitlines()]
        assert len(lines) > 3
        for line in lines:
            assert (line["trial"], line["trial_id"], line["peer"]) == ("small", identifier, name)
            assert {"at", "level", "logger", "message"} <= line.keys()
        assert all(line["waiting_for"] for line in lines if line["message"].startswith("Waiting for "))
        assert {line["turn"] for line in lines if "turn" in line} <= set(range(5))
        (answer,) = ended.out.splitlines()
        assert json.loads(answer)["trial"] == "small"
        files.check_no_secret(ended.err + ended.out)


@pytest.mark.slow
def test_a_peer_that_cannot_go_on_says_why_in_the_same_form(tmp_path: Path, started: Processes) -> None:
    nobody = "amqp://{peer}@127.0.0.1:1"
    files = TrialFiles(tmp_path, ("anna", "bert"), broker=nobody, password_env="BROKER_PASSWORD")
    files.edit("anna", "# wait_s = 300.0", "wait_s = 0")
    ended = started.start(*files.run_arguments("anna"), "--log-format=json", environment=PASSWORDS).wait()
    assert ended.code == 6, ended.err
    last = [json.loads(line) for line in ended.err.splitlines()][-1]
    assert (last["level"], last["kind"], last["exit_code"]) == ("ERROR", "RelayUnreachable", 6)
    assert last["peer"] == "anna"
    assert last["hint"]
    files.check_no_secret(ended.err + ended.out)
