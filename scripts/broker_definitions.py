#!/usr/bin/env python3
"""Write RabbitMQ definitions for one trial: what exists beforehand, and who may do what. Needs Python alone.

    scripts/broker_definitions.py heart cleveland hungary switzerland va > definitions.json

One user for each peer, without a password unless --passwords names a folder with one file NAME.password for each. A
peer may publish to the trial's exchange, read its own inbox and, in server-aided trials, the queue of the weights; it
may create, remove and re-bind nothing, so its peer.toml says `declare = false`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import secrets
import sys
from pathlib import Path
from typing import Any

# As in the manifest. None of these characters is special in a regular expression.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
WEIGHTS = "weights"


def password_hash(password: str, salt: bytes) -> str:
    """Return RabbitMQ's hash of a password: base64(salt || SHA-256(salt || password)), with 4 bytes of salt."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(
    trial: str, peers: list[str], *, vhost: str, prefix: str, shared_weights: bool, hashes: dict[str, str]
) -> dict[str, Any]:
    """Return the definitions of one trial as RabbitMQ imports them.

    Args:
        trial: name of the trial.
        peers: names of the peers, which are also the names of their users.
        vhost: virtual host.
        prefix: first word of every name, `relay.prefix` in the manifest.
        shared_weights: whether the trial has the queue of the weights (server-aided).
        hashes: password hashes by peer; a peer without one cannot log in with a password.
    """
    exchange = f"{prefix}.{trial}"
    addresses = sorted(peers) + ([WEIGHTS] if shared_weights else [])
    escaped = exchange.replace(".", r"\.")
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": peer,
                "password_hash": hashes.get(peer, ""),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for peer in sorted(peers)
        ],
        "permissions": [
            {
                "user": peer,
                "vhost": vhost,
                "configure": "^$",
                "write": f"^{escaped}$",
                "read": rf"^{escaped}\.({peer}|{WEIGHTS})$" if shared_weights else rf"^{escaped}\.{peer}$",
            }
            for peer in sorted(peers)
        ],
        "topic_permissions": [
            {"user": peer, "vhost": vhost, "exchange": exchange, "write": f"^({'|'.join(addresses)})$", "read": "^$"}
            for peer in sorted(peers)
        ],
        "exchanges": [
            {
                "name": exchange,
                "vhost": vhost,
                "type": "topic",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
        ],
        "queues": [
            {
                "name": f"{exchange}.{address}",
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": {},
            }
            for address in addresses
        ],
        "bindings": [
            {
                "source": exchange,
                "vhost": vhost,
                "destination": f"{exchange}.{address}",
                "destination_type": "queue",
                "routing_key": address,
                "arguments": {},
            }
            for address in addresses
        ],
    }


def main() -> int:
    """Read the command line, print the definitions."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("trial", help="name of the trial")
    parser.add_argument("peers", nargs="+", metavar="peer", help="names of the peers, two or more")
    parser.add_argument("--vhost", default="ppdl", help="virtual host (ppdl)")
    parser.add_argument("--prefix", default="ppdl", help="relay.prefix of the manifest (ppdl)")
    parser.add_argument("--no-weights", action="store_true", help="no queue of the weights: for fully-connected")
    parser.add_argument("--passwords", type=Path, metavar="FOLDER", help="folder of files NAME.password")
    options = parser.parse_args()

    wrong = [name for name in (options.trial, options.prefix, *options.peers) if not NAME.fullmatch(name)]
    if wrong:
        parser.error(f"{wrong[0]!r} is not a name: a-z, 0-9 and -, 32 characters at most")
    if len(set(options.peers)) != len(options.peers) or len(options.peers) < 2:
        parser.error("a trial has two or more peers, each named once")
    if WEIGHTS in options.peers:
        parser.error(f"no peer can be called {WEIGHTS!r}: the queue of the weights is")

    hashes = {}
    if options.passwords:
        for peer in options.peers:
            file = options.passwords / f"{peer}.password"
            password = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
            if not password:
                parser.error(f"{file} is missing or empty")
            hashes[peer] = password_hash(password, secrets.token_bytes(4))

    answer = definitions(
        options.trial,
        options.peers,
        vhost=options.vhost,
        prefix=options.prefix,
        shared_weights=not options.no_weights,
        hashes=hashes,
    )
    print(json.dumps(answer, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
