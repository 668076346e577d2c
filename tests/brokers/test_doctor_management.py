"""What the doctor reads from RabbitMQ's management, which AMQP does not show."""

from __future__ import annotations

import base64
import http.server
import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from ppdl_mq.cli.main import run
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import ConfigError
from ppdl_mq.transport.findings import Finding, Wanted
from ppdl_mq.transport.opening import examine_relay
from ppdl_mq.transport.plan.making import UNLIMITED
from ppdl_mq.transport.rabbitmq.doctor import certificates, management
from tests.brokers.scene import free_port, of, wanted
from tests.deployment.heart import heart_manifest, planned
from tests.rabbit import RabbitNode, why_absent

pytestmark = pytest.mark.rabbitmq

NEEDS = wanted("managed")


class ManagedNode(RabbitNode):
    """A node with the management plugin on a port of its own."""

    def __init__(self) -> None:
        self.management_port = free_port()
        super().__init__(
            config=(
                f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.management_port}\n"
                "collect_statistics_interval = 500\n"
            ),
            plugins=("rabbitmq_management",),
        )

    @property
    def management(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"


@pytest.fixture(scope="module")
def node() -> Iterator[ManagedNode]:
    reason = why_absent()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (CI=true: the RabbitMQ tests must run)")
        pytest.skip(reason)
    with ManagedNode() as node:
        with node.channel() as channel:
            channel.exchange_declare(NEEDS.names.exchange, exchange_type="topic", durable=True)
            for address in NEEDS.addresses:
                arguments = {"x-queue-type": "quorum"} if address == "weights" else None
                channel.queue_declare(NEEDS.names.queue(address), durable=True, arguments=arguments)
                channel.queue_bind(NEEDS.names.queue(address), NEEDS.names.exchange, address)
        yield node


class Silent(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def answering(handler: type[Silent]) -> Iterator[str]:
    """Give the URL at which somebody else answers HTTP."""
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def look(node: ManagedNode, needs: Wanted | None = NEEDS, url: str | None = None) -> list[Finding]:
    broker = BrokerAddress.parse(node.url())
    return list(examine_relay(broker, needs, thorough=True, management_url=url or node.management))


def until_shown(node: ManagedNode, queue: str, policy: str | None) -> None:
    """Wait for the management's figures, which follow the broker every few seconds."""
    request = urllib.request.Request(
        f"{node.management}/api/queues/%2F/{queue}",
        headers={"Authorization": f"Basic {base64.b64encode(b'guest:guest').decode()}"},
    )
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        with urllib.request.urlopen(request, timeout=10.0) as reply:
            if json.load(reply).get("policy") == policy:
                return
        time.sleep(0.2)  # between two looks at another process, which tells in no other way
    raise AssertionError(f"the management does not show the policy {policy!r}")


def test_what_amqp_leaves_unknown_is_known(node: ManagedNode) -> None:
    until_shown(node, NEEDS.names.queue("weights"), None)
    findings = look(node)
    assert of(findings, "unknown").keys() == {"bindings", "delivery timeout"}  # not asked, and not shown
    assert not of(findings, "fail"), findings
    passed = [finding.says for finding in findings if finding.result == "pass"]
    assert any("type is quorum" in says for says in passed)
    assert any("a policy of the queue" in says for says in passed)
    assert any("clock and this machine's agree" in says for says in passed)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"message-ttl": 3_600_000}, "messages are dropped after 3600000 ms (message-ttl)"),
        ({"expires": 3_600_000}, "nobody reads it for 3600000 ms (expires)"),
        ({"max-length": 1000}, "beyond 1000 (max-length) messages are dropped (drop-head)"),
        ({"delivery-limit": 5}, "handed out 5 times (delivery-limit)"),
    ],
)
def test_a_policy_that_loses_messages(node: ManagedNode, policy: dict[str, object], says: str) -> None:
    name = NEEDS.names.queue("weights")
    bad = f"bad-{next(iter(policy))}"
    node.ctl("set_policy", bad, f"^{name}$", json.dumps(policy), "--apply-to", "queues")
    try:
        until_shown(node, name, bad)
        failure = of(look(node), "fail")["policy"]
    finally:
        node.ctl("clear_policy", bad)
    assert says in failure.says
    assert name in failure.says


def test_the_policy_of_the_plan_is_right(node: ManagedNode) -> None:
    name = NEEDS.names.queue("weights")
    policy = {"delivery-limit": UNLIMITED, "max-length-bytes": 10**8, "overflow": "reject-publish"}
    node.ctl("set_policy", "planned", f"^{name}$", json.dumps(policy), "--apply-to", "queues")
    try:
        until_shown(node, name, "planned")
        findings = look(node)
    finally:
        node.ctl("clear_policy", "planned")
    assert not of(findings, "fail"), findings
    assert not any("delivery-limit" in finding.says for finding in findings)


