"""scripts/site_definitions.py: what each of two joined brokers imports."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.transport.plan.definitions import definitions
from ppdl_mq.transport.plan.making import make_plan
from ppdl_mq.transport.plan.objects import Choices
from tests.deployment.heart import HOSPITALS
from tests.trial import manifest_for

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "site_definitions.py"
NORTH, SOUTH = "north=cleveland,va", "south=hungary,switzerland"
TLS = "cacertfile=/etc/rabbitmq/ca.pem&verify=verify_peer&server_name_indication=relay.south.example.org"
LIMIT = 67111952  # bytes; what `relay plan` gives the queues of this trial
URI = f"amqps://link-north:a-password@relay.south.example.org:5671/ppdl?{TLS}"


def whole(*, weights: bool = False) -> dict[str, Any]:
    """What one broker would import; by default of a fully-connected trial, in which nobody has a right on weights."""
    protocol = "server-aided" if weights else "fully-connected"
    return definitions(
        make_plan(manifest_for(HOSPITALS, name="heart", protocol=protocol), Choices(max_queue_bytes=LIMIT))
    )


FEDERATED = ROOT / "brokers" / "federated"
PEERS = {"north": "cleveland,va", "south": "hungary,switzerland"}
OTHER = {"north": "south", "south": "north"}


def examples(folder: Path) -> dict[str, str]:
    """Return what lies in brokers/federated, by name: both sites' definitions, joined either way, without passwords."""
    (folder / "all.json").write_text(json.dumps(whole()))
    answer = {}
    for here, there in OTHER.items():
        host = f"relay.{there}.example.org"
        tls = f"cacertfile=/etc/rabbitmq/tls/ca.pem&verify=verify_peer&server_name_indication={host}"
        (folder / "uri").write_text(f"amqps://link-{here}@{host}:5671/ppdl?{tls}")
        sites = ("--here", f"{here}={PEERS[here]}", "--there", f"{there}={PEERS[there]}")
        for by in ("federation", "shovel"):
            command = [sys.executable, SCRIPT, folder / "all.json", *sites, "--by", by, "--uri", folder / "uri"]
            made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            answer[f"{here}.{by}.json"] = made.stdout
    return answer


def test_the_examples_are_what_the_script_writes(tmp_path: Path) -> None:
    made = examples(tmp_path)
    assert {file.name: file.read_text() for file in FEDERATED.glob("*.json")} == made
    for text in made.values():
        definitions = json.loads(text)
        assert all(each["password_hash"] == "" for each in definitions["users"])
        assert not re.search(r"://[^/@]*:[^/@]*@", text), "a password in a link"


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def run(*options: str, definitions: dict[str, Any] | None = None, uri: str = URI) -> Any:
        (tmp_path / "all.json").write_text(json.dumps(whole() if definitions is None else definitions))
        (tmp_path / "uri").write_text(uri + "\n")
        sites = options if "--here" in options else (*options, "--here", NORTH, "--there", SOUTH)
        command = [sys.executable, SCRIPT, tmp_path / "all.json", "--uri", tmp_path / "uri", *sites]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


def names(answer: dict[str, Any], section: str, key: str = "name") -> list[str]:
    return sorted(each[key] for each in answer[section])


def rights(answer: dict[str, Any], section: str) -> dict[str, str]:
    (found,) = [each for each in answer[section] if each["user"] == "link-south"]
    return dict(found)


def test_a_site_has_its_own_peers_and_a_federation_link_of_one_hop(run: Any) -> None:
    answer = json.loads(run("--by", "federation").stdout)
    assert names(answer, "users") == ["cleveland", "link-south", "va"]
    assert names(answer, "queues") == ["ppdl.heart.cleveland", "ppdl.heart.va"]
    assert names(answer, "bindings", "routing_key") == ["cleveland", "va"]
    assert names(answer, "exchanges") == ["ppdl.heart"]
    assert all(each["password_hash"] == "" for each in answer["users"])
    (upstream,) = answer["parameters"]
    assert (upstream["component"], upstream["name"]) == ("federation-upstream", "south")
    assert upstream["value"]["uri"] == URI
    assert (upstream["value"]["ack-mode"], upstream["value"]["max-hops"]) == ("on-confirm", 1)
    assert upstream["value"]["trust-user-id"] is False
    assert not {"expires", "message-ttl"} & set(upstream["value"])  # either would lose what waits
    (policy,) = [each for each in answer["policies"] if each["apply-to"] == "exchanges"]
    assert policy["definition"] == {"federation-upstream": "south"}
    assert policy["priority"] >= 100  # a catch-all policy would keep it from being applied, and nothing would cross
    assert re.search(policy["pattern"], "ppdl.heart")
    assert not any(re.search(policy["pattern"], other) for other in ("ppdl.heart2", "ppdl.heart.va", "xppdl.heart"))


def test_a_federation_link_may_bind_for_its_own_peers_alone(run: Any) -> None:
    answer = json.loads(run("--by", "federation").stdout)
    may = rights(answer, "permissions")
    there = ["ppdl.heart", "ppdl.heart.cleveland", "ppdl.heart.va", "amq.default", "federation: ppdl.heart -> south"]
    there[-1:-1] = [
        "federation: ppdl.heart -> south2",
        "federation: ppdl.heart -> spy",
        "xfederation: ppdl.heart -> south",
    ]
    assert [name for name in there if re.search(may["read"], name)] == ["ppdl.heart", there[-1]]
    assert [name for name in there if re.search(may["write"], name)] == [there[-1]]
    assert [name for name in there if re.search(may["configure"], name)] == [there[-1]]
    keys = rights(answer, "topic_permissions")
    everybody = ["cleveland", "va", "hungary", "switzerland", "#", "*", "weights", ""]
    assert [key for key in everybody if re.search(keys["read"], key)] == ["hungary", "switzerland"]
    assert [key for key in everybody if re.search(keys["write"], key)] == [""]


