#!/usr/bin/env python3
"""Cut a trial's definitions in two, for two brokers that are joined: print what one of them imports. Needs only Python.

    scripts/site_definitions.py definitions.json --here north=cleveland,va --there south=hungary,switzerland \\
        --by federation --uri south.uri > north.json

definitions.json is that of the whole trial, as for one broker. What is printed has the trial's exchange, the inboxes
and users of the peers of this site, one link to the other broker, and one user, `link-SITE`, by which that broker's own
link logs in, with rights to what is meant for its peers and no more. The other site swaps --here and --there.
With --afterwards instead of --uri FILE it prints the lines of rabbitmqctl that remove all of that after the trial.

All is made beforehand and stays: nothing is declared, linked or removed while a trial runs, but for the one queue
that federation makes at its upstream when the link comes up for the first time.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_WEIGHTS = "weights"
_RECONNECT_S = 5
_PRIORITY = 100  # as the plan's own: above the catch-all policies that brokers have, since one alone is applied

Site = tuple[str, list[str]]  # its name, and its peers


class Unusable(Exception):
    """What was asked for cannot be done; the text says why, and what to do."""


def cut(whole: dict[str, Any], *, here: Site, there: Site, by: str, uri: str) -> dict[str, Any]:
    """Return what one of two brokers imports.

    Args:
        whole: definitions of the trial for one broker.
        here: this site.
        there: the other site.
        by: `federation` (this broker fetches from the other one) or `shovel` (it brings to the other one).
        uri: of the other broker, with the user by which this one logs in there.

    Raises:
        Unusable: the peers do not match, or the trial needs one common broker.
    """
    exchange, vhost = whole["exchanges"][0]["name"], whole["exchanges"][0]["vhost"]
    addresses = {each["routing_key"] for each in whole["bindings"]}
    if _WEIGHTS in addresses:
        raise Unusable(
            "A server-aided trial needs one broker that all its peers reach: its weights rest in one queue, and a get "
            "crosses neither federation nor shovel. Choose fully-connected or masked-average, or use one broker."
        )
    if set(here[1]) & set(there[1]) or addresses != {*here[1], *there[1]}:
        named = ", ".join(sorted(addresses))
        raise Unusable(f"Every peer stands in one of --here and --there, and once. The peers are {named}.")

    answer = _part(whole, exchange, here[1])
    link = f"link-{there[0]}"
    algorithm = "rabbit_password_hashing_sha256"
    answer["users"].append({"name": link, "password_hash": "", "hashing_algorithm": algorithm, "tags": ""})
    answer["permissions"].append({"user": link, "vhost": vhost, **_rights(exchange, there[0], by)})
    answer["topic_permissions"].append(
        {"user": link, "vhost": vhost, "exchange": exchange, **_keys(here[1], there[1], by)}
    )
    join = _federation if by == "federation" else _shovel
    join(answer, exchange, vhost, there, uri)
    return answer


def removal(answer: dict[str, Any], *, here: Site, there: Site, by: str) -> list[str]:
    """Return the lines that take away what one site imported, and what the other site's link made there.

    Args:
        answer: what `cut` returned for this site.
        here: this site.
        there: the other site.
        by: as for `cut`.
    """
    exchange, vhost = answer["exchanges"][0]["name"], answer["exchanges"][0]["vhost"]
    link = f"link-{there[0]}"
    peers = [each["user"] for each in answer["permissions"] if each["user"] != link]
    lines = [
        f"# After the trial, at {here[0]}, whether the other site has done the same yet or not; the peers have ended.",
        f"# Is nothing else in the vhost? Then this, and the lines with delete_user: {_line('delete_vhost', vhost)}",
        "",
        "# First the other site's link loses its user, and so its connection: it makes nothing again.",
        _line("delete_user", link),
    ]
    for_links = [(each["component"], each["name"]) for each in answer["parameters"]]
    lines += [_line("clear_parameter", "--vhost", vhost, *each) for each in for_links]
    lines += [_line("clear_policy", "--vhost", vhost, each["name"]) for each in answer["policies"]]
    lines += [_line("delete_queue", "--vhost", vhost, each["name"]) for each in answer["queues"]]
    exchanges = [exchange]
    if by == "federation":
        own = f"federation: {exchange} -> {there[0]}"
        gone = "   # gone where the other site's link ended first, or never came up"
        lines.append(f"{_line('delete_queue', '--vhost', vhost, own)} || true{gone}")
        exchanges += [f"{own} A", f"{own} B"]
    lines += ["", "# rabbitmqctl has no line for exchanges; where one is gone already this says not_found."]
    lines += [_line("eval", _delete_exchange(vhost, each)) for each in exchanges]
    lines += ["", "# What the peers' users could do here."]
    for user in peers:
        lines.append(_line("clear_topic_permissions", "--vhost", vhost, user, exchange))
        lines.append(_line("clear_permissions", "--vhost", vhost, user))
    made = [each["name"] for each in answer["users"] if each["name"] != link]
    if made:
        lines += ["", "# The users, if they are in no other trial:", *(_line("delete_user", each) for each in made)]
    return lines


def _delete_exchange(vhost: str, name: str) -> str:
    """Return an Erlang expression, which RabbitMQ 3.10.8 was given."""
    place, named = (json.dumps(each, ensure_ascii=False) for each in (vhost, name))
    resource = f"rabbit_misc:r(<<{place}/utf8>>, exchange, <<{named}/utf8>>)"
    return f'rabbit_exchange:delete({resource}, false, <<"rabbitmqctl">>).'


def _line(*words: str) -> str:
    return shlex.join(("rabbitmqctl", *words))


def _part(whole: dict[str, Any], exchange: str, peers: list[str]) -> dict[str, Any]:
    """Keep what belongs to these peers, or to none. A user belongs to the peer whose inbox it may read."""
    inboxes = [f"{exchange}.{peer}" for peer in peers]
    users = {each["user"] for each in whole["permissions"] if any(re.search(each["read"], name) for name in inboxes)}
    kept = {
        "users": lambda item: item["name"] in users,
        "permissions": lambda item: item["user"] in users,
        "topic_permissions": lambda item: item["user"] in users,
        "queues": lambda item: item["name"] in inboxes,
        "bindings": lambda item: item["destination"] in inboxes,
    }
    everything = {section: items for section, items in whole.items() if isinstance(items, list)}
    everything = {section: [] for section in (*kept, "parameters", "policies")} | everything
    return {
        section: [item for item in items if section not in kept or kept[section](item)]
        for section, items in everything.items()
    }


def _rights(exchange: str, there: str, by: str) -> dict[str, str]:
    """Return what the other broker's link may do here."""
    escaped = exchange.replace(".", r"\.")
    if by == "shovel":  # it publishes, as a peer does
        return {"configure": "^$", "write": f"^{escaped}$", "read": "^$"}
    # Federation makes one queue here, named after the other broker's `cluster_name`, and in turn exchanges A and B of
    # this name; binds them, and consumes. With more freedom the link could make any number of queues, and fill them.
    own = f"federation: {escaped} -> {there}( [AB])?"
    return {"configure": f"^{own}$", "write": f"^{own}$", "read": f"^({escaped}|{own})$"}


