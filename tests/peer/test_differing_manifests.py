"""A peer with another manifest: people are told, and are still told by the next run, which waits for the right one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ppdl_mq.config import limits
from ppdl_mq.errors import ManifestMismatch
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from tests.trial import WAIT_S, TrialInProcess, manifest_for, until

NAMES = ("anna", "bert")
PATIENCE_S = 0.5


def test_the_next_run_says_it_until_the_right_one_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ppdl_mq")
    monkeypatch.setattr(limits, "MISMATCH_GRACE_S", 0.5)
    relay = MemoryRelay()
    ours, theirs = (manifest_for(NAMES, training__learning_rate=rate) for rate in (0.1, 0.2))
    trial = TrialInProcess(
        ours, tmp_path, lambda _: MemoryTransport(relay), manifests={"bert": theirs}, patience_s=PATIENCE_S
    )
    for thread in trial.start(*NAMES):
        thread.join(WAIT_S)
    for name in NAMES:
        error = trial.errors.pop(name)
        assert isinstance(error, ManifestMismatch)
        assert "training.learning_rate differs" in error.message
    caplog.clear()
    (anna,) = trial.start("anna")
    until(lambda: "bert (had another manifest when it was last heard: training.learning_rate)" in caplog.text)
    until(lambda: trial.status("anna").get("other_manifests") == {"bert": ["training.learning_rate"]})
    assert anna.is_alive()
    trial.manifests = {}
    (tmp_path / "bert").rename(tmp_path / "bert of another trial")
    (bert,) = trial.start("bert")
    for thread in (anna, bert):
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert not trial.errors
    assert trial.status("anna")["other_manifests"] == {}
