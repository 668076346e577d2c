"""By what a broker's administrator recognises a peer: `rabbitmqctl list_connections`, and the management page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ppdl_mq import __version__
from ppdl_mq.transport.opening import open_transport
from tests.rabbit import RabbitNode
from tests.transport.relays import new_trial, rabbit_address

PASSWORD = "a-very-secret-password"


def seen(node: RabbitNode, user: str) -> list[dict[str, Any]]:
    """Return the client properties of a user's connections, as RabbitMQ lists them."""
    listed = json.loads(node.ctl("-q", "list_connections", "user", "client_properties", "--formatter", "json"))
    mine = [each["client_properties"] for each in listed if each["user"] == user]
    return [{name: value for name, _, value in properties} for properties in mine]


def test_a_connection_says_whose_it_is(rabbit: RabbitNode, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = new_trial()
    monkeypatch.setenv("RELAY_PASSWORD", PASSWORD)
    rabbit.add_user("mercy-user", PASSWORD)
    broker = rabbit_address(rabbit, user="mercy-user", password_env="RELAY_PASSWORD")
    with open_transport(broker, trial=trial, prefix="ppdl", peer="mercy"):
        (properties,) = seen(rabbit, "mercy-user")
    rabbit.delete_user("mercy-user")
    assert properties["connection_name"] == f"ppdl-mq {trial}/mercy"
    assert properties["product"] == "ppdl-mq"
    assert properties["version"] == __version__
    assert properties["information"] == f"peer mercy of trial {trial}"
    assert re.fullmatch(r"Python [\d.]+\S*, pika [\d.]+", properties["platform"])
    assert PASSWORD not in json.dumps(properties)
    # What the broker asks of a client that is to be told of alarms, refusals and cancelled consumers.
    assert {"connection.blocked", "consumer_cancel_notify", "publisher_confirms", "authentication_failure_close"} <= {
        name for name, _, value in properties["capabilities"] if value
    }