def _keys(here: list[str], there: list[str], by: str) -> dict[str, str]:
    """Return for which keys it may bind (read) or publish (write): with all, the other broker could copy everything."""
    reads, writes = (there, []) if by == "federation" else ([], here)
    return {"read": _one_of(reads), "write": _one_of(writes)}


def _one_of(names: list[str]) -> str:
    return f"^({'|'.join(sorted(names))})$" if names else "^$"


def _federation(answer: dict[str, Any], exchange: str, vhost: str, there: Site, uri: str) -> None:
    escaped = exchange.replace(".", r"\.")
    value = {
        "uri": uri,
        "ack-mode": "on-confirm",  # the upstream forgets a message once this broker has it
        "max-hops": 1,  # what came from the other site does not go back
        "trust-user-id": False,
        "reconnect-delay": _RECONNECT_S,
        # Neither "expires" nor "message-ttl": they would lose what waits while the link is down.
    }
    answer["parameters"].append({"vhost": vhost, "component": "federation-upstream", "name": there[0], "value": value})
    # Its queue is a classic one, and a policy with a key that such a queue does not have is not applied to it.
    _add_limits(
        answer, f"{exchange} to {there[0]}", f"^federation: {escaped} -> {there[0]}$", len(there[1]), "delivery-limit"
    )
    answer["policies"].append(
        {
            "vhost": vhost,
            "name": f"{exchange} from {there[0]}",
            "pattern": f"^{escaped}$",
            "apply-to": "exchanges",
            "priority": _PRIORITY,
            "definition": {"federation-upstream": there[0]},
        }
    )


