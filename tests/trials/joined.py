"""Two private RabbitMQ nodes of two organisations, joined as scripts/site_definitions.py says."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http
import http.client
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pika.exceptions import ChannelClosedByBroker

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_transport
from ppdl_mq.transport.plan.definitions import definitions
from ppdl_mq.transport.plan.making import make_plan
from ppdl_mq.transport.plan.objects import Choices
from tests.rabbit import RabbitNode, free_ports
from tests.transport.relays import eventually
from tests.trial import manifest_for

ROOT = Path(__file__).resolve().parents[2]
PLUGINS: Final = ("rabbitmq_federation", "rabbitmq_shovel")
SITES: Final = {"north": ("anna", "cleo"), "south": ("bert", "dora")}
OTHER: Final = {"north": "south", "south": "north"}
SERVER_NAME: Final = "relay.example.org"  # in the certificates
MAX_QUEUE_BYTES: Final = 10**8
RECONNECT_S: Final = 1  # instead of 5, so that tests wait less


class TwoSites:
    """One trial over two brokers, in a vhost of its own on each, with the rights of the script and no others.

    Args:
        nodes: by site, running.
        trial: its name.
        by: `federation` or `shovel`.
        folder: empty; for passwords and definitions.
    """

    def __init__(self, nodes: dict[str, SiteNode], trial: str, by: str, folder: Path) -> None:
        self.nodes, self.trial, self.by, self.folder = nodes, trial, by, folder
        self.vhost = f"v-{trial}"
        self.exchange = f"ppdl.{trial}"
        self.definitions: dict[str, dict[str, Any]] = {}
        self._write()

    def _write(self) -> None:
        everybody = sorted(name for names in SITES.values() for name in names)
        for name in everybody:
            (self.folder / f"{name}.password").write_text(self.password(name))
        whole = self.folder / "all.json"
        self.afterwards: dict[str, str] = {}
        plan = make_plan(
            manifest_for(tuple(everybody), name=self.trial), Choices(vhost=self.vhost, max_queue_bytes=MAX_QUEUE_BYTES)
        )
        whole.write_text(json.dumps(definitions(plan)))
        for here, there in OTHER.items():
            uri = self.folder / f"{here}.uri"
            login = f"link-{here}:{self.password(f'link-{here}')}"
            uri.write_text(
                f"amqps://{login}@127.0.0.1:{self.nodes[there].tls_port}/{self.vhost}?{self.nodes[there].tls_options()}"
            )
            who = ("--here", f"{here}={','.join(SITES[here])}", "--there", f"{there}={','.join(SITES[there])}")
            common = ("site_definitions.py", str(whole), *who, "--by", self.by)
            self.definitions[here] = json.loads(script(*common, "--uri", str(uri)))
            self.afterwards[here] = script(*common, "--afterwards")
            self._make_quick(here)

    def _make_quick(self, site: str) -> None:
        """Add what tests need: passwords, a look for themselves, links that come back soon."""
        ours = self.definitions[site]
        for user in ours["users"]:
            user["password_hash"] = password_hash(self.password(user["name"]))
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        ours["permissions"].append({"user": "guest", "vhost": self.vhost, **everything})
        for parameter in ours["parameters"]:
            parameter["value"]["reconnect-delay"] = RECONNECT_S

    @staticmethod
    def password(name: str) -> str:
        """Return the password of a user."""
        return f"password-of-{name}"

    def give(self, *sites: str) -> None:
        """Import the definitions, as the administrators do."""
        for site in sites or SITES:
            self.nodes[site].ask("POST", "definitions", body=self.definitions[site])

    def remove(self) -> None:
        """Take the trial away again; users stay, and are the same in the next one."""
        for node in self.nodes.values():
            node.start()
            node.ask("DELETE", "vhosts", self.vhost)

    def expect(self, name: str) -> None:
        """Have the links expect another name in the other broker's certificate."""
        for ours in self.definitions.values():
            for value in (each["value"] for each in ours["parameters"]):
                (key,) = {"uri", "dest-uri"} & set(value)
                value[key] = re.sub(r"(server_name_indication=)[^&]*", rf"\g<1>{name}", value[key])

    def until_linked(self) -> None:
        """Wait until messages can cross both ways."""
        for site in SITES:
            eventually(lambda site=site: self.is_linked(site), True)  # type: ignore[misc]

    def unlink(self, site: str) -> None:
        """Take a site's link away for good, with what waits at the other broker for it."""
        for parameter in self.definitions[site]["parameters"]:
            self.nodes[site].ask("DELETE", "parameters", parameter["component"], self.vhost, parameter["name"])

    def part(self, site: str) -> None:
        """Let nothing cross to a site until `rejoin`: the link's user loses its rights, and its connection."""
        node, user = self._crossed_by(site)
        node.ask("DELETE", "permissions", self.vhost, user)
        node.ask("DELETE", "connections", "username", user)

    def rejoin(self, site: str) -> None:
        """Let messages cross to a site again."""
        node, user = self._crossed_by(site)
        (rights,) = [each for ours in self.definitions.values() for each in ours["permissions"] if each["user"] == user]
        patterns = {name: rights[name] for name in ("configure", "write", "read")}
        node.ask("PUT", "permissions", self.vhost, user, body=patterns)

    def empty(self, site: str, queue: str) -> int:
        """Destroy what waits in a queue; return how much it was."""
        with self.nodes[site].channel(self.vhost) as channel:
            return int(channel.queue_purge(queue).method.message_count)

    def topology(self) -> dict[str, list[str]]:
        """Return what there is at both brokers: queues, exchanges, bindings, links, policies, rights."""
        found = {}
        for site, node in self.nodes.items():
            for section, items in node.ask("GET", "definitions").items():
                if isinstance(items, list):
                    ours = [json.dumps(each, sort_keys=True) for each in items if each.get("vhost") == self.vhost]
                    found[f"{site} {section}"] = sorted(ours)
        return found

    def _crossed_by(self, site: str) -> tuple[SiteNode, str]:
        """Return at which broker the link that brings messages to `site` logs in, and as whom."""
        if self.by == "federation":
            return self.nodes[OTHER[site]], f"link-{site}"
        return self.nodes[site], f"link-{OTHER[site]}"

    def is_linked(self, site: str) -> bool:
        """Tell whether somebody reads what waits for a site; federation binds its queue only after that."""
        with self.nodes[OTHER[site]].channel(self.vhost) as channel:
            try:
                readers = channel.queue_declare(self.crossing(site), passive=True).method.consumer_count
            except ChannelClosedByBroker:
                return False
        return bool(readers) and (self.by == "shovel" or self._bound(OTHER[site]) == {*SITES[site]})

    def _bound(self, site: str) -> set[str]:
        return {
            each["routing_key"]
            for each in self.nodes[site].ask("GET", "bindings", self.vhost)
            if each["source"] == self.exchange and each["destination"].startswith("federation: ")
        }

    def site_of(self, peer: str) -> str:
        """Return where a peer is."""
        return next(site for site, names in SITES.items() if peer in names)

    def open(self, peer: str) -> Transport:
        """Return a connection, not yet open, of a peer to its own site's broker."""
        node = self.nodes[self.site_of(peer)]
        broker = replace(
            BrokerAddress.parse(f"amqps://{peer}@127.0.0.1:{node.tls_port}/{self.vhost}"),
            password_file=self.folder / f"{peer}.password",
            ca_file=node.tls / "ca.pem",
            declare=False,
        )
        return open_transport(broker, trial=self.trial, prefix="ppdl", peer=peer)

    def waiting(self, site: str, queue: str) -> int:
        """Count what is ready in a queue of one site."""
        with self.nodes[site].channel(self.vhost) as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def log(self, site: str) -> str:
        """Return what a broker has logged."""
        return "".join(file.read_text(errors="replace") for file in (self.nodes[site].folder / "log").glob("*.log"))

    def crossing(self, to: str) -> str:
        """Return the name of the queue in which messages to a site wait, at the other one."""
        return f"federation: {self.exchange} -> {to}" if self.by == "federation" else f"{self.exchange}.to.{to}"


