"""The plan: names and patterns that hold what the trial needs and nothing beside it, and no secret anywhere."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ppdl_mq.errors import ConfigError
from ppdl_mq.transport.plan.definitions import definitions, topology
from ppdl_mq.transport.plan.lines import limit_lines, password_lines, removal_lines, setup_script
from ppdl_mq.transport.plan.making import UNLIMITED, make_plan
from ppdl_mq.transport.plan.objects import Choices, Plan, Rights
from tests.people import manifest_for

HOSPITALS = ("cleveland", "hungary", "switzerland", "va")
BESIDE = (
    "amq.default",
    "amq.topic",
    "ppdl.heart2",
    "ppdlxheart",
    "ppdl.other.weights",
    "ppdl.heart.va2",
    "x.ppdl.heart",
)


def plan_of(protocol: str = "server-aided", peers: tuple[str, ...] = HOSPITALS, **choices: Any) -> Plan:
    return make_plan(manifest_for(peers, name="heart", protocol=protocol), Choices(**choices))


def allowed(pattern: str, names: tuple[str, ...]) -> list[str]:
    """Return the names that RabbitMQ finds the pattern in."""
    return [name for name in names if re.search(pattern, name)]


def rights_of(plan: Plan, peer: str) -> Rights:
    (rights,) = (each for each in plan.rights if each.peer == peer)
    return rights


@pytest.mark.parametrize("peer", HOSPITALS)
@pytest.mark.parametrize("protocol", ["server-aided", "fully-connected", "masked-average"])
def test_a_peer_reads_its_own_inbox_and_makes_nothing(peer: str, protocol: str) -> None:
    plan = plan_of(protocol)
    weights = ["ppdl.heart.weights"] if protocol == "server-aided" else []
    resources = (plan.exchange, *plan.inboxes, "ppdl.heart.weights", *BESIDE)
    rights = rights_of(plan, peer)
    assert allowed(rights.read, resources) == [f"ppdl.heart.{peer}", *weights]
    assert allowed(rights.write, resources) == [plan.exchange]
    assert allowed(rights.configure, resources) == []
    keys = (*HOSPITALS, "weights", "other", "va.x", "x.va", "#", "*", "")
    assert allowed(rights.publish_keys, keys) == [*HOSPITALS, *(["weights"] if weights else [])]
    assert allowed(rights.bind_keys, keys) == [""]


@pytest.mark.parametrize("peer", HOSPITALS)
def test_a_peer_that_declares_makes_its_own_inbox_and_binds_its_own_key(peer: str) -> None:
    plan = plan_of(peers_declare=True)
    inbox = f"ppdl.heart.{peer}"
    resources = (plan.exchange, *plan.inboxes, "ppdl.heart.weights", *BESIDE)
    rights = rights_of(plan, peer)
    assert allowed(rights.configure, resources) == [inbox]
    assert allowed(rights.write, resources) == [plan.exchange, inbox]
    assert allowed(rights.read, resources) == [plan.exchange, inbox, "ppdl.heart.weights"]
    assert allowed(rights.bind_keys, (*HOSPITALS, "weights", "#", "*", f"{peer}.#", "")) == [peer]
    assert [each.name for each in plan.queues] == ["ppdl.heart.weights"]


def test_what_an_administrator_declares_is_durable_and_bound_with_its_address() -> None:
    plan = plan_of(peers=("a", "b"), vhost="v", queue_type="classic")
    data = definitions(plan)
    assert [(each["name"], each["durable"], each["arguments"]) for each in data["queues"]] == [
        (f"ppdl.heart.{address}", True, {"x-queue-type": "classic"}) for address in ("a", "b", "weights")
    ]
    assert [(each["source"], each["routing_key"], each["destination"]) for each in data["bindings"]] == [
        ("ppdl.heart", address, f"ppdl.heart.{address}") for address in ("a", "b", "weights")
    ]
    for part in ("queues", "bindings", "exchanges", "permissions", "topic_permissions", "policies"):
        assert {each["vhost"] for each in data[part]} == {"v"}
    assert "weights" not in json.dumps(definitions(plan_of("fully-connected")))


def test_the_policy_holds_for_the_trials_queues_alone_and_drops_nothing() -> None:
    plan = plan_of(max_queue_bytes=1000)
    names = (*plan.inboxes, "ppdl.heart.weights")
    assert allowed(plan.policy.pattern, (plan.exchange, *names, *BESIDE)) == list(names)
    expected = {"overflow": "reject-publish", "max-length-bytes": 1000, "delivery-limit": UNLIMITED}
    assert plan.policy.definition == expected
    # With a key that a classic queue does not have, RabbitMQ 3.10 would leave the whole policy out.
    assert plan_of(queue_type="classic").policy.definition == {"overflow": "reject-publish"}


def test_users_have_no_password_and_no_tags() -> None:
    for user in definitions(plan_of())["users"]:
        assert (user["password_hash"], user["tags"]) == ("", "")
        assert "password" not in user


def test_what_exists_is_left_out() -> None:
    plan = plan_of(existing_users=True, existing_vhost=True, vhost="/")
    assert not {"users", "vhosts"} & definitions(plan).keys()
    lines = "\n".join((setup_script(plan), *removal_lines(plan)))
    assert not re.search("add_user|add_vhost|delete_user|delete_vhost", lines)


def test_the_script_has_the_same_patterns_as_the_definitions() -> None:
    plan = plan_of(users={"va": "CN=va, O=VA"}, vhost="a b")
    script = setup_script(plan)
    for each in plan.rights:
        for pattern in (each.configure, each.write, each.read, each.publish_keys, each.bind_keys):
            assert f"'{pattern}'" in script
    assert "set_permissions --vhost 'a b' 'CN=va, O=VA' '^$'" in script
    assert "change_password 'CN=va, O=VA' < passwords/va.password" in "\n".join(password_lines(plan))
    imported = script.partition("<<'END'\n")[2].removesuffix("END\n")
    assert json.loads(imported) == topology(plan)


def test_lines_that_hold_a_user_who_means_harm() -> None:
    assert [line.split()[:3] for line in limit_lines(plan_of(max_queue_bytes=1000))] == [
        ["rabbitmqctl", "set_user_limits", peer] for peer in HOSPITALS
    ]
    assert limit_lines(plan_of(existing_users=True)) == []  # they may have other work
    *_, last = limit_lines(plan_of(peers_declare=True, max_queue_bytes=1000))
    assert last.startswith("rabbitmqctl set_operator_policy --vhost ppdl")
    assert any(
        "clear_operator_policy" in line for line in removal_lines(plan_of(peers_declare=True, max_queue_bytes=1))
    )


@pytest.mark.parametrize(
    "choices",
    [
        {"users": {"nobody": "x"}},
        {"users": {"va": "hungary"}},  # which is another peer's
        {"users": {"va": "guest"}},
        {"users": {"va": ""}},
        {"users": {"va": "a\nb"}},
        {"users": {"va": "-x"}},
        {"users": {"va": "é" * 128}},
        {"vhost": ""},
        {"vhost": "--all"},
    ],
)
def test_names_that_cannot_be_are_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        plan_of(**choices)
