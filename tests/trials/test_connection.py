"""What a real broker does to a trial in the middle: it runs full, loses queues, users, its exchange, or its patience.

Each trial ends with the bits of the undisturbed one.
"""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pika import exceptions as amqp

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import Interrupted, Unroutable
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_transport
from tests.rabbit import RabbitNode, why_absent
from tests.transport.relays import eventually, new_trial, rabbit_address
from tests.trial import TrialInProcess, manifest_for
from tests.trials.exact import assert_equal_bits, expected_state

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]

LIMIT_S = 150.0
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitNode]:
    """A node of this file's own, that may be maltreated."""
    if reason := why_absent():
        pytest.skip(reason)
    with RabbitNode() as node:
        yield node


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no wait between two tries be long."""
    monkeypatch.setattr(limits, "BACKOFF_LAST_S", 2.0)


class Scene:
    """One trial of three peers in this process, on `node`."""

    def __init__(self, node: RabbitNode, folder: Path, protocol: str, *, patience_s: float, **broker: Any) -> None:
        training = {"learning_rate": 0.05, "batch_size": 4, "epochs": 6, "turns_per_epoch": 2}
        self.manifest: Manifest = manifest_for(name=new_trial(), protocol=protocol, training=training)
        self.address: BrokerAddress = rabbit_address(node, **broker)
        self.prefix = f"{self.manifest.relay.prefix}.{self.manifest.name}"
        self.trial = TrialInProcess(self.manifest, folder, self.open, patience_s=patience_s)
        self.threads: dict[str, threading.Thread] = {}

    def open(self, peer: str) -> Transport:
        return open_transport(self.address, trial=self.manifest.name, prefix=self.manifest.relay.prefix, peer=peer)

    def start(self, *names: str) -> None:
        for thread in self.trial.start(*names):
            self.threads[thread.name] = thread

    def stop(self, name: str) -> None:
        """Stop a peer, as Ctrl-C does."""
        self.trial.runners[name].stop()
        self.threads[name].join(LIMIT_S)
        assert isinstance(self.trial.errors.pop(name), Interrupted)

    def relay_of(self, name: str) -> dict[str, Any]:
        """Return what the status file of a peer says of the relay."""
        facts: dict[str, Any] = self.trial.status(name).get("relay", {"state": "unknown"})
        return facts

    def reconnects(self, name: str) -> int:
        return self.trial.runners[name].link.reconnects

    def finish(self) -> None:
        """Wait for the end of all; compare with SGD over the pooled data."""
        deadline = time.monotonic() + LIMIT_S
        for thread in self.threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"{thread.name} waits: {self.relay_of(thread.name)}"
        for error in self.trial.errors.values():
            raise error
        expected = expected_state(self.manifest, self.trial.splits)
        for runner in self.trial.runners.values():
            assert_equal_bits(runner.model_path, expected)


class Hold:
    """Stops the trial in the midst of one turn, until the test lets it go on.

    A trial of this size takes a second or two, `rabbitmqctl` alone sometimes longer.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turn: int = 5) -> None:
        self._reached, self._go = threading.Event(), threading.Event()
        slow_down(monkeypatch, self._stand, turns=(turn,))

    def __enter__(self) -> None:
        assert self._reached.wait(LIMIT_S), "the trial does not come to that turn"

    def __exit__(self, *_: object) -> None:
        self._go.set()

    def _stand(self) -> None:
        self._reached.set()
        self._go.wait(LIMIT_S)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    return Hold(monkeypatch)