def password_hash(password: str) -> str:
    """Return a password as RabbitMQ keeps it: base64(salt || SHA-256(salt || password))."""
    salt = b"salt"
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def script(name: str, *arguments: str) -> str:
    """Run one of the repository's scripts."""
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


class SiteNode(RabbitNode):
    """A node with the configuration of brokers/federated, on ports of its own, and with a management for the tests.

    Args:
        site: its name.
        tls: folder with ca.pem, server.pem and server.key.
    """

    def __init__(self, site: str, tls: Path) -> None:
        self.tls_port, self._management_port = free_ports(2)
        self.tls = tls
        taken_over = ("cluster_name", "ssl_options.", "loopback_users.", "auth_mechanisms.", "channel_max")
        lines = (ROOT / "brokers" / "federated" / "rabbitmq.conf").read_text().splitlines()
        config = "".join(f"{line}\n" for line in lines if line.startswith(taken_over))
        config = config.replace("cluster_name = north", f"cluster_name = {site}").replace("/etc/rabbitmq/tls", str(tls))
        config += f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
        config += f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._management_port}\n"
        super().__init__(config=config, plugins=(*PLUGINS, "rabbitmq_management"))

    def ask(self, method: str, *path: str, body: object = None) -> Any:
        """Ask the management, which does the same as `rabbitmqctl` and starts no Erlang of its own each time."""
        connection = http.client.HTTPConnection("127.0.0.1", self._management_port, timeout=60)
        with contextlib.closing(connection):
            connection.request(
                method,
                "/api/" + "/".join(quote(part, safe="") for part in path),
                None if body is None else json.dumps(body),
                {
                    "Authorization": f"Basic {base64.b64encode(b'guest:guest').decode()}",
                    "Content-Type": "application/json",
                },
            )
            reply = connection.getresponse()
            said = reply.read()
        assert reply.status < http.HTTPStatus.BAD_REQUEST, f"{method} {path}: {reply.status} {said!r}"
        return json.loads(said) if said else None

    def tls_options(self, name: str = SERVER_NAME) -> str:
        """Return what the URI of a link to this node says about TLS."""
        return f"cacertfile={self.tls / 'ca.pem'}&verify=verify_peer&server_name_indication={name}"


@contextlib.contextmanager
def two_nodes() -> Iterator[dict[str, SiteNode]]:
    """Start one node for each site, with certificates of one authority."""
    with contextlib.ExitStack() as stack:
        tls = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppdl-sites-")))
        make_ca = [sys.executable, str(ROOT / "brokers" / "tls" / "make_ca.py"), str(tls)]
        make_ca += ["--server", SERVER_NAME, "--server", "127.0.0.1"]
        subprocess.run(make_ca, capture_output=True, timeout=60, check=True)
        nodes = {site: SiteNode(site, tls) for site in SITES}
        for node in nodes.values():
            stack.callback(node.remove)
            node.start()
        yield nodes