def _shovel(answer: dict[str, Any], exchange: str, vhost: str, there: Site, uri: str) -> None:
    queue = f"{exchange}.to.{there[0]}"  # no peer's: their names have no dot
    answer["queues"].append({**answer["queues"][0], "name": queue})
    like = answer["bindings"][0]
    for peer in sorted(there[1]):
        answer["bindings"].append({**like, "destination": queue, "routing_key": peer})
    value = {
        "src-protocol": "amqp091",
        "src-uri": f"amqp:///{vhost}",  # within this broker, without a password
        "src-queue": queue,
        "src-delete-after": "never",
        "dest-protocol": "amqp091",
        "dest-uri": uri,
        "dest-exchange": exchange,  # the routing key stays the recipient's name
        "ack-mode": "on-confirm",
        "reconnect-delay": _RECONNECT_S,
    }
    answer["parameters"].append(
        {"vhost": vhost, "component": "shovel", "name": f"{exchange} to {there[0]}", "value": value}
    )
    _add_limits(answer, f"{exchange} to {there[0]}", f"^{queue.replace('.', chr(92) + '.')}$", len(there[1]))


def _add_limits(answer: dict[str, Any], name: str, pattern: str, peers: int, *without: str) -> None:
    """Give the queue of what crosses the limits that an inbox has, if any: the length times the peers behind it."""
    like = next((each for each in answer["policies"] if each["apply-to"] in ("queues", "all")), None)
    if like is None:
        return
    definition = {key: value for key, value in like["definition"].items() if key not in without}
    for limit in ("max-length", "max-length-bytes"):
        if limit in definition:
            definition[limit] *= peers
    answer["policies"].append({**like, "name": name, "pattern": pattern, "definition": definition})


def _checked_uri(text: str, *, without_tls: bool) -> str:
    parts = urlsplit(text)
    if parts.scheme == "amqp" and not without_tls:
        raise Unusable("The link's URI is not encrypted. Write amqps://, or --without-tls where a VPN does it.")
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise Unusable("The link's URI is none of AMQP: amqps://USER:PASSWORD@HOST:5671/VHOST?...")
    if parts.scheme == "amqps" and parse_qs(parts.query).get("verify") != ["verify_peer"]:
        raise Unusable(
            "The link would not check whom it talks to: RabbitMQ needs verify=verify_peer in the URI, beside "
            "cacertfile=FILE and server_name_indication=HOST."
        )
    return text


def _site(text: str) -> Site:
    name, mark, peers = text.partition("=")
    names = peers.split(",")
    if not mark or not all(_NAME.fullmatch(each) for each in (name, *names)) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError("it is written SITE=PEER,PEER,...; names have a-z, 0-9 and -")
    return name, names


def main() -> int:
    """Read the command line, print one site's definitions."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("definitions", type=Path, help="of the whole trial, as for one broker")
    parser.add_argument("--here", required=True, type=_site, metavar="SITE=PEERS", help="this broker's site")
    parser.add_argument("--there", required=True, type=_site, metavar="SITE=PEERS", help="the other broker's site")
    parser.add_argument("--by", choices=("federation", "shovel"), default="federation", help="how they are joined")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--uri", type=Path, metavar="FILE", help="holds the other broker's URI: a secret")
    what.add_argument("--afterwards", action="store_true", help="print the lines that remove it all after the trial")
    parser.add_argument("--without-tls", action="store_true", help="allow amqp:// in the URI")
    options = parser.parse_args()
    try:
        uri = ""
        if options.uri is not None:
            uri = _checked_uri(options.uri.read_text(encoding="utf-8").strip(), without_tls=options.without_tls)
        whole = json.loads(options.definitions.read_text(encoding="utf-8"))
        answer = cut(whole, here=options.here, there=options.there, by=options.by, uri=uri)
    except KeyError as missing:
        parser.error(f"{options.definitions} holds no definitions of a trial: it lacks {missing}.")
    except (OSError, ValueError, Unusable) as error:
        parser.error(str(error))
    if options.afterwards:
        print("\n".join(removal(answer, here=options.here, there=options.there, by=options.by)))
    else:
        print(json.dumps(answer, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
