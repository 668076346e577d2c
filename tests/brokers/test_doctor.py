"""The doctor on a real RabbitMQ: each thing that is wrong is found, and nothing is changed by looking."""

from __future__ import annotations

import dataclasses
import os
import shlex
import socket
import threading
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayRefused
from ppdl_mq.transport.findings import Finding, Wanted, refuse_failures, verdict
from ppdl_mq.transport.opening import examine_relay, open_transport
from ppdl_mq.transport.rabbitmq.doctor import round_trip
from tests.brokers.scene import CHUNK_BYTES, free_port, look, of, wanted
from tests.rabbit import MAX_MESSAGE_BYTES, RabbitNode

pytestmark = pytest.mark.rabbitmq

VHOST = "doctor"
PASSWORD = "s3cret of mercy"


@pytest.fixture(scope="module")
def _vhost(rabbit_node: RabbitNode) -> Iterator[RabbitNode]:
    rabbit_node.start()
    rabbit_node.ctl("add_vhost", VHOST)
    rabbit_node.ctl("set_permissions", "-p", VHOST, "guest", ".*", ".*", ".*")
    rabbit_node.ctl("add_user", "mercy", PASSWORD)
    yield rabbit_node
    rabbit_node.start()
    rabbit_node.delete_user("mercy")
    rabbit_node.ctl("delete_vhost", VHOST)


@pytest.fixture
def node(_vhost: RabbitNode, rabbit: RabbitNode, monkeypatch: pytest.MonkeyPatch) -> RabbitNode:
    monkeypatch.setenv("MERCY_PASSWORD", PASSWORD)
    return rabbit


@pytest.fixture
def needs(request: pytest.FixtureRequest, node: RabbitNode) -> Iterator[Wanted]:
    """What the trial of this test needs; its exchange and queues are removed afterwards."""
    trial = f"t{zlib.crc32(request.node.name.encode())}"
    needs = wanted(trial)
    yield needs
    with node.channel(VHOST) as channel:
        for address in needs.addresses:
            channel.queue_delete(needs.names.queue(address))
        channel.exchange_delete(needs.names.exchange)


def as_guest(node: RabbitNode) -> BrokerAddress:
    return BrokerAddress.parse(node.url(vhost=VHOST))


def as_mercy(node: RabbitNode) -> BrokerAddress:
    address = BrokerAddress.parse(node.url("mercy", VHOST))
    return dataclasses.replace(address, password_env="MERCY_PASSWORD", declare=False)


def make(node: RabbitNode, needs: Wanted, **arguments: Any) -> None:
    """Make exchange, queues and bindings as an administrator does; `arguments` go to the inbox of mercy."""
    with node.channel(VHOST) as channel:
        channel.exchange_declare(needs.names.exchange, exchange_type="topic", durable=True)
        for address in needs.addresses:
            queue = needs.names.queue(address)
            channel.queue_declare(queue, durable=True, arguments=arguments if address == needs.me else None)
            channel.queue_bind(queue, needs.names.exchange, address)


def let(node: RabbitNode, needs: Wanted, *, write: str = "", read: str = "", keys: str = "") -> None:
    """Give mercy the rights that a peer needs, or others."""
    exchange = needs.names.exchange.replace(".", r"\.")
    node.ctl(
        *("set_permissions", "-p", VHOST, "mercy", "^$"),
        write or f"^{exchange}$",
        read or rf"^{exchange}\.(mercy|weights)$",
    )
    keys = keys or "^(basel|mercy|weights)$"
    node.ctl("set_topic_permissions", "-p", VHOST, "mercy", needs.names.exchange, keys, "^$")


