"""On a real RabbitMQ: with the rights of `relay plan` a peer can do its work, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import ProbableAuthenticationError

from ppdl_mq.errors import NotTaken
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.findings import Wanted
from ppdl_mq.transport.rabbitmq.doctor import examine
from tests.brokers.planned import PlannedTrial, password
from tests.rabbit import RabbitNode
from tests.transport.relays import eventually, receive_all
from tests.trial import TrialInProcess, manifest_for
from tests.trials.exact import assert_equal_bits, expected_state

pytestmark = pytest.mark.rabbitmq

PROTOCOLS = ("server-aided", "fully-connected", "masked-average")
MODES = {"administrator": False, "peers": True}  # who declares the inboxes
ANNA, BERT = "anna", "bert"
ENCRYPTION = ("tls",)  # these tests speak to a node of their own machine, in the clear

Make = Callable[..., PlannedTrial]


@pytest.fixture
def make(bare_node: RabbitNode, tmp_path: Path) -> Make:
    """Sets up a trial by plan; its name must be its own."""

    def planned(name: str, protocol: str, **choices: Any) -> PlannedTrial:
        trial = PlannedTrial(bare_node, manifest_for(name=name, protocol=protocol), tmp_path, **choices)
        trial.set_up()
        return trial

    return planned


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", MODES)
def test_a_whole_trial_runs_under_exactly_these_rights(make: Make, mode: str, protocol: str, tmp_path: Path) -> None:
    planned = make(f"by-{mode}-{protocol}", protocol, peers_declare=MODES[mode])
    trial = TrialInProcess(planned.manifest, tmp_path / "peers", planned.open)
    trial.run(timeout_s=120)
    assert len({trial.model(name) for name in planned.manifest.peer_names}) == 1
    if protocol != "masked-average":  # that average has an oracle of its own elsewhere
        expected = expected_state(planned.manifest, trial.splits)
        assert_equal_bits(trial.runners[ANNA].model_path, expected)
    weights = [planned.plan.weights] if planned.plan.weights else []
    if MODES[mode]:  # who made its inbox takes it away
        eventually(planned.waiting, dict.fromkeys(weights, "0"))
    else:
        eventually(planned.waiting, dict.fromkeys([*planned.plan.inboxes, *weights], "0"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", MODES)
def test_the_doctor_finds_nothing_amiss_in_what_was_planned(make: Make, mode: str, protocol: str) -> None:
    planned = make(f"well-{mode[:5]}-{protocol}", protocol, peers_declare=MODES[mode])
    wanted = Wanted(
        names=Names(prefix=planned.manifest.relay.prefix, trial=planned.manifest.name),
        me=ANNA,
        peers=planned.manifest.peer_names,
        shares_weights=protocol == "server-aided",
        chunk_bytes=planned.manifest.relay.chunk_bytes,
    )
    for peer in wanted.others:
        with planned.open(peer) as transport:
            transport.declare(peer)
    found = list(examine(planned.address(ANNA), wanted))
    assert {"read inbox", "read others", "publish", "publish elsewhere", "round trip"} <= {each.check for each in found}
    assert [each for each in found if each.result in ("fail", "warn") and each.check not in ENCRYPTION] == []


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_the_policy_applies_and_refuses_instead_of_dropping(make: Make, queue_type: str) -> None:
    planned = make(f"full-{queue_type}", "server-aided", queue_type=queue_type, max_queue_bytes=100_000)
    queues = planned.listed("list_queues", "name", "type", "policy")
    addresses = [*planned.plan.inboxes, planned.plan.weights]
    assert queues == sorted(f"{name}\t{queue_type}\tppdl.full-{queue_type}" for name in addresses)
    bodies = [bytes([number]) * 40_000 for number in range(12)]
    with planned.open(ANNA) as sender, planned.open(BERT) as reader:
        taken = []
        for body in bodies:
            try:
                sender.publish(BERT, [body])
                taken.append(body)
            except NotTaken:
                break
        assert 1 <= len(taken) < len(bodies)
        reader.declare(BERT)
        reader.subscribe(BERT)
        deliveries = receive_all(reader, len(taken))
        assert [delivery.body for delivery in deliveries] == taken  # the first of them, too
        reader.ack(deliveries)
        eventually(lambda: reader.depth(BERT), 0)
        sender.publish(BERT, [b"there is room again"])


# What no peer may do, in a trial `mine`; `other` is a second trial in the same vhost.
FORBIDDEN: dict[str, Callable[[Any], object]] = {
    "read another's inbox": lambda at: at.basic_get("ppdl.mine.bert"),
    "consume another's inbox": lambda at: at.basic_consume("ppdl.mine.bert", print),
    "empty another's inbox": lambda at: at.queue_purge("ppdl.mine.bert"),
    "remove another's inbox": lambda at: at.queue_delete("ppdl.mine.bert"),
    "declare another's inbox": lambda at: at.queue_declare("ppdl.mine.bert", durable=True),
    "unbind another's inbox": lambda at: at.queue_unbind("ppdl.mine.bert", "ppdl.mine", "bert"),
    "bind its inbox to another's key": lambda at: at.queue_bind("ppdl.mine.anna", "ppdl.mine", "bert"),
    "bind its inbox to the weights' key": lambda at: at.queue_bind("ppdl.mine.anna", "ppdl.mine", "weights"),
    "bind its inbox to every key": lambda at: at.queue_bind("ppdl.mine.anna", "ppdl.mine", "#"),
    "bind its inbox to one word": lambda at: at.queue_bind("ppdl.mine.anna", "ppdl.mine", "*"),
    "bind its inbox to a piece of its key": lambda at: at.queue_bind("ppdl.mine.anna", "ppdl.mine", "anna.#"),
    "bind its inbox to another trial": lambda at: at.queue_bind("ppdl.mine.anna", "ppdl.other", "anna"),
    "bind its inbox to the firehose": lambda at: at.queue_bind("ppdl.mine.anna", "amq.rabbitmq.trace", "#"),
    "bind another's inbox": lambda at: at.queue_bind("ppdl.mine.bert", "ppdl.mine", "anna"),
    "bind another exchange": lambda at: at.exchange_bind("amq.topic", "ppdl.mine", "anna"),
    "make a queue": lambda at: at.queue_declare("ppdl.mine.spy"),
    "make a queue without a name": lambda at: at.queue_declare("", exclusive=True),
    "make a queue beside its inbox": lambda at: at.queue_declare("ppdl.mine.anna2"),
    "make an exchange": lambda at: at.exchange_declare("ppdl.mine.anna-too", "topic"),
    "remove the exchange": lambda at: at.exchange_delete("ppdl.mine"),
    "remove the weights' queue": lambda at: at.queue_delete("ppdl.mine.weights"),
    "publish through the default exchange": lambda at: at.basic_publish("", "ppdl.mine.bert", b""),
    "publish to its own inbox through the default exchange": lambda at: at.basic_publish("", "ppdl.mine.anna", b""),
    "publish to another exchange": lambda at: at.basic_publish("amq.topic", "bert", b""),
    "publish to another trial": lambda at: at.basic_publish("ppdl.other", "bert", b""),
    "publish with a key of no peer": lambda at: at.basic_publish("ppdl.mine", "other", b""),
    "publish with a longer key": lambda at: at.basic_publish("ppdl.mine", "bert.x", b""),
    "read another trial's inbox": lambda at: at.basic_get("ppdl.other.anna"),
    "read another trial's weights": lambda at: at.basic_get("ppdl.other.weights"),
}


@pytest.fixture(scope="module", params=MODES)
def mine(bare_node: RabbitNode, tmp_path_factory: pytest.TempPathFactory, request: Any) -> PlannedTrial:
    """A trial of anna and bert, beside another trial of the same names in the same vhost."""
    folder = tmp_path_factory.mktemp("mine")
    choices = {"vhost": f"both-{request.param}", "peers_declare": MODES[request.param]}
    trials = [
        PlannedTrial(bare_node, manifest_for((ANNA, BERT), name=name, protocol="server-aided"), folder, **choices)
        for name in ("other", "mine")
    ]
    for trial in trials:
        trial.set_up()
        for peer in (ANNA, BERT):
            with trial.open(peer) as transport:
                transport.declare(peer)  # makes it, or checks that it is there
    return trials[-1]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_peer_may_not(mine: PlannedTrial, what: str) -> None:
    assert mine.is_refused(ANNA, FORBIDDEN[what])


def test_a_peer_may_do_its_work_on_a_plain_channel(mine: PlannedTrial) -> None:
    """Otherwise the refusals above would prove nothing."""
    assert not mine.is_refused(ANNA, lambda at: at.basic_get("ppdl.mine.anna"))
    assert not mine.is_refused(ANNA, lambda at: at.basic_get("ppdl.mine.weights"))
    assert not mine.is_refused(ANNA, lambda at: at.queue_purge("ppdl.mine.weights"))
    assert not mine.is_refused(ANNA, lambda at: at.basic_publish("ppdl.mine", "bert", b"", mandatory=True))
    assert not mine.is_refused(BERT, lambda at: at.queue_purge("ppdl.mine.bert"))


def test_a_peer_that_may_not_declare_cannot_touch_its_own_inbox_either(mine: PlannedTrial) -> None:
    may = mine.plan.choices.peers_declare
    rebind = mine.is_refused(ANNA, lambda at: at.queue_bind("ppdl.mine.anna", "ppdl.mine", "anna"))
    loop = mine.is_refused(ANNA, lambda at: at.exchange_bind("ppdl.mine", "ppdl.mine", "anna"))
    assert (rebind, loop) == (not may, not may)
    # Even with the exchange bound to itself a message comes once.
    assert not mine.is_refused(BERT, lambda at: at.basic_publish("ppdl.mine", "anna", b"once", mandatory=True))
    with mine.open(ANNA) as transport:
        transport.declare(ANNA)
        eventually(lambda: transport.depth(ANNA), 1)
        transport.purge(ANNA)


@pytest.mark.parametrize("exchange", ["", "amq.topic", "ppdl.other"])
def test_an_inbox_of_its_own_making_is_no_way_out(mine: PlannedTrial, exchange: str) -> None:
    """Dead letters would go past the rights of who publishes: to the default exchange, and so to any queue."""

    def make_anew(at: Any) -> None:
        at.queue_delete("ppdl.mine.anna")
        letters = {"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": "ppdl.other.bert"}
        at.queue_declare("ppdl.mine.anna", durable=True, arguments={"x-message-ttl": 0, **letters})

    assert mine.is_refused(ANNA, make_anew)
    with mine.open(ANNA) as transport:
        transport.declare(ANNA)


def test_after_an_import_nobody_can_log_in_before_the_password_is_set(make: Make) -> None:
    planned = make("shut", "server-aided")
    user = planned.users[ANNA]

    def log_in(word: str) -> None:
        parameters = pika.ConnectionParameters(
            "127.0.0.1", planned.node.port, planned.vhost, pika.PlainCredentials(user, word)
        )
        pika.BlockingConnection(parameters).close()

    log_in(password(user))
    planned.import_definitions()
    for word in (password(user), ""):
        with pytest.raises(ProbableAuthenticationError):
            log_in(word)
