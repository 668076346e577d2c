"""The lines that an administrator of RabbitMQ can paste."""

from __future__ import annotations

import shlex

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.findings import Wanted
from ppdl_mq.transport.plan.making import rights_of
from ppdl_mq.transport.plan.objects import Rights


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
        "   # find the limit, then: clear_policy or clear_operator_policy, or delete a queue whose arguments have it"
    )


def user_of(broker: BrokerAddress) -> str:
    """Return the user's name at the broker, as far as we know it; a certificate's name is the broker's to say."""
    return "USER" if broker.by_certificate and broker.user is None else broker.login


def rights_line(broker: BrokerAddress, wanted: Wanted, *, makes_inbox: bool = False) -> str:
    """Give the user exactly what a peer needs whose queues an administrator made, or who makes its inbox itself."""
    given = _rights(broker, wanted, makes_inbox)
    return ctl("set_permissions", given.user, given.configure, given.write, given.read, vhost=broker.vhost)


def topics_line(broker: BrokerAddress, wanted: Wanted, *, makes_inbox: bool = False) -> str:
    """Let the user publish with the keys of the trial, and bind nothing, or its own inbox with its own key."""
    given = _rights(broker, wanted, makes_inbox)
    keys = (given.publish_keys, given.bind_keys)
    return ctl("set_topic_permissions", given.user, wanted.names.exchange, *keys, vhost=broker.vhost)


def _rights(broker: BrokerAddress, wanted: Wanted, makes_inbox: bool) -> Rights:
    return rights_of(wanted.names, wanted.me, user_of(broker), wanted.addresses, declares=makes_inbox)