def test_a_shovel_empties_one_queue_of_what_is_meant_for_the_other_site(run: Any) -> None:
    answer = json.loads(run("--by", "shovel").stdout)
    assert names(answer, "queues") == ["ppdl.heart.cleveland", "ppdl.heart.to.south", "ppdl.heart.va"]
    to_south = [each for each in answer["bindings"] if each["destination"] == "ppdl.heart.to.south"]
    assert sorted(each["routing_key"] for each in to_south) == ["hungary", "switzerland"]
    assert all(each["source"] == "ppdl.heart" for each in to_south)
    (shovel,) = answer["parameters"]
    value = shovel["value"]
    assert (value["src-queue"], value["dest-exchange"]) == ("ppdl.heart.to.south", "ppdl.heart")
    assert (value["ack-mode"], value["src-delete-after"]) == ("on-confirm", "never")
    assert value["dest-uri"] == URI
    assert "dest-exchange-key" not in value  # it would send everything to one peer
    may, keys = rights(answer, "permissions"), rights(answer, "topic_permissions")
    assert (may["configure"], may["read"]) == ("^$", "^$")
    assert re.search(may["write"], "ppdl.heart")
    assert not re.search(may["write"], "amq.default")
    assert [key for key in ("cleveland", "va", "hungary") if re.search(keys["write"], key)] == ["cleveland", "va"]


@pytest.mark.parametrize(
    ("by", "queue"), [("shovel", "ppdl.heart.to.south"), ("federation", "federation: ppdl.heart -> south")]
)
def test_what_waits_to_cross_has_an_inbox_limit_for_each_peer_behind_it(by: str, queue: str, run: Any) -> None:
    definition = {"max-length-bytes": 1000, "overflow": "reject-publish", "delivery-limit": 7}
    policy = {
        "vhost": "ppdl",
        "name": "ppdl.heart",
        "pattern": r"^ppdl\.heart\.(cleveland|hungary|switzerland|va)$",
        "apply-to": "queues",
        "priority": 100,
        "definition": definition,
    }
    answer = json.loads(run("--by", by, definitions=whole() | {"policies": [policy]}).stdout)
    (limits,) = [each["definition"] for each in answer["policies"] if re.search(each["pattern"], queue)]
    if by == "federation":  # a classic queue, to which a policy with this key would not apply
        del definition["delivery-limit"]
    assert limits == definition | {"max-length-bytes": 2000}


@pytest.mark.parametrize("by", ["federation", "shovel"])
def test_the_lines_for_afterwards_name_whatever_was_imported(by: str, run: Any, tmp_path: Path) -> None:
    """tests/trials/test_two_brokers.py runs them."""
    answer = json.loads(run("--by", by).stdout)
    command = [sys.executable, SCRIPT, tmp_path / "all.json", "--here", NORTH, "--there", SOUTH, "--by", by]
    done = subprocess.run([*command, "--afterwards"], capture_output=True, text=True, timeout=60, check=True)
    lines = [shlex.split(line, comments=True) for line in done.stdout.splitlines() if not line.startswith("#")]
    removed = {(words[1], words[-1]) for words in lines if words}
    removed |= {(words[1], words[4]) for words in lines if words[1:2] == ["delete_queue"]}
    expected = {("delete_user", each) for each in names(answer, "users")}
    expected |= {("clear_parameter", each) for each in names(answer, "parameters")}
    expected |= {("clear_policy", each) for each in names(answer, "policies")}
    expected |= {("delete_queue", each) for each in names(answer, "queues")}
    expected |= {("clear_permissions", each) for each in ("cleveland", "va")}  # the link's go with its user
    assert expected <= removed
    assert any(what == "eval" and '<<"ppdl.heart"/utf8>>' in said for what, said in removed)
    assert "a-password" not in done.stdout


def test_users_of_other_names_than_the_peers(run: Any) -> None:
    renamed = json.loads(
        json.dumps(whole()).replace('"user": "va"', '"user": "x-va"').replace('"name": "va"', '"name": "x-va"')
    )
    answer = json.loads(run(definitions=renamed).stdout)
    assert names(answer, "users") == ["cleveland", "link-south", "x-va"]


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ((), {"definitions": whole(weights=True)}, "server-aided trial needs one broker"),
        ((), {"definitions": {}}, "no definitions of a trial"),
        (("--here", "north=cleveland", "--there", SOUTH), {}, "Every peer stands in one of"),
        (("--here", NORTH, "--there", f"{SOUTH},va"), {}, "Every peer stands in one of"),
        (("--here", "north", "--there", SOUTH), {}, "SITE=PEER"),
        (("--here", "north=.*", "--there", SOUTH), {}, "SITE=PEER"),
        ((), {"uri": "amqp://link-north@relay.south.example.org/ppdl"}, "not encrypted"),
        ((), {"uri": "amqps://link-north@relay.south.example.org/ppdl"}, "verify=verify_peer"),
        ((), {"uri": "https://relay.south.example.org"}, "none of AMQP"),
    ],
)
def test_what_cannot_work_or_would_not_be_safe_writes_nothing(
    options: tuple[str, ...], changes: dict[str, Any], said: str, run: Any
) -> None:
    answer = run(*options, **changes)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "a-password" not in answer.stderr
