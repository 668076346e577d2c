"""Transcripts of whole honest trials, as their peers would hand them over."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.audit.verdict import verify_logs
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.entries import LOG_NAME
from tests.trial import PEERS, TrialInProcess, manifest_for

PROTOCOLS: dict[str, dict[str, Any]] = {
    "server-aided": {},
    "fully-connected": {},
    "masked-average": {"averaging": {"evaluate_every": 1}, "training__epochs": 2},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_found_in_an_honest_trial(protocol: str, tmp_path: Path) -> None:
    relay = MemoryRelay()
    manifest = manifest_for(protocol=protocol, **PROTOCOLS[protocol])
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay))
    trial.run()
    logs = [tmp_path / name / LOG_NAME for name in PEERS]
    for count in range(1, len(PEERS) + 1):
        for chosen in combinations(logs, count):
            verdict = verify_logs(chosen)
            assert verdict.holds, verdict.findings
            assert verdict.agreed_steps == max(log.last_step for log in verdict.logs) > 0
