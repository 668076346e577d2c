"""The lines that an administrator of RabbitMQ can paste."""

from __future__ import annotations

import re
import shlex

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.findings import Wanted


def ctl(command: str, *arguments: str, vhost: str | None = None) -> str:
    """Return one `rabbitmqctl` line, quoted for a shell."""
    place = () if vhost is None else ("-p", vhost)
    return shlex.join(("rabbitmqctl", command, *place, *arguments))


def plan_line() -> str:
    """Set up again what the trial's plan says, of which something is missing."""
    return (
        "sh plan/rabbitmqctl.sh   # of `ppdl-mq relay plan`; importing definitions again would take the passwords away"
    )


def policies_line(broker: BrokerAddress, name: str) -> str:
    """Show the policies of a queue, or of all whose names begin so: what RabbitMQ 3.10 to 4.x all print."""
    policies, operator = (ctl(each, vhost=broker.vhost) for each in ("list_policies", "list_operator_policies"))
    return (
        f"{ctl('list_queues', 'name', 'policy', 'arguments', vhost=broker.vhost)} | grep {name}; {policies}; {operator}"
    )


def user_of(broker: BrokerAddress) -> str:
    """Return the user's name at the broker, as far as we know it; a certificate's name is the broker's to say."""
    return "USER" if broker.by_certificate and broker.user is None else broker.login


def rights_line(broker: BrokerAddress, wanted: Wanted) -> str:
    """Give the user exactly what a peer needs where an administrator made the queues."""
    exchange = re.escape(wanted.names.exchange).replace(r"\-", "-")
    own = "|".join(wanted.own_addresses)
    read = rf"^{exchange}\.({own})$" if wanted.shares_weights else rf"^{exchange}\.{own}$"
    return ctl("set_permissions", user_of(broker), "^$", f"^{exchange}$", read, vhost=broker.vhost)


def topics_line(broker: BrokerAddress, wanted: Wanted) -> str:
    """Let the user publish with the keys of the trial, and bind nothing."""
    keys = f"^({'|'.join(wanted.addresses)})$"
    return ctl("set_topic_permissions", user_of(broker), wanted.names.exchange, keys, "^$", vhost=broker.vhost)