def let_declare(node: RabbitNode, needs: Wanted, *, lacks: str = "") -> BrokerAddress:
    """Give mercy the rights of a peer that makes its own inbox, but for one; return its address."""
    exchange = needs.names.exchange.replace(".", r"\.")
    inbox = rf"|^{exchange}\.mercy$"
    node.ctl(
        *("set_permissions", "-p", VHOST, "mercy", inbox.removeprefix("|")),
        f"^{exchange}${'' if lacks == 'write' else inbox}",
        rf"^{exchange}\.weights${inbox}{'' if lacks == 'read' else f'|^{exchange}$'}",
    )
    keys = ("^(basel|mercy|weights)$", "^$" if lacks == "topic" else "^mercy$")
    node.ctl("set_topic_permissions", "-p", VHOST, "mercy", needs.names.exchange, *keys)
    return dataclasses.replace(as_mercy(node), declare=True)


def state_of(node: RabbitNode) -> str:
    """Everything in the vhost that a check could have changed."""
    return "".join(
        node.ctl(*command, "-p", VHOST)
        for command in (
            ("list_queues", "name", "messages", "consumers", "arguments"),
            ("list_exchanges",),
            ("list_bindings",),
        )
    )


def refused(findings: list[Finding]) -> RelayRefused:
    with pytest.raises(RelayRefused) as refusal:
        refuse_failures(findings)
    return refusal.value


