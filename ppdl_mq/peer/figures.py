"""Which metrics a peer shows: one table, from the plain dict that status.json is written from to names of Prometheus.

docs/METRICS.md says what each means, in the same order; a test compares the two. What is not in the status (another
protocol has it, it is not known yet) is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ppdl_mq import __version__

Status = Mapping[str, Any]
Sample = tuple[tuple[str, ...], float]  # values of the labels, and the value
Read = Callable[[Status], Iterator[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One metric.

    Args:
        name: as Prometheus sees it; counters end in `_total`.
        kind: `counter` for what only grows while the process lives, else `gauge`.
        help: one line.
        read: its samples in a status.
        labels: their names.
        private: whether it tells of the organisation's samples, and is shown only where the settings say so.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    read: Read
    labels: tuple[str, ...] = ()
    private: bool = False


def _value(*path: str) -> Read:
    """Read one number, of a table within the status where the path has two words."""

    def read(status: Status) -> Iterator[Sample]:
        found: Any = status
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is not None:
            yield (), float(found)

    return read


def _count(name: str) -> Read:
    """Read how many names stand in a list."""

    def read(status: Status) -> Iterator[Sample]:
        if name in status:
            yield (), float(len(status[name]))

    return read


def _each(name: str) -> Read:
    """Read a table: one sample for each of its keys."""

    def read(status: Status) -> Iterator[Sample]:
        for key, found in status.get(name, {}).items():
            if found is not None:
                yield (key,), float(found)

    return read


def _names(name: str) -> Read:
    """Read a list of names: 1 for each; who is not in it is not shown."""

    def read(status: Status) -> Iterator[Sample]:
        for each in status.get(name, ()):
            yield (each,), 1.0

    return read


def _info(status: Status) -> Iterator[Sample]:
    if "trial_id" in status:
        yield (status["trial"], status["trial_id"], status["peer"], __version__), 1.0


def _phase(status: Status) -> Iterator[Sample]:
    if "phase" in status:
        yield (status["phase"],), 1.0


FIGURES: Final[tuple[Figure, ...]] = (
    Figure(
        name="ppdl_mq_peer_info",
        kind="gauge",
        help="Always 1; which trial and peer this is.",
        labels=("trial", "trial_id", "peer", "version"),
        read=_info,
    ),
    Figure(
        name="ppdl_mq_updated_timestamp_seconds",
        kind="gauge",
        help="When the peer's loop last came round, since 1970.",
        read=_value("updated"),
    ),
    # Where the trial is.
    Figure(
        name="ppdl_mq_phase",
        kind="gauge",
        help="1 for the phase that the peer is in.",
        labels=("phase",),
        read=_phase,
    ),
    Figure(
        name="ppdl_mq_phase_age_seconds",
        kind="gauge",
        help="How long it has been in it.",
        read=_value("phase_s"),
    ),
    Figure(
        name="ppdl_mq_phase_seconds_total",
        kind="counter",
        help="Time spent in each phase.",
        labels=("phase",),
        read=_each("phase_seconds"),
    ),
    Figure(name="ppdl_mq_turn", kind="gauge", help="Turn that the peer is at.", read=_value("turn")),
    Figure(name="ppdl_mq_turns", kind="gauge", help="Turns of the whole trial.", read=_value("turns")),
    Figure(name="ppdl_mq_round", kind="gauge", help="Round that the peer is at.", read=_value("round")),
    Figure(name="ppdl_mq_rounds", kind="gauge", help="Rounds of the whole trial.", read=_value("rounds")),
    Figure(
        name="ppdl_mq_step",
        kind="gauge",
        help="Step: rounds have odd numbers, their evaluations even ones.",
        read=_value("step"),
    ),
    Figure(name="ppdl_mq_attempt", kind="gauge", help="Attempt of the step, from 0.", read=_value("attempt")),
    Figure(name="ppdl_mq_members", kind="gauge", help="Peers that take part in the step.", read=_count("members")),
    Figure(name="ppdl_mq_word_bits", kind="gauge", help="Size of a word, 32 or 64.", read=_value("word")),
    # Who is waited for.
    Figure(
        name="ppdl_mq_waiting_for",
        kind="gauge",
        help="1 for each peer without whom this one cannot go on.",
        labels=("name",),
        read=_names("waiting_for"),
    ),
    Figure(
        name="ppdl_mq_without_inbox",
        kind="gauge",
        help="1 for each recipient that has no inbox at the relay.",
        labels=("name",),
        read=_names("not_there_yet"),
    ),
    # Traffic.
    Figure(
        name="ppdl_mq_received_messages_total",
        kind="counter",
        help="Messages taken from the own inbox.",
        read=_value("received"),
    ),
    Figure(
        name="ppdl_mq_received_bytes_total",
        kind="counter",
        help="Their bytes.",
        read=_value("received_bytes"),
    ),
    Figure(
        name="ppdl_mq_fetched_messages_total",
        kind="counter",
        help="Messages taken from the queue of the weights.",
        read=_value("fetched_messages"),
    ),
    Figure(
        name="ppdl_mq_fetched_bytes_total",
        kind="counter",
        help="Their bytes.",
        read=_value("fetched_bytes"),
    ),
    Figure(
        name="ppdl_mq_published_messages_total",
        kind="counter",
        help="Messages that the relay has confirmed.",
        read=_value("published_messages"),
    ),
    Figure(
        name="ppdl_mq_published_bytes_total",
        kind="counter",
        help="Their bytes.",
        read=_value("published_bytes"),
    ),
    # What went wrong.
    Figure(
        name="ppdl_mq_reconnects_total",
        kind="counter",
        help="Connections to the relay that broke.",
        read=_value("reconnects"),
    ),
    Figure(
        name="ppdl_mq_refused_messages_total",
        kind="counter",
        help="Messages refused, by the name of the error; kept over restarts.",
        labels=("reason",),
        read=_each("refused"),
    ),
    # Training.
    Figure(
        name="ppdl_mq_trainings_total",
        kind="counter",
        help="Turns, or rounds, that this peer has trained.",
        read=_value("training", "times"),
    ),
    Figure(
        name="ppdl_mq_training_seconds_total",
        kind="counter",
        help="Time spent in training them.",
        read=_value("training", "seconds"),
    ),
    # Private: of the organisation's samples.
    Figure(
        name="ppdl_mq_trained_steps_total",
        kind="counter",
        help="Steps of SGD in them.",
        read=_value("training", "steps"),
        private=True,
    ),
    Figure(
        name="ppdl_mq_trained_samples_total",
        kind="counter",
        help="Samples in these steps.",
        read=_value("training", "samples"),
        private=True,
    ),
    Figure(
        name="ppdl_mq_training_loss",
        kind="gauge",
        help="Mean loss over the last of them.",
        read=_value("training", "loss"),
        private=True,
    ),
    Figure(
        name="ppdl_mq_holdout_loss",
        kind="gauge",
        help="Loss on the own hold-out.",
        read=_value("training", "holdout_loss"),
        private=True,
    ),
    Figure(
        name="ppdl_mq_holdout_accuracy_ratio",
        kind="gauge",
        help="Accuracy on the own hold-out, 0 to 1.",
        read=_value("training", "holdout_accuracy"),
        private=True,
    ),
    Figure(
        name="ppdl_mq_evaluation_loss",
        kind="gauge",
        help="Loss over all hold-outs, which all peers know.",
        read=_value("evaluation", "loss"),
        private=True,
    ),
    Figure(
        name="ppdl_mq_evaluation_accuracy_ratio",
        kind="gauge",
        help="Accuracy over all hold-outs, 0 to 1.",
        read=_value("evaluation", "accuracy"),
        private=True,
    ),
)
