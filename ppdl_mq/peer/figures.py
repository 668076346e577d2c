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


def _relay_state(status: Status) -> Iterator[Sample]:
    if "relay" in status:
        yield (status["relay"]["state"],), 1.0


def _gauge(name: str, description: str, read: Read, *labels: str, private: bool = False) -> Figure:
    return Figure(name=name, kind="gauge", help=description, read=read, labels=labels, private=private)


def _counter(name: str, description: str, read: Read, *labels: str, private: bool = False) -> Figure:
    return Figure(name=name, kind="counter", help=description, read=read, labels=labels, private=private)


FIGURES: Final[tuple[Figure, ...]] = (
    _gauge(
        "ppdl_mq_peer_info", "Always 1; which trial and peer this is.", _info, "trial", "trial_id", "peer", "version"
    ),
    _gauge("ppdl_mq_updated_timestamp_seconds", "When the peer's loop last came round, since 1970.", _value("updated")),
    # Where the trial is.
    _gauge("ppdl_mq_phase", "1 for the phase that the peer is in.", _phase, "phase"),
    _gauge("ppdl_mq_phase_age_seconds", "How long it has been in it.", _value("phase_s")),
    _counter("ppdl_mq_phase_seconds_total", "Time spent in each phase.", _each("phase_seconds"), "phase"),
    _gauge("ppdl_mq_turn", "Turn that the peer is at.", _value("turn")),
    _gauge("ppdl_mq_turns", "Turns of the whole trial.", _value("turns")),
    _gauge("ppdl_mq_round", "Round that the peer is at.", _value("round")),
    _gauge("ppdl_mq_rounds", "Rounds of the whole trial.", _value("rounds")),
    _gauge("ppdl_mq_step", "Step: rounds have odd numbers, their evaluations even ones.", _value("step")),
    _gauge("ppdl_mq_attempt", "Attempt of the step, from 0.", _value("attempt")),
    _gauge("ppdl_mq_members", "Peers that take part in the step.", _count("members")),
    _gauge("ppdl_mq_word_bits", "Size of a word, 32 or 64.", _value("word")),
    # Who is waited for.
    _gauge("ppdl_mq_waiting_for", "1 for each peer without whom this one cannot go on.", _names("waiting_for"), "name"),
    _gauge(
        "ppdl_mq_without_inbox", "1 for each recipient that has no inbox at the relay.", _names("not_there_yet"), "name"
    ),
    _gauge(
        "ppdl_mq_waiting_since_timestamp_seconds",
        "Since when, for each of them, since 1970.",
        _each("waiting_since"),
        "name",
    ),
    _gauge(
        "ppdl_mq_last_contact_timestamp_seconds",
        "When a message of each peer was last accepted, since 1970.",
        _each("last_contact"),
        "name",
    ),
    # The relay.
    _gauge("ppdl_mq_relay_state", "1 for the state of the connection to the relay.", _relay_state, "state"),
    _gauge(
        "ppdl_mq_relay_state_since_timestamp_seconds", "When that state began, since 1970.", _value("relay", "since")
    ),
    _gauge("ppdl_mq_relay_failed_tries", "Attempts in a row to connect that failed.", _value("relay", "tries")),
    _counter("ppdl_mq_reconnects_total", "Connections to the relay that broke.", _value("reconnects")),
    _gauge(
        "ppdl_mq_inbox_messages",
        "Messages in the own inbox at the relay that were not handed out yet.",
        _value("inbox_messages"),
    ),
    _gauge(
        "ppdl_mq_unsent_messages", "Messages that the relay has not confirmed, by recipient.", _each("unsent"), "name"
    ),
    # Traffic.
    _counter("ppdl_mq_received_messages_total", "Messages taken from the own inbox.", _value("received")),
    _counter("ppdl_mq_received_bytes_total", "Their bytes.", _value("received_bytes")),
    _counter(
        "ppdl_mq_fetched_messages_total", "Messages taken from the queue of the weights.", _value("fetched_messages")
    ),
    _counter("ppdl_mq_fetched_bytes_total", "Their bytes.", _value("fetched_bytes")),
    _counter(
        "ppdl_mq_published_messages_total", "Messages that the relay has confirmed.", _value("published_messages")
    ),
    _counter("ppdl_mq_published_bytes_total", "Their bytes.", _value("published_bytes")),
    # What went wrong.
    _counter(
        "ppdl_mq_asked_again_total", "Times that this peer asked for what had not come in time.", _value("asked_again")
    ),
    _counter(
        "ppdl_mq_sent_again_total",
        "Times that it sent everything again because another asked for it.",
        _value("sent_again"),
    ),
    _counter(
        "ppdl_mq_refused_messages_total",
        "Messages refused, by the name of the error; kept over restarts.",
        _each("refused"),
        "reason",
    ),
    _gauge(
        "ppdl_mq_quarantine_records",
        "Refused messages whose head is set aside for a person to look at.",
        _value("set_aside", "records"),
    ),
    _gauge("ppdl_mq_quarantine_bytes", "Their bytes.", _value("set_aside", "bytes")),
    # Training.
    _gauge(
        "ppdl_mq_checkpoint_timestamp_seconds",
        "When the checkpoint of the turn under way was written, since 1970.",
        _value("checkpoint_at"),
    ),
    _counter("ppdl_mq_trainings_total", "Turns, or rounds, that this peer has trained.", _value("training", "times")),
    _counter("ppdl_mq_training_seconds_total", "Time spent in training them.", _value("training", "seconds")),
    # Private: of the organisation's samples. (What a trial costs depends on how many there are.)
    _gauge(
        "ppdl_mq_privacy_epsilon",
        "What the trial has cost of the privacy budget so far.",
        _value("privacy", "epsilon"),
        private=True,
    ),
    _gauge("ppdl_mq_privacy_epsilon_budget", "What it may cost at most.", _value("privacy", "budget"), private=True),
    _counter("ppdl_mq_trained_steps_total", "Steps of SGD in them.", _value("training", "steps"), private=True),
    _counter("ppdl_mq_trained_samples_total", "Samples in these steps.", _value("training", "samples"), private=True),
    _gauge("ppdl_mq_training_loss", "Mean loss over the last of them.", _value("training", "loss"), private=True),
    _gauge("ppdl_mq_holdout_loss", "Loss on the own hold-out.", _value("training", "holdout_loss"), private=True),
    _gauge(
        "ppdl_mq_holdout_accuracy_ratio",
        "Accuracy on the own hold-out, 0 to 1.",
        _value("training", "holdout_accuracy"),
        private=True,
    ),
    _gauge(
        "ppdl_mq_evaluation_loss",
        "Loss over all hold-outs, which all peers know.",
        _value("evaluation", "loss"),
        private=True,
    ),
    _gauge(
        "ppdl_mq_evaluation_accuracy_ratio",
        "Accuracy over all hold-outs, 0 to 1.",
        _value("evaluation", "accuracy"),
        private=True,
    ),
)