def test_with_exactly_the_rights_that_a_peer_needs_all_is_well(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    let(node, needs)
    before = state_of(node)
    findings = look(as_mercy(node), needs)
    assert state_of(node) == before
    assert not of(findings, "fail")
    assert not of(findings, "warn"), findings
    assert of(findings, "unknown").keys() == {
        "exchange",
        "inbox arguments",
        "weights arguments",
        "policies",
        "bindings",
        "delivery timeout",
        "clock",
    }
    unknown = of(findings, "unknown")
    assert all(finding.todo and finding.line.startswith(("rabbitmqctl", "date -u")) for finding in unknown.values())
    assert f"this machine's says {datetime.now(UTC):%Y-%m-%d}" in unknown["clock"].says
    passed = of(findings, "pass")
    assert {"read inbox", "read weights", "publish", "publish elsewhere", "read others", "message size"} <= set(passed)
    assert passed["round trip"].figures["mb_per_s"]
    assert passed["message size"].figures["at_least_bytes"] == MAX_MESSAGE_BYTES
    assert refuse_failures(look(as_mercy(node), needs, thorough=False)) is None


def test_rights_that_no_peer_needs_are_warned_of(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    before = state_of(node)
    findings = look(as_guest(node), needs)
    assert state_of(node) == before
    warned = of(findings, "warn")
    assert warned.keys() == {"read others", "configure", "bind others", "keys", "publish elsewhere"}
    assert "basel" in warned["read others"].says
    exchange = needs.names.exchange.replace(".", r"\.")
    assert warned["configure"].line == (
        f"rabbitmqctl set_permissions -p {VHOST} guest '^$' '^{exchange}$' "
        f"'^({exchange}\\.mercy|{exchange}\\.weights)$'"
    )
    assert verdict(findings) == "unknown"


def test_the_line_for_a_peer_that_makes_its_inbox_leaves_it_that_right(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    with node.channel(VHOST) as channel:
        channel.queue_delete(needs.names.queue(needs.me))
    let(node, needs, write="^$")
    broker = dataclasses.replace(as_mercy(node), declare=True)
    command, *arguments = shlex.split(of(look(broker, needs, thorough=False), "fail")["publish"].line)
    assert command == "rabbitmqctl"
    node.ctl(*arguments)
    assert "configure" not in of(look(broker, needs), "fail")
    with node.channel(VHOST) as channel:
        channel.queue_delete(needs.names.queue(needs.me))
    make_it = dataclasses.replace(broker)
    assert "inbox" in of(look(make_it, needs), "pass")


def test_the_lines_that_are_printed_mend_what_they_are_printed_for(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    node.ctl("set_permissions", "-p", VHOST, "mercy", ".*", ".*", ".*")
    node.ctl("clear_topic_permissions", "-p", VHOST, "mercy")
    warned = of(look(as_mercy(node), needs), "warn")
    for check in ("configure", "keys"):
        command, *arguments = shlex.split(warned[check].line)
        assert command == "rabbitmqctl"
        node.ctl(*arguments)
    assert not of(look(as_mercy(node), needs), "warn")


@pytest.mark.parametrize(
    ("rights", "check", "says"),
    [
        ({"read": "^$"}, "read inbox", "may not read"),
        ({"read": r"\.mercy$"}, "read weights", "may not read"),
        ({"write": "^$"}, "publish", "may not write to the exchange"),
        ({"keys": "^(mercy|weights)$"}, "publish", "with the key basel"),
    ],
)
def test_a_missing_right(node: RabbitNode, needs: Wanted, rights: dict[str, str], check: str, says: str) -> None:
    make(node, needs)
    let(node, needs, **rights)
    findings = look(as_mercy(node), needs, thorough=False)
    failure = of(findings, "fail")[check]
    assert says in failure.says
    assert failure.line.startswith("rabbitmqctl set_")
    assert says in refused(findings).message or "may not" in refused(findings).message


def test_a_wrong_password(node: RabbitNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERCY_PASSWORD", "another")
    failure = of(look(as_mercy(node)), "fail")["login"]
    assert "refuses the password of user 'mercy'" in failure.says
    assert "authenticate_user mercy" in failure.line


def test_a_vhost_that_does_not_exist_and_one_that_is_closed_to_us(node: RabbitNode, needs: Wanted) -> None:
    unknown = dataclasses.replace(as_mercy(node), vhost="nowhere")
    assert of(look(unknown), "fail")["login"].line.startswith("rabbitmqctl list_vhosts ")
    closed = dataclasses.replace(as_mercy(node), vhost="/")
    assert "set_permissions -p / mercy '^$' '^$' '^$'" in of(look(closed), "fail")["login"].line
    for broker in (unknown, closed):  # the plan has both, and what else a peer needs
        assert "rabbitmqctl.sh" in of(look(broker, needs), "fail")["login"].line


def test_what_an_administrator_has_not_made(node: RabbitNode, needs: Wanted) -> None:
    let(node, needs)
    findings = look(as_mercy(node), needs, thorough=False)
    assert of(findings, "fail").keys() == {"exchange", "inbox", "weights"}
    assert "sh plan/rabbitmqctl.sh" in str(refused(findings))


def test_what_the_peer_makes_itself_is_made_by_the_check_alone_not_before_a_run(
    node: RabbitNode, needs: Wanted
) -> None:
    before = state_of(node)
    assert not of(look(as_guest(node), needs, thorough=False), "fail")
    assert state_of(node) == before
    assert not of(look(as_guest(node), needs), "fail")
    with open_transport(as_guest(node), trial=needs.names.trial, prefix=needs.names.prefix, peer="basel") as transport:
        assert transport.depth("mercy") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"x-message-ttl": 5000}, "dropped after 5000 ms"),
        ({"x-expires": 60000}, "nobody reads it for 60000 ms"),
        ({"x-max-length": 10}, "beyond 10 (max-length) messages are dropped (drop-head)"),
        ({"x-max-length-bytes": 10**6, "x-overflow": "drop-head"}, "beyond 1000000 (max-length-bytes)"),
        ({"x-queue-type": "quorum", "x-delivery-limit": 3}, "handed out 3 times"),
        ({"x-queue-type": "stream"}, "is a stream"),
        ({"x-single-active-consumer": True}, "one consumer at a time (x-single-active-consumer)"),
        ({"x-queue-type": "quorum", "x-single-active-consumer": True}, "(x-single-active-consumer)"),
        ({"x-message-ttl": 5000, "x-single-active-consumer": False}, "dropped after 5000 ms"),
    ],
)
def test_a_queue_with_arguments_that_lose_messages(
    node: RabbitNode, needs: Wanted, arguments: dict[str, Any], says: str
) -> None:
    make(node, needs, **arguments)
    before = state_of(node)
    findings = look(as_guest(node), needs, thorough=False)
    assert state_of(node) == before
    said = [finding for finding in findings if finding.check == "arguments" and finding.result in ("warn", "fail")]
    assert says in said[0].says
    if "x-delivery-limit" not in arguments:
        assert "delete_queue" in str(refused(findings))


def test_a_limit_that_rejects_is_a_warning(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs, **{"x-max-length": 1000, "x-overflow": "reject-publish"})
    findings = look(as_guest(node), needs)
    assert not of(findings, "fail"), findings
    assert "max-length 1000; senders wait" in of(findings, "warn")["arguments"].says


def test_an_exchange_of_another_type(node: RabbitNode, needs: Wanted) -> None:
    with node.channel(VHOST) as channel:
        channel.exchange_declare(needs.names.exchange, exchange_type="fanout", durable=True)
    findings = look(as_guest(node), needs, thorough=False)
    assert "has type fanout; a durable topic exchange" in of(findings, "fail")["exchange"].says
    line = of(findings, "fail")["exchange"].line
    assert line in str(refused(findings))
    node.ctl(*shlex.split(line)[1:])
    assert not of(look(as_guest(node), needs, thorough=False), "fail")  # and makes it anew


def test_an_exchange_that_sends_elsewhere_what_it_cannot_deliver(node: RabbitNode, needs: Wanted) -> None:
    with node.channel(VHOST) as channel:
        arguments = {"alternate-exchange": "amq.fanout"}
        channel.exchange_declare(needs.names.exchange, exchange_type="topic", durable=True, arguments=arguments)
    findings = look(as_guest(node), needs, thorough=False)
    assert "goes on to amq.fanout" in of(findings, "warn")["exchange"].says


def test_a_broker_that_takes_less_than_a_chunk(node: RabbitNode, needs: Wanted) -> None:
    large = dataclasses.replace(needs, chunk_bytes=MAX_MESSAGE_BYTES + 1)
    findings = look(as_guest(node), large, thorough=False)
    failure = of(findings, "fail")["message size"]
    assert f"messages of {MAX_MESSAGE_BYTES} bytes at most" in failure.says
    assert failure.figures["advised_chunk_bytes"] == MAX_MESSAGE_BYTES
    assert f"max_message_size = {MAX_MESSAGE_BYTES + 1}" in str(refused(findings))


def test_a_broker_that_takes_no_chunk_of_any_trial(node: RabbitNode, needs: Wanted) -> None:
    node.ctl("eval", "application:set_env(rabbit, max_message_size, 1000).")
    try:
        findings = look(as_guest(node), needs, thorough=False)
    finally:
        node.ctl("eval", f"application:set_env(rabbit, max_message_size, {MAX_MESSAGE_BYTES}).")
    failure = of(findings, "fail")["message size"]
    assert "of 1000 bytes at most; the smallest chunks have 4096" in failure.says
    assert "chunk_bytes" not in failure.todo
    assert failure.line.startswith(f"max_message_size = {needs.chunk_bytes} ")


def test_an_inbox_that_is_bound_to_nothing(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    with node.channel(VHOST) as channel:
        channel.queue_unbind(needs.names.queue("mercy"), needs.names.exchange, "mercy")
    for thorough in (True, False):
        failure = of(look(as_mercy_with_rights(node, needs), needs, thorough=thorough), "fail")["round trip"]
        assert "no binding with 'mercy'" in failure.says
        assert not failure.passes
    # A peer that declares binds its inbox when it starts.
    warning = of(look(as_guest(node), needs, thorough=False), "warn")["round trip"]
    assert "binds its inbox" in warning.todo


def test_where_nothing_can_be_read_nothing_is_sent(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    let(node, needs, read=rf"^{needs.names.exchange}\.weights$")
    for thorough in (True, False):
        assert of(look(as_mercy(node), needs, thorough=thorough), "fail").keys() == {"read inbox"}
        assert waiting(node, needs) == 0


def test_an_inbox_that_can_only_be_subscribed_to_keeps_nothing_of_the_check(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs, **{"x-queue-type": "quorum", "x-single-active-consumer": True})
    for thorough in (True, False):
        findings = look(as_mercy_with_rights(node, needs), needs, thorough=thorough)
        assert "single active consumer" in of(findings, "fail")["round trip"].says
        assert "single active consumer" in refused(findings).message
        assert waiting(node, needs) == 0


def test_a_stream_whose_type_does_not_show(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs, **{"x-queue-type": "stream"})
    for thorough in (True, False):
        findings = look(as_mercy_with_rights(node, needs), needs, thorough=thorough)
        failure = of(findings, "fail")["round trip"]
        assert "not supported by stream queues" in failure.says
        assert failure.line.startswith(f"rabbitmqctl list_queues -p {VHOST} name type arguments | grep ")
        assert "a type from which peers cannot fetch" in refused(findings).message
        assert waiting(node, needs) == 0


TO_BIND = ("write", "read", "topic")  # the rights that it takes


@pytest.mark.parametrize("lacks", TO_BIND)
@pytest.mark.parametrize("thorough", [True, False])
def test_an_inbox_that_the_peer_may_make_and_not_bind(
    node: RabbitNode, needs: Wanted, lacks: str, thorough: bool
) -> None:
    make(node, needs)
    with node.channel(VHOST) as channel:
        channel.queue_delete(needs.names.queue("mercy"))
    before = state_of(node)
    findings = look(let_declare(node, needs, lacks=lacks), needs, thorough=thorough)
    assert state_of(node) == before
    assert of(findings, "fail").keys() == {"bind"}
    assert "may not bind its inbox" in refused(findings).message
    assert "made with --peers-declare" in refused(findings).hint
    assert "sh plan/rabbitmqctl.sh" in refused(findings).hint


@pytest.mark.parametrize("lacks", TO_BIND)
@pytest.mark.parametrize("thorough", [True, False])
def test_an_inbox_that_is_there_and_that_the_peer_may_not_bind(
    node: RabbitNode, needs: Wanted, lacks: str, thorough: bool
) -> None:
    """It will do where somebody has bound it."""
    make(node, needs)
    broker = let_declare(node, needs, lacks=lacks)
    assert not of(look(broker, needs, thorough=thorough), "fail")
    with node.channel(VHOST) as channel:
        channel.queue_unbind(needs.names.queue("mercy"), needs.names.exchange, "mercy")
    findings = look(broker, needs, thorough=thorough)
    assert of(findings, "fail").keys() == {"bind"}
    assert "may not bind its inbox" in refused(findings).message
    assert waiting(node, needs) == 0


@pytest.mark.parametrize("thorough", [True, False])
def test_an_inbox_that_the_peer_may_make_and_bind(node: RabbitNode, needs: Wanted, thorough: bool) -> None:
    make(node, needs)
    with node.channel(VHOST) as channel:
        channel.queue_delete(needs.names.queue("mercy"))
    findings = look(let_declare(node, needs), needs, thorough=thorough)
    assert not of(findings, "fail")
    assert "may bind" in of(findings, "pass")["bind"].says


def test_an_inbox_that_the_peer_neither_makes_nor_binds(node: RabbitNode, needs: Wanted) -> None:
    """With `declare` the peer binds what it may make, and nothing else."""
    make(node, needs)
    with node.channel(VHOST) as channel:
        channel.queue_unbind(needs.names.queue("mercy"), needs.names.exchange, "mercy")
    let(node, needs)
    findings = look(dataclasses.replace(as_mercy(node), declare=True), needs, thorough=False)
    assert "no binding with 'mercy'" in refused(findings).message


def as_mercy_with_rights(node: RabbitNode, needs: Wanted) -> BrokerAddress:
    let(node, needs)
    return as_mercy(node)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ('{"max-length": 2}', "dropped it again"),
        ('{"message-ttl": 0}', "dropped it again"),
        ('{"max-length-bytes": 150000, "overflow": "reject-publish"}', "does not hold"),
    ],
)
def test_a_policy_that_shows_in_the_round_trip(node: RabbitNode, needs: Wanted, policy: str, says: str) -> None:
    make(node, needs)
    node.ctl("set_policy", "-p", VHOST, "narrow", f"^{needs.names.exchange}", policy, "--apply-to", "queues")
    try:
        failure = of(look(as_guest(node), needs), "fail")["round trip"]
    finally:
        node.ctl("clear_policy", "-p", VHOST, "narrow")
    assert says in failure.says
    assert waiting(node, needs) == 0


def waiting(node: RabbitNode, needs: Wanted) -> int:
    with node.channel(VHOST) as channel:
        return int(channel.queue_declare(needs.names.queue(needs.me), passive=True).method.message_count)


@pytest.mark.parametrize(
    ("policy", "says", "passes"),
    [
        ('{"max-length": 2}', "confirmed one of 5 small messages and dropped it again", False),
        ('{"message-ttl": 0}', "confirmed one of 5 small messages and dropped it again", False),
        ('{"max-length": 2, "overflow": "reject-publish"}', "does not hold 5 small messages", True),
    ],
)
def test_a_policy_that_shows_before_a_run(
    node: RabbitNode, needs: Wanted, policy: str, says: str, passes: bool
) -> None:
    make(node, needs)
    node.ctl("set_policy", "-p", VHOST, "narrow", f"^{needs.names.exchange}", policy, "--apply-to", "queues")
    try:
        findings = look(as_guest(node), needs, thorough=False)
    finally:
        node.ctl("clear_policy", "-p", VHOST, "narrow")
    failure = of(findings, "fail")["round trip"]
    assert says in failure.says
    assert failure.line.startswith("rabbitmqctl list_queues")
    assert failure.passes == passes
    assert waiting(node, needs) == 0


def test_a_queue_that_does_not_answer_before_a_run_may_come_back(
    node: RabbitNode, needs: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has lost most of its copies: no confirm ever comes."""
    monkeypatch.setattr(round_trip, "_SOON_S", 1.0)
    make(node, needs, **{"x-queue-type": "quorum"})
    process = f"{{'{VHOST}_{needs.names.queue(needs.me)}', node()}}"
    node.ctl("eval", f"sys:suspend({process}).")
    try:
        findings = look(as_mercy_with_rights(node, needs), needs, thorough=False)
    finally:
        node.ctl("eval", f"sys:resume({process}).")
    failure = of(findings, "fail")["round trip"]
    assert "does not answer" in failure.says
    assert failure.passes


def test_what_arrives_during_the_look_before_a_run_stays_there(
    node: RabbitNode, needs: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another peer has begun, too: its message is not taken, and nothing of ours stays."""
    make(node, needs)
    send, key = round_trip._send, needs.me

    def beside(channel: Any, way: Any, body: bytes, mark: str) -> None:
        if mark == "2":
            channel.basic_publish(needs.names.exchange, key, b"sealed")
        send(channel, way, body, mark)

    monkeypatch.setattr(round_trip, "_send", beside)
    assert not of(look(as_guest(node), needs, thorough=False), "fail")
    with node.channel(VHOST) as channel:
        assert [channel.basic_get(needs.names.queue(key), auto_ack=True)[2] for _ in range(2)] == [b"sealed", None]


def test_a_broker_that_is_full(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    node.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        findings = look(as_guest(node), needs, thorough=False)
    finally:
        node.ctl("set_vm_memory_high_watermark", "0.4")
    failure = of(findings, "fail")["room"]
    assert failure.says == "The broker takes no messages at the moment: low on memory."
    assert failure.passes
    assert refuse_failures(findings) is None  # the peer waits until there is room


def test_messages_of_a_running_trial_stay_where_they_are(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    with node.channel(VHOST) as channel:
        channel.basic_publish(needs.names.exchange, "mercy", b"sealed")
        channel.basic_publish(needs.names.exchange, "weights", b"weights")
        findings = look(as_guest(node), needs)
        assert "is in use" in of(findings, "unknown")["round trip"].says
        for address, body in (("mercy", b"sealed"), ("weights", b"weights")):
            method, _, came = channel.basic_get(needs.names.queue(address))
            assert came == body
            assert not method.redelivered


def test_a_peer_that_reads_its_inbox_is_not_disturbed(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    names = needs.names
    with open_transport(as_guest(node), trial=names.trial, prefix=names.prefix, peer="mercy") as peer:
        peer.subscribe("mercy")
        findings = look(as_guest(node), needs)
        assert peer.receive(timeout_s=0.2) is None
    assert "is in use" in of(findings, "unknown")["round trip"].says


def test_an_impersonator_is_not_probed_any_further(node: RabbitNode, needs: Wanted) -> None:
    """Its probes would not be refused: nothing may reach an inbox."""
    make(node, needs)
    node.ctl("set_permissions", "-p", VHOST, "mercy", ".*", ".*", ".*")
    node.ctl("clear_topic_permissions", "-p", VHOST, "mercy")
    node.ctl("set_user_tags", "mercy", "impersonator")
    try:
        findings = look(as_mercy(node), needs)
    finally:
        node.ctl("set_user_tags", "mercy")
    assert "impersonator" in of(findings, "warn")["publish"].says
    with node.channel(VHOST) as channel:
        for address in needs.addresses:
            assert channel.queue_declare(needs.names.queue(address), passive=True).method.message_count == 0


def test_one_dead_host_of_several_is_a_warning(node: RabbitNode) -> None:
    broker = BrokerAddress.parse(f"amqp://guest@127.0.0.1:{free_port()},127.0.0.1:{node.port}/{VHOST}")
    findings = look(broker)
    assert not of(findings, "fail")
    assert "Connection refused" in of(findings, "warn")["reach"].says


@pytest.mark.parametrize(
    ("url", "check"), [("amqp://guest@no-such-host.invalid", "name"), ("amqp://guest@127.0.0.1:{port}", "reach")]
)
def test_a_broker_that_is_not_there_may_come(url: str, check: str) -> None:
    findings = look(BrokerAddress.parse(url.format(port=free_port())))
    assert of(findings, "fail")[check].passes
    assert refuse_failures(findings) is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is an HTTP server"),
        (b"AMQP\x00\x01\x00\x00", "another version of AMQP"),
        (b"\x01garbage that is no frame", "is no AMQP broker"),
        (b"220 mail.example ESMTP\r\n", "is no AMQP broker"),
        (b"", "hangs up without a word"),
    ],
)
def test_something_else_on_the_port(answer: bytes, says: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(8)
                    connection.sendall(answer)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        port = listener.getsockname()[1]
        (failure,) = of(look(BrokerAddress.parse(f"amqp://guest@127.0.0.1:{port}")), "fail").values()
        listener.shutdown(socket.SHUT_RDWR)
    server.join(10.0)
    assert says in failure.says
    assert failure.check == "greeting"


def test_a_finding_holds_no_password(node: RabbitNode, needs: Wanted) -> None:
    make(node, needs)
    let(node, needs)
    assert os.environ["MERCY_PASSWORD"] == PASSWORD
    said = str([finding.data() for finding in examine_relay(as_mercy(node), needs)])
    assert PASSWORD not in said
    assert str(CHUNK_BYTES) in said