@pytest.fixture
def make(node: RabbitNode, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def build(protocol: str, *, patience_s: float = 600.0, **broker: Any) -> Scene:
        scenes.append(Scene(node, tmp_path, protocol, patience_s=patience_s, **broker))
        return scenes[-1]

    yield build
    for scene in scenes:
        for name, thread in scene.threads.items():
            if thread.is_alive():
                scene.trial.runners[name].stop()
                thread.join(LIMIT_S)


def test_a_relay_that_is_full(node: RabbitNode, make: Callable[..., Scene]) -> None:
    """A memory alarm: the peers wait, say so, can be stopped all the same, and go on."""
    scene = make("fully-connected")
    names = scene.manifest.peer_names
    node.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        scene.start()
        eventually(lambda: [scene.relay_of(name)["state"] for name in names], ["blocked"] * len(names))
        assert scene.relay_of(names[0])["reason"]
        asked = time.monotonic()
        scene.stop(names[0])
        assert time.monotonic() - asked < 15
        assert scene.relay_of(names[0])["state"] == "closed"
        scene.start(names[0])  # the relay reads nothing, so it does not see either that the first connection is gone
        eventually(lambda: "reads the" in scene.relay_of(names[0]).get("reason", ""), True)
        assert scene.relay_of(names[0])["state"] == "connecting"
    finally:
        node.ctl("set_vm_memory_high_watermark", "0.4")
    scene.finish()


@pytest.mark.parametrize("protocol", ["fully-connected", "server-aided"])
def test_a_queue_that_is_deleted_with_what_is_in_it(make: Callable[..., Scene], hold: Hold, protocol: str) -> None:
    """The owner asks at once when it finds its inbox gone: no patience would outlast this one."""
    scene = make(protocol)
    others, late = scene.manifest.peer_names[:-1], scene.manifest.peer_names[-1]
    scene.start()
    with hold:  # bert is at it, cleo is next
        scene.stop(late)
    with scene.open("administrator") as administrator:
        eventually(lambda: administrator.depth(late) > 0, True)
        eventually(lambda: any(scene.trial.runners[name].driver.waiting_for() for name in others), True)
        administrator.delete(late)
        if protocol == "server-aided":
            administrator.delete("weights")
        with pytest.raises(Unroutable):
            administrator.depth(late)
    scene.start(late)
    scene.finish()


def test_queues_that_are_deleted_under_their_readers(make: Callable[..., Scene], hold: Hold) -> None:
    """The relay cancels the consumer; the peer declares its inbox again, and asks for what was in it."""
    scene = make("fully-connected")
    names = scene.manifest.peer_names
    scene.start()
    with hold, scene.open("administrator") as administrator:
        for name in names:
            administrator.delete(name)
        for name in names:
            eventually(lambda name=name: scene.reconnects(name) > 0, True)
    scene.finish()


def test_a_channel_that_the_relay_closes(make: Callable[..., Scene], hold: Hold) -> None:
    """As the delivery timeout does: with 406, PRECONDITION_FAILED."""
    scene = make("fully-connected")
    names = scene.manifest.peer_names
    scene.start()
    with hold:
        for name in names:
            session = scene.trial.runners[name].link.transport._current  # type: ignore[attr-defined]
            for lane in (session.inbox._lane, session.publisher._lane):
                session.link.submit(lambda lane=lane: lane.channel.basic_ack(999_999))
        for name in names:
            eventually(lambda name=name: scene.reconnects(name) > 0, True)
    scene.finish()


def test_a_queue_that_refuses_what_is_over_its_length(
    node: RabbitNode, make: Callable[..., Scene], caplog: pytest.LogCaptureFixture
) -> None:
    """The relay answers with nacks; what it did not take is published again until it does."""
    scene = make("fully-connected")
    *others, late = names = scene.manifest.peer_names
    with scene.open(late) as relay, node.channel() as channel:
        relay.declare(late)
        channel.basic_publish("", f"{scene.prefix}.{late}", b"fills it")
    policy = json.dumps({"max-length": 0, "overflow": "reject-publish"})
    node.ctl("set_policy", scene.manifest.name, f"^{scene.prefix}\\.", policy, "--apply-to", "queues")
    scene.start(*others)
    for name in others:
        eventually(lambda name=name: scene.trial.status(name).get("unsent"), {late: 1})
    assert [record.message.count("did not take") for record in caplog.records].count(1) >= len(others)
    scene.start(late)
    node.ctl("clear_policy", scene.manifest.name)
    scene.finish()
    assert [scene.trial.runners[name].link.reconnects for name in names] == [0, 0, 0]


def test_an_exchange_that_is_deleted(node: RabbitNode, make: Callable[..., Scene], hold: Hold) -> None:
    """The bindings go with it. Who publishes finds out; who waits makes sure of his own when his patience ends."""
    scene = make("fully-connected", patience_s=3.0)
    scene.start()
    with hold, node.channel() as channel:
        channel.exchange_delete(scene.prefix)
    scene.finish()


def test_a_broker_that_comes_back_without_its_users(
    node: RabbitNode, make: Callable[..., Scene], hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Definitions are loaded after the listeners are up: a refusal does not end a trial that is under way."""
    monkeypatch.setenv("TEST_PASSWORD", PASSWORD)
    node.add_user("hospital", PASSWORD)
    scene = make("fully-connected", user="hospital", password_env="TEST_PASSWORD")
    names = scene.manifest.peer_names
    scene.start()
    with hold:
        node.delete_user("hospital")
        node.ctl("close_all_connections", "--vhost", "/", "test")
    for name in names:
        eventually(lambda name=name: "refuses the password" in scene.relay_of(name).get("reason", ""), True)
        facts = scene.relay_of(name)
        assert facts["state"] == "reconnecting"
        assert facts["host"] is None
        assert PASSWORD not in json.dumps(facts)
    node.add_user("hospital", PASSWORD)
    try:
        scene.finish()
    finally:
        node.delete_user("hospital")
    assert all(scene.reconnects(name) for name in names)


def test_a_turn_that_lasts_longer_than_the_relay_waits_for_an_acknowledgement(
    node: RabbitNode, make: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came is acknowledged when it is journalled, and what rests in `weights` is fetched again: none is lost."""
    for name, value in (("consumer_timeout", 1_000), ("channel_tick_interval", 300)):
        node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    try:
        assert_that_it_times_out(node)
        slow_down(monkeypatch, lambda: time.sleep(4.0), turns=(2, 5))
        scene = make("server-aided", patience_s=5.0)
        scene.start()
        scene.finish()
    finally:
        for name, value in (("consumer_timeout", 1_800_000), ("channel_tick_interval", 60_000)):
            node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    assert [runner.link.reconnects for runner in scene.trial.runners.values()] == [0, 0, 0]


def assert_that_it_times_out(node: RabbitNode) -> None:
    """See the node close a channel whose delivery is not acknowledged; without that the test would show nothing."""
    with node.channel() as channel:
        channel.queue_declare("timeout", exclusive=True)
        channel.confirm_delivery()
        channel.basic_publish("", "timeout", b"x")
        assert channel.basic_get("timeout")[0] is not None

        def look() -> int | None:
            try:
                channel.queue_declare("timeout", passive=True)
            except amqp.ChannelClosedByBroker as error:
                return int(error.reply_code)
            return None

        eventually(look, 406)


def slow_down(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None], *, turns: tuple[int, ...]) -> None:
    """Have something done in the trainer's thread, in the midst of some turns."""
    train = Worker.train

    def slow(self: Worker, turn: Any, *arguments: Any, **options: Any) -> Any:
        if turn.number in turns:
            do()
        return train(self, turn, *arguments, **options)

    monkeypatch.setattr(Worker, "train", slow)


HEARTBEAT_S = 3


def busy() -> None:
    """Hold the CPU, in Python: other threads get the interpreter every few milliseconds."""
    until = time.monotonic() + 3.5 * HEARTBEAT_S
    while time.monotonic() < until:
        sum(range(1000))


def holding_the_interpreter() -> None:
    """Hold the interpreter's lock itself, as a bad extension module does: no other thread of the process runs."""
    ctypes.PyDLL(None).usleep(5 * HEARTBEAT_S * 1_000_000)


@pytest.mark.parametrize(("do", "breaks"), [(busy, False), (holding_the_interpreter, True)])
def test_heartbeats_while_a_step_lasts_long(
    make: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, do: Callable[[], None], breaks: bool
) -> None:
    """They never starve beside Python or PyTorch; beside code that keeps the lock they do, and the trial goes on."""
    monkeypatch.setattr(limits, "HEARTBEAT_S", HEARTBEAT_S)
    slow_down(monkeypatch, do, turns=(3,))
    scene = make("fully-connected", patience_s=20.0)
    scene.start()
    scene.finish()
    reconnects = sum(runner.link.reconnects for runner in scene.trial.runners.values())
    assert (reconnects > 0) is breaks


def test_a_relay_that_moves_to_another_host(node: RabbitNode, make: Callable[..., Scene], hold: Hold) -> None:
    """Two names for one node: each loss moves a peer on, and its status names the host."""
    hosts = BrokerAddress.parse(f"amqp://127.0.0.1:{node.port},localhost:{node.port}").hosts
    scene = make("fully-connected")
    scene.address = replace(scene.address, hosts=hosts)
    name = scene.manifest.peer_names[0]
    scene.start()
    with hold:
        before = scene.relay_of(name)["host"]
        assert before in {str(host) for host in hosts}
        node.ctl("close_all_connections", "--vhost", "/", "test")
        eventually(lambda: scene.reconnects(name), 1)
        eventually(lambda: scene.relay_of(name)["state"], "connected")
        eventually(lambda: scene.relay_of(name)["host"] not in (None, before), True)
    scene.finish()