def test_the_limit_that_the_plan_sets_is_no_warning(
    node: ManagedNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the manifest to the line of the doctor, with nothing in between but the broker."""
    manifest = heart_manifest(tmp_path, ("cleveland", "va"))
    plan = planned(manifest, "--vhost", "/", "--existing-vhost")
    limit = plan["sizes_bytes"]["queue_limit"]
    (tmp_path / "definitions.json").write_text(json.dumps(plan["definitions"]))
    node.ctl("import_definitions", str(tmp_path / "definitions.json"))
    command = ("relay", "check", node.url(), "--peer", "cleveland", "--trial", str(manifest), "--json")
    try:
        for most, warns in ((limit, False), (limit - 1, True)):
            name = f"ppdl.heart-{most}"
            policy = plan["definitions"]["policies"][0]
            definition = json.dumps(policy["definition"] | {"max-length-bytes": most})
            node.ctl("set_policy", name, policy["pattern"], definition, "--apply-to", "queues", "--priority", "200")
            for address in ("cleveland", "weights"):
                until_shown(node, f"ppdl.heart.{address}", name)
            assert run((*command, "--management", node.management)) == 0
            findings = json.loads(capsys.readouterr().out)["findings"]
            said = [each for each in findings if each["check"] == "policy" and "max-length-bytes" in each["says"]]
            assert [each["result"] for each in said] == ["warn" if warns else "pass"] * 2
            assert all(str(limit) in each["says"] + each.get("todo", "") for each in said)
            node.ctl("clear_policy", name)
    finally:
        for address in ("cleveland", "va", "weights"):
            node.ctl("delete_queue", f"ppdl.heart.{address}")


def test_a_clock_that_is_far_off(node: ManagedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (certificates, management):
        monkeypatch.setattr(module, "now", lambda: datetime.now(UTC) + timedelta(hours=3))
    warning = of(look(node, None), "warn")["clock"]
    assert 10_700 < int(warning.figures["clocks_differ_s"]) < 10_900


def test_an_alarm(node: ManagedNode) -> None:
    node.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        findings = look(node)
    finally:
        node.ctl("set_vm_memory_high_watermark", "0.4")
    assert "takes no messages" in of(findings, "fail")["room"].says


def test_an_account_that_may_not_manage_leaves_it_unknown(node: ManagedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node.add_user("plain", "secret-of-plain")
    monkeypatch.setenv("PLAIN", "secret-of-plain")
    broker = BrokerAddress.parse(node.url())
    url = node.management.replace("http://", "http://plain@")
    findings = list(examine_relay(broker, NEEDS, management_url=url, management_password=SecretStr("secret-of-plain")))
    unknown = of(findings, "unknown")
    assert unknown["management"].line == "rabbitmqctl set_user_tags plain management"
    assert "policies" in unknown  # still told what to ask for
    assert "secret-of-plain" not in str([finding.data() for finding in findings])


def test_a_port_where_nobody_or_something_else_is(node: ManagedNode) -> None:
    for url in (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{node.port}"):
        assert "does not answer as it should" in of(look(node, None, url), "unknown")["management"].says


def test_the_password_follows_no_redirect(node: ManagedNode) -> None:
    asked: list[str] = []

    class Elsewhere(Silent):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"{node.management}/api/overview")
            self.end_headers()

    with answering(Elsewhere) as url:
        findings = look(node, None, url)
    assert asked == ["/api/overview"]
    assert "HTTP status 302" in of(findings, "unknown")["management"].says


@pytest.mark.parametrize(
    ("version", "policy", "is_lossy"),
    [
        ("4.1.0", {}, True),
        ("4.1.0", {"delivery-limit": -1}, False),
        ("4.1.0", {"delivery-limit": UNLIMITED}, False),  # what `relay plan` says
        ("4.1.0", {"delivery-limit": 50}, True),
        ("3.13.7", {}, False),
    ],
)
def test_the_delivery_limit_of_newer_brokers(
    node: ManagedNode, version: str, policy: dict[str, int], is_lossy: bool
) -> None:
    """A stand-in for the management of a version that is not installed here, as its documents say it answers."""
    queue = {
        "name": NEEDS.names.queue("weights"),
        "type": "quorum",
        "durable": True,
        "auto_delete": False,
        "arguments": {"x-queue-type": "quorum"},
        "effective_policy_definition": policy,
        "members": ["a", "b", "c"],
        "online": ["a", "b"],
    }
    replies = {
        "/api/overview": {"rabbitmq_version": version},
        "/api/health/checks/alarms": {"status": "ok"},
        f"/api/exchanges/%2F/{NEEDS.names.exchange}": {"type": "topic", "durable": True},
        f"/api/queues/%2F/{NEEDS.names.queue('weights')}": queue,
    }

    class Newer(Silent):
        def do_GET(self) -> None:
            body = json.dumps(replies.get(self.path, {})).encode()
            self.send_response(200 if self.path in replies else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with answering(Newer) as url:
        findings = look(node, NEEDS, url)
    assert of(findings, "pass")["management"]
    failures = of(findings, "fail")
    assert ("policy" in failures) is is_lossy, findings
    if is_lossy:
        assert f"delivery-limit {UNLIMITED}" in failures["policy"].todo
    assert "only 2 are up" in of(findings, "warn")["members"].says


@pytest.mark.parametrize(
    "url", ["http://guest:s3cret@127.0.0.1", "ftp://127.0.0.1", "http://", "http://127.0.0.1:x", "http://a/?b"]
)
def test_a_url_that_does_not_hold_is_refused_unquoted(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        examine_relay(BrokerAddress.parse("amqp://guest@127.0.0.1"), None, management_url=url)
    assert "s3cret" not in str(refused.value)


def test_another_user_needs_a_password_of_its_own() -> None:
    broker = BrokerAddress.parse("amqp://guest@127.0.0.1")
    with pytest.raises(ConfigError, match="'admin'"):
        examine_relay(broker, None, management_url="http://admin@127.0.0.1")


def test_on_the_command_line(
    node: ManagedNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://guest@127.0.0.1:{node.management_port}"
    options = ("--management", url, "--management-password-env", "MANAGEMENT")
    monkeypatch.setenv("MANAGEMENT", "guest")
    assert run(("relay", "check", node.url(), *options)) == 0
    assert f"pass    management        The management at {node.management} answers.\n" in capsys.readouterr().out
    monkeypatch.delenv("MANAGEMENT")
    assert run(("relay", "check", node.url(), *options)) == 3
    assert run(("relay", "check", "embedded:relay.sqlite", "--management", url)) == 3
