"""On a real RabbitMQ: what the administrator's page says that a user could still do, and the lines that hold it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import NackError

from ppdl_mq.errors import RelayUnreachable
from ppdl_mq.transport.plan.lines import limit_lines
from ppdl_mq.transport.rabbitmq.doctor import examine
from tests.brokers.planned import PlannedTrial, password, run_lines
from tests.rabbit import RabbitNode
from tests.transport.relays import eventually
from tests.trial import TrialInProcess, manifest_for

pytestmark = pytest.mark.rabbitmq

MOST_BYTES = 10**6
BODY = bytes(10**5)
ANNA, BERT = "anna", "bert"

Make = Callable[..., PlannedTrial]


@pytest.fixture
def make(bare_node: RabbitNode, tmp_path: Path) -> Make:
    """Sets up a trial by plan; its name must be its own."""

    def planned(name: str, **choices: Any) -> PlannedTrial:
        manifest = manifest_for((ANNA, BERT), name=name, protocol="server-aided")
        trial = PlannedTrial(bare_node, manifest, tmp_path, **choices)
        trial.set_up()
        return trial

    return planned


@contextlib.contextmanager
def channel(trial: PlannedTrial, peer: str) -> Iterator[Any]:
    credentials = pika.PlainCredentials(trial.users[peer], password(trial.users[peer]))
    parameters = pika.ConnectionParameters("127.0.0.1", trial.node.port, trial.vhost, credentials)
    with pika.BlockingConnection(parameters) as connection:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened


def taken(at: Any, exchange: str, key: str) -> int:
    """Publish three times the limit; return how many messages the broker took."""
    for count in range(3 * MOST_BYTES // len(BODY)):
        try:
            at.basic_publish(exchange, key, BODY, mandatory=True)
        except NackError:
            return count
    return 3 * MOST_BYTES // len(BODY)


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_a_limit_does_not_count_what_was_fetched_and_not_acknowledged(make: Make, queue_type: str) -> None:
    trial = make(f"unacknowledged-{queue_type}", queue_type=queue_type, max_queue_bytes=MOST_BYTES)
    inbox = trial.plan.inboxes[0]
    with channel(trial, ANNA) as reader, channel(trial, ANNA) as writer:
        fetched: list[bytes] = []
        reader.basic_consume(inbox, lambda *found: fetched.append(found[-1]))

        def count() -> int:
            reader.connection.process_data_events(0)
            return len(fetched)

        for number in range(3 * MOST_BYTES // len(BODY)):
            writer.basic_publish(trial.plan.exchange, ANNA, BODY, mandatory=True)  # none is refused
            eventually(count, number + 1)
    with channel(trial, BERT) as other:
        assert taken(other, trial.plan.exchange, BERT) < 3 * MOST_BYTES // len(BODY), "the check of the check"


def test_a_header_reaches_every_queue_of_the_exchange_and_no_other(make: Make) -> None:
    trial = make("copies")
    with channel(trial, ANNA) as at:
        properties = pika.BasicProperties(headers={"CC": [BERT, "ppdl.copies.bert", "nobody"]})
        at.basic_publish(trial.plan.exchange, ANNA, b"", properties, mandatory=True)
    eventually(trial.waiting, {"ppdl.copies.anna": "1", "ppdl.copies.bert": "1", "ppdl.copies.weights": "0"})


@pytest.mark.parametrize("queue_type", ["classic", "stream"])
def test_an_inbox_of_another_type_is_held_by_the_operator_policy_alone(
    make: Make, queue_type: str, tmp_path: Path
) -> None:
    trial = make(f"another-{queue_type}", peers_declare=True, max_queue_bytes=MOST_BYTES)
    inbox = trial.plan.inboxes[0]

    def policy() -> str:
        rows = dict(line.split("\t") for line in trial.listed("list_queues", "name", "policy"))
        return rows[inbox]

    with channel(trial, ANNA) as at:
        at.queue_declare(inbox, durable=True, arguments={"x-queue-type": queue_type})
        at.queue_bind(inbox, trial.plan.exchange, ANNA)
        assert policy() == "", "the page says that the policy does not apply"
        run_lines(trial.node, tmp_path, limit_lines(trial.plan)[-1])
        if queue_type == "stream":
            return  # a stream drops its oldest segments, which are large
        for _ in range(3 * MOST_BYTES // len(BODY)):
            at.basic_publish(trial.plan.exchange, ANNA, BODY, mandatory=True)
        kept = at.queue_declare(inbox, passive=True).method.message_count
    assert kept <= MOST_BYTES // len(BODY) + 1


def test_a_trial_runs_within_the_limits_of_its_users(make: Make, tmp_path: Path) -> None:
    planned = make("limited")
    run_lines(planned.node, tmp_path, "\n".join(limit_lines(planned.plan)))
    for user in planned.users.values():
        assert '"max-connections":16' in planned.node.ctl("list_user_limits", "--user", user)
    trial = TrialInProcess(planned.manifest, tmp_path / "peers", planned.open)
    trial.run(timeout_s=120)
    assert len({trial.model(name) for name in planned.manifest.peer_names}) == 1


@pytest.mark.parametrize("whose", ["user", "vhost"])
def test_a_limit_on_connections_is_called_that_and_waited_for(make: Make, whose: str, tmp_path: Path) -> None:
    planned = make(f"many-{whose}")
    user = planned.users[ANNA]
    who = (user,) if whose == "user" else ("--vhost", planned.vhost)
    planned.node.ctl(f"set_{whose}_limits", *who, '{"max-connections": 1}')
    with channel(planned, ANNA):
        with pytest.raises(RelayUnreachable, match="its limit is reached"), planned.open(ANNA):
            pass
        (found,) = [each for each in examine(planned.address(ANNA), None) if each.result == "fail"]
        assert (found.check, found.passes) == ("login", True)
        assert "max-connections" in run_lines(planned.node, tmp_path, found.line)
