"""Rounds of masked-average between real peers that do not train: each a process with runner, journal and relay."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any, Final

from ppdl_mq.errors import TrainingError
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.progress import PROGRESS_NAME
from ppdl_mq.peer.protocols import vector_words
from ppdl_mq.peer.runner import Runner
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.report.bench.counting import Counted
from ppdl_mq.report.bench.pair import peak_bytes
from ppdl_mq.report.bench.round_job import RoundJob
from ppdl_mq.report.bench.stand_in import StandIn, largest_error, layout_of
from ppdl_mq.report.bench.together import Gate, together
from ppdl_mq.training.saving import load_model
from ppdl_mq.wire.trial_id import trial_id

_PATIENCE_S: Final = 600.0
_BASE_NAME: Final = "base.f32"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRounds:
    """One peer's account of the rounds, the uncounted first one included; times are seconds since 1970.

    Args:
        entered: when each turn began.
        released: when each turn ended; the same moment for all, but for how they are woken.
        agreed: when each round was agreed on by all.
        up_bytes: published in each counted round but the last, whose end nobody marks.
        down_bytes: received in them.
        sent: recipient and size of each message of the last of those.
        cpu_s: processor time of those rounds, without their turns.
        peak_bytes: most physical memory that the process ever held, mapped files included.
        program_bytes: what it held with the program alone.
        digest: of the model.
    """

    entered: tuple[float, ...]
    released: tuple[float, ...]
    agreed: tuple[float, ...]
    up_bytes: tuple[int, ...]
    down_bytes: tuple[int, ...]
    sent: tuple[tuple[str, int], ...]
    cpu_s: tuple[float, ...]
    peak_bytes: int
    program_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What a trial of rounds came to.

    Args:
        exchange_s: of each counted round: from the moment that all have their local weights to the moment that all
            have the agreed ones.
        whole_s: beside that, from there until all begin their next turn: all of a round but the training.
        up_bytes: of one peer in one round; the largest.
        down_bytes: the same.
        sent: by peer, recipient and size of each message of a round.
        cpu_s: processor time of a round, of all peers together; the median.
        peak_bytes: of the largest process.
        program_bytes: of the same, with the program alone.
        max_abs_error: of the last round's weights against the mean in float64.
    """

    exchange_s: tuple[float, ...]
    whole_s: tuple[float, ...]
    up_bytes: int
    down_bytes: int
    sent: dict[str, tuple[tuple[str, int], ...]]
    cpu_s: float
    peak_bytes: int
    program_bytes: int
    max_abs_error: float


def run_rounds(job: RoundJob) -> Rounds:
    """Run the trial with one process a peer.

    Raises:
        PpdlError: what one of the processes raised.
        TrainingError: the peers ended with different models.
    """
    accounts: dict[str, PeerRounds] = together(_peer, job, job.names, patience_s=_PATIENCE_S)
    if len({account.digest for account in accounts.values()}) != 1:
        raise TrainingError("The peers of the benchmark ended with different models.")
    first = job.names[0]
    (model,) = (job.folder / first).glob("*.safetensors")
    weights, _ = load_model(model, layout_of(job.params))
    error = largest_error(job.folder / _BASE_NAME, weights, peers=job.peers, number=job.rounds + 1)
    entered = _latest(account.entered for account in accounts.values())
    released = _latest(account.released for account in accounts.values())
    agreed = _latest(account.agreed for account in accounts.values())
    counted = range(1, job.rounds + 1)
    largest = max(accounts.values(), key=lambda account: account.peak_bytes)
    return Rounds(
        exchange_s=tuple(agreed[each] - released[each] for each in counted),
        whole_s=tuple(agreed[each] - released[each] + entered[each] - agreed[each - 1] for each in counted),
        up_bytes=max(max(account.up_bytes) for account in accounts.values()),
        down_bytes=max(max(account.down_bytes) for account in accounts.values()),
        cpu_s=statistics.median(
            sum(each) for each in zip(*(account.cpu_s for account in accounts.values()), strict=True)
        ),
        sent={name: account.sent for name, account in accounts.items()},
        peak_bytes=largest.peak_bytes,
        program_bytes=largest.program_bytes,
        max_abs_error=error,
    )


def _latest(times: Any) -> list[float]:
    return [max(moments) for moments in zip(*times, strict=True)]


def _peer(job: RoundJob, name: str, gate: Gate) -> PeerRounds:
    """Be one peer."""
    program_bytes = peak_bytes()
    manifest, identity, index = job.manifest(), job.identity(name), job.names.index(name)
    folder = job.folder / name
    transport = Counted(job.open_transport(name))
    worker = StandIn(
        index,
        job.params,
        gate,
        transport,
        last_round=job.rounds + 1,
        keep_base=job.folder / _BASE_NAME if index == 0 else None,
    )
    terms = Terms.of(
        manifest,
        identity,
        layout=worker.layout.digest(),
        software="ppdl-mq bench",
        words=vector_words(manifest, worker.layout),
    )
    journal = Journal(folder, trial_id=trial_id(manifest), identity=identity)
    try:
        runner = Runner(
            terms, manifest, identity, journal, worker, bytes(32), transport, broker_wait_s=10.0, patience_s=_PATIENCE_S
        )
        runner.run()
    finally:
        journal.close()
    notes = [json.loads(line) for line in (folder / PROGRESS_NAME).read_text(encoding="utf-8").splitlines()]
    (digest,) = (note["digest"] for note in notes if note["event"] == "final")
    between = [later.since(earlier) for earlier, later in zip(worker.counts[1:], worker.counts[2:], strict=False)]
    return PeerRounds(
        entered=tuple(worker.entered),
        released=tuple(worker.released),
        agreed=tuple(note["at"] for note in notes if note["event"] == "round"),
        up_bytes=tuple(each.up_bytes for each in between),
        down_bytes=tuple(each.down_bytes for each in between),
        sent=between[-1].sent,
        cpu_s=tuple(
            later - earlier for earlier, later in zip(worker.cpu_released[1:], worker.cpu_entered[2:], strict=False)
        ),
        peak_bytes=peak_bytes(),
        program_bytes=program_bytes,
        digest=digest,
    )
