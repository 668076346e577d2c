"""`ppdl-mq peer run` looks at the relay before it loads any data: here there are none, and nobody notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.main import run
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.peer import preflight, running
from ppdl_mq.peer.identity_file import read_public_line
from tests.rabbit import MAX_MESSAGE_BYTES, RabbitNode


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trial of two in the current folder, without data."""
    monkeypatch.chdir(tmp_path)
    assert run(("trial", "new", "beforehand.toml", "--preset", "heart")) == 0
    for name in ("mercy", "basel"):
        assert run(("identity", "new", "--name", name)) == 0
        assert run(("trial", "add-peer", "beforehand.toml", read_public_line(Path(f"{name}.key")))) == 0
    return tmp_path


def started(capsys: pytest.CaptureFixture[str], broker: str, *options: str) -> tuple[int, str, str]:
    """Run a peer; return its exit code, and the error's message and hint."""
    settings = ("--identity", "mercy.key", "--data", "csv:there-is-no-such-file.csv", "--data-arg", "label=num")
    assert run(("peer", "new", "mercy.toml", *settings, "--broker", broker, *options)) == 0
    capsys.readouterr()
    code = run(("peer", "run", "beforehand.toml", "--config", "mercy.toml", "--json"))
    error = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    return code, error["message"], error["hint"]


