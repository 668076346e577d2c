from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.peer import hands
from ppdl_mq.peer.progress import PROGRESS_NAME, final_entry
from ppdl_mq.training.saving import save_model
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from tests.trial import WAIT_S, TrialInProcess, manifest_for


class Killed(BaseException):
    """The process is gone."""


def test_who_dies_when_the_model_is_written_has_noted_how_good_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = MemoryRelay()
    manifest = manifest_for(("anna", "bert"), training__epochs=1)
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay), patience_s=0.3)
    written: list[Path] = []

    def dies(path: Path, *others: Any) -> None:
        save_model(path, *others)
        written.append(path)
        if path.parent.name == "anna":
            path.unlink()  # it was not on disk yet
            raise Killed

    monkeypatch.setattr(hands, "save_model", dies)
    anna, bert = trial.start("anna", "bert")
    for _ in range(2):
        anna.join(WAIT_S)
        assert isinstance(trial.errors.pop("anna"), Killed)
        (anna,) = trial.start("anna")
    anna.join(WAIT_S)
    assert isinstance(trial.errors.pop("anna"), Killed)
    monkeypatch.setattr(hands, "save_model", save_model)
    for thread in (*trial.start("anna"), bert):
        thread.join(WAIT_S)
    assert not trial.errors
    assert sorted(path.parent.name for path in written) == ["anna", "anna", "anna", "bert"]
    for name in trial.manifest.peer_names:
        lines = (tmp_path / name / PROGRESS_NAME).read_text().splitlines()
        assert [json.loads(line)["event"] for line in lines].count("final") == 1


@pytest.mark.parametrize("found", [b"\xff\xfe", b'[""event": "final""]\n', b'{"event": "final"\n'])
def test_a_progress_that_is_damaged_ends_nothing(tmp_path: Path, found: bytes) -> None:
    (tmp_path / PROGRESS_NAME).write_bytes(found)
    assert final_entry(tmp_path) is None
