"""A broker set up by `relay plan` alone: no guest, and users who may do what the plan says and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
from pika.exceptions import ChannelClosedByBroker

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_transport
from ppdl_mq.transport.plan.definitions import definitions
from ppdl_mq.transport.plan.making import make_plan
from ppdl_mq.transport.plan.objects import Choices, Plan
from tests.rabbit import RabbitNode
from tests.shell import Shell

ACCESS_REFUSED = 403


class PlannedTrial:
    """One trial at a node, in a vhost and with users of its own; the node is thrown away with them.

    Args:
        node: where; it has no user `guest`.
        manifest: of the trial; its name names the vhost.
        folder: for the passwords and the definitions.
        choices: of the plan, but for vhost and users.
    """

    def __init__(self, node: RabbitNode, manifest: Manifest, folder: Path, **choices: Any) -> None:
        self.node = node
        self.manifest = manifest
        self.folder = folder
        users = {peer: f"{manifest.name}-{peer}" for peer in manifest.peer_names}
        given: dict[str, Any] = {"vhost": manifest.name, "users": users, "max_queue_bytes": 10**8, **choices}
        self.plan: Plan = make_plan(manifest, Choices(**given))
        self.users = {each.peer: each.user for each in self.plan.rights}

    @property
    def vhost(self) -> str:
        """The vhost of the trial."""
        return self.plan.choices.vhost

    def set_up(self) -> None:
        """Import the definitions, then set passwords: by another import, which is faster than a line for each user."""
        self.import_definitions()
        users = [{"name": user, "password": password(user), "tags": ""} for user in self.users.values()]
        file = self.folder / "passwords.json"
        file.write_text(json.dumps({"users": users}))
        self.node.ctl("import_definitions", str(file))
        for peer, user in self.users.items():
            (self.folder / f"{peer}.password").write_text(f"{password(user)}\n")

    def import_definitions(self) -> None:
        """Import the plan's file, and nothing else."""
        file = self.folder / "definitions.json"
        file.write_text(json.dumps(definitions(self.plan)))
        self.node.ctl("import_definitions", str(file))

    def address(self, peer: str) -> BrokerAddress:
        """Return what a peer's settings come to."""
        return dataclasses.replace(
            BrokerAddress.parse(self.node.url()),
            user=self.users[peer],
            vhost=self.vhost,
            password_file=self.folder / f"{peer}.password",
            declare=self.plan.choices.peers_declare,
            queue_type=self.plan.choices.queue_type,
        )

    def open(self, peer: str) -> Transport:
        """Return a peer's way to the broker, not yet connected."""
        return open_transport(
            self.address(peer), trial=self.manifest.name, prefix=self.manifest.relay.prefix, peer=peer
        )

    def is_refused(self, peer: str, action: Callable[[Any], object]) -> bool:
        """Tell whether the broker denies a peer's user an action."""
        user = self.users[peer]
        return is_refused(self.node, self.vhost, user, password(user), action)

    def waiting(self) -> dict[str, str]:
        """Return how many messages wait in each queue of the vhost, as counted every 5 s."""
        return dict(line.split("\t") for line in self.listed("list_queues", "name", "messages"))

    def listed(self, command: str, *columns: str) -> list[str]:
        """Return the sorted lines that a `list_` command of rabbitmqctl has about the vhost."""
        said = self.node.ctl(command, "--vhost", self.vhost, "--silent", "--no-table-headers", *columns)
        return sorted(line for line in said.splitlines() if line)


def password(user: str) -> str:
    """Return the password of a user of these tests."""
    return f"password of {user}"


def is_refused(node: RabbitNode, vhost: str, user: str, secret: str, action: Callable[[Any], object]) -> bool:
    """Tell whether a broker denies a user, who has a password, an action on a plain channel with confirms."""
    parameters = pika.ConnectionParameters("127.0.0.1", node.port, vhost, pika.PlainCredentials(user, secret))
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        try:
            action(channel)
        except ChannelClosedByBroker as error:
            if error.reply_code != ACCESS_REFUSED:
                raise
            return True
        return False


def run_lines(node: RabbitNode, folder: Path, script: str) -> str:
    """Run lines of shell with the node's `rabbitmqctl` on the PATH, as its administrator would."""
    shell = Shell(folder)
    shell.add_rabbitmqctl(node)
    return shell.run(script, shell=("sh", "-eu"))