@pytest.mark.rabbitmq
def test_a_wrong_password_ends_it(
    rabbit: RabbitNode, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRONG", "not the password")
    code, message, hint = started(capsys, rabbit.url("mercy"), "--broker-password-env", "WRONG")
    assert code == exit_codes.RELAY
    assert "refuses the password of user 'mercy'" in message
    assert "For the broker's administrator: rabbitmqctl authenticate_user mercy" in hint
    assert "not the password" not in message + hint


@pytest.mark.rabbitmq
def test_queues_that_are_not_made_end_it(rabbit: RabbitNode, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message, hint = started(capsys, rabbit.url(), "--no-declare")
    assert code == exit_codes.RELAY
    assert "does not exist, and declare = false" in message
    assert "For the broker's administrator: sh plan/rabbitmqctl.sh" in hint


@pytest.mark.rabbitmq
def test_a_limit_under_the_chunk_size_ends_it(
    rabbit: RabbitNode, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rabbit.ctl("eval", "application:set_env(rabbit, max_message_size, 65536).")
    try:
        code, message, hint = started(capsys, rabbit.url())
    finally:
        rabbit.ctl("eval", f"application:set_env(rabbit, max_message_size, {MAX_MESSAGE_BYTES}).")
    assert code == exit_codes.RELAY
    assert message == "The broker takes messages of 65536 bytes at most; the trial's chunks have 900000."
    assert "relay.chunk_bytes = 65536 or less" in hint


@pytest.fixture
def inbox(rabbit: RabbitNode) -> Iterator[str]:
    """What an administrator has made for the trial: its exchange, and mercy's queues, all of which go afterwards."""
    exchange = "ppdl.beforehand"
    with rabbit.channel() as channel:
        channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        for key in ("mercy", "weights"):
            channel.queue_declare(f"{exchange}.{key}", durable=True)
            channel.queue_bind(f"{exchange}.{key}", exchange, key)
        yield f"{exchange}.mercy"
        for key in ("mercy", "weights"):
            channel.queue_delete(f"{exchange}.{key}")
        channel.exchange_delete(exchange)


def made_anew(rabbit: RabbitNode, inbox: str, arguments: dict[str, object]) -> None:
    """Make mercy's inbox again, with other arguments."""
    with rabbit.channel() as channel:
        channel.queue_delete(inbox)
        channel.queue_declare(inbox, durable=True, arguments=arguments)
        channel.queue_bind(inbox, inbox.removesuffix(".mercy"), "mercy")


@pytest.mark.rabbitmq
def test_a_policy_that_drops_what_it_confirmed_ends_it(
    rabbit: RabbitNode, inbox: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rabbit.ctl("set_policy", "ours", "^ppdl", '{"max-length": 1}', "--apply-to", "queues")
    try:
        code, message, hint = started(capsys, rabbit.url(), "--no-declare")
    finally:
        rabbit.ctl("clear_policy", "ours")
    assert code == exit_codes.RELAY
    assert f"dropped it again: a limit or a time to live of the queue {inbox}" in message
    assert "For the broker's administrator: rabbitmqctl list_queues" in hint
    assert "list_policies" in hint


@pytest.mark.rabbitmq
def test_an_inbox_to_which_nothing_leads_ends_it(
    rabbit: RabbitNode, inbox: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rabbit.channel() as channel:
        channel.queue_unbind(inbox, inbox.removesuffix(".mercy"), "mercy")
    code, message, hint = started(capsys, rabbit.url(), "--no-declare")
    assert code == exit_codes.RELAY
    assert "no binding with 'mercy'" in message
    assert "For the broker's administrator: sh plan/rabbitmqctl.sh" in hint


@pytest.mark.rabbitmq
def test_an_inbox_that_it_could_make_and_not_bind_ends_it(
    rabbit: RabbitNode, inbox: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a plan with --peers-declare, where the permission for topics was left out."""
    monkeypatch.setenv("FEW", "the password of few")
    with rabbit.channel() as channel:
        channel.queue_delete(inbox)
    rabbit.add_user("few", "the password of few", configure=f"^{inbox}$")
    rabbit.ctl("set_topic_permissions", "few", inbox.removesuffix(".mercy"), ".*", "^$")
    try:
        code, message, hint = started(capsys, rabbit.url("few"), "--broker-password-env", "FEW")
    finally:
        rabbit.delete_user("few")
    assert code == exit_codes.RELAY
    assert f"may not bind its inbox {inbox}" in message
    assert "made with --peers-declare" in hint
    assert "For the broker's administrator: sh plan/rabbitmqctl.sh" in hint


@pytest.mark.rabbitmq
def test_a_stream_as_inbox_ends_it(
    rabbit: RabbitNode, inbox: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_anew(rabbit, inbox, {"x-queue-type": "stream"})
    code, message, hint = started(capsys, rabbit.url(), "--no-declare")
    assert code == exit_codes.RELAY
    assert f"The queue {inbox} is of a type from which peers cannot fetch" in message
    assert f"list_queues -p / name type arguments | grep {inbox}" in hint


@pytest.mark.rabbitmq
def test_an_inbox_that_serves_one_consumer_at_a_time_ends_it(
    rabbit: RabbitNode, inbox: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_anew(rabbit, inbox, {"x-single-active-consumer": True})
    code, message, hint = started(capsys, rabbit.url())
    assert code == exit_codes.RELAY
    assert f"The queue {inbox} serves one consumer at a time (x-single-active-consumer)" in message
    assert f"For the broker's administrator: rabbitmqctl delete_queue -p / {inbox}" in hint


@pytest.mark.rabbitmq
def test_a_broker_that_is_full_is_told_and_waited_for(
    rabbit: RabbitNode, inbox: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(preflight.log, "warning", lambda text, *values: said.append(text % values))
    rabbit.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        code, message, _ = started(capsys, rabbit.url(), "--no-declare")
    finally:
        rabbit.ctl("set_vm_memory_high_watermark", "0.4")
    assert code == exit_codes.WORK
    assert "there-is-no-such-file.csv" in message
    (told,) = [each for each in said if "takes no messages" in each]
    assert "low on memory" in told
    assert "For the broker's administrator: rabbitmq-diagnostics alarms" in told


@pytest.mark.rabbitmq
def test_a_relay_that_is_in_order_lets_it_come_to_its_data(
    rabbit: RabbitNode, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(preflight.log, "info", lambda text, *values: said.append(text % values))
    code, message, _ = started(capsys, rabbit.url())
    assert code == exit_codes.WORK
    assert "there-is-no-such-file.csv" in message
    (told,) = said
    assert "AMQP does not show policies; " in told


@pytest.mark.rabbitmq
def test_what_could_not_be_looked_at_is_named(
    rabbit: RabbitNode, inbox: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time to live of an hour, in arguments that only the queue's maker may see, passes every other question."""
    made_anew(rabbit, inbox, {"x-message-ttl": 3_600_000})
    said: list[str] = []
    monkeypatch.setattr(preflight.log, "info", lambda text, *values: said.append(text % values))
    started(capsys, rabbit.url(), "--no-declare")
    (told,) = said
    assert "AMQP does not show policies, inbox arguments, weights arguments; " in told


def test_a_peer_that_resumes_does_not_look(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that comes back before its users must not end a trial of hours."""

    def looked(broker: BrokerAddress, *_: object) -> None:
        raise AssertionError(f"looked at {broker}")

    monkeypatch.setattr(running, "check_relay", looked)
    monkeypatch.setattr(running, "has_begun", lambda journal: True)
    code, message, _ = started(capsys, "embedded:relay.sqlite")
    assert code == exit_codes.WORK
    assert "there-is-no-such-file.csv" in message
