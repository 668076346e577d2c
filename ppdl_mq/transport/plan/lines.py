"""A plan as lines of `rabbitmqctl`: a script that sets it all up, and lines that take it away again."""

from __future__ import annotations

import json
import shlex
from typing import Final

from ppdl_mq.transport.plan.definitions import topology
from ppdl_mq.transport.plan.objects import Plan

PASSWORD_FOLDER: Final = "passwords"  # noqa: S105 (the name of a folder)

# Several times what a peer uses, for those of its connections that broke and that the broker has not missed yet.
USER_LIMITS: Final = {"max-connections": 16, "max-channels": 128}


def setup_script(plan: Plan) -> str:
    """Return a shell script that does the same as importing the definitions, line by line, and sets passwords.

    `rabbitmqctl` makes no exchanges, queues and bindings; the script imports those, and those alone. It can be run
    again, and where users and vhost exist: unlike an import it leaves passwords, tags and descriptions as they are.
    """
    choices = plan.choices
    lines = [
        "#!/bin/sh",
        f"# What the trial {plan.trial} needs, with rabbitmqctl: the same as `rabbitmqctl import_definitions` with",
        "# definitions.json. Run it whole, or only the lines that you need, as a user who may run rabbitmqctl.",
        "# It is safe to run again: no password of a user that exists is set, and a vhost that exists stays as it is.",
        "set -eu",
        'has() { printf "%s\\n" "$1" | cut -f 1 | grep -Fqx -e "$2"; }   # whether a list holds a name',
    ]
    if not choices.existing_vhost:
        lines += [
            "",
            "vhosts=$(rabbitmqctl list_vhosts --silent --no-table-headers name)",
            f'has "$vhosts" {shlex.quote(choices.vhost)} || {_line("add_vhost", choices.vhost)}',
        ]
    if not choices.existing_users:
        lines += [
            "",
            "# One user for each peer. The first line of its file is the password; where there is none, it is made.",
            f"umask 077; mkdir -p {PASSWORD_FOLDER}",
            "users=$(rabbitmqctl list_users --silent --no-table-headers)",
        ]
        for each in plan.rights:
            file = _password_file(each.peer)
            stays = f"The user {each.user} exists: password and tags stay, its rights in {choices.vhost} are set."
            lines += [
                f'if has "$users" {shlex.quote(each.user)}; then',
                f"    printf '%s\\n' {shlex.quote(stays)} >&2",  # some shells' echo changes backslashes
                "else",
                f"    [ -s {file} ] || openssl rand -base64 24 > {file}",
                f"    {_line('add_user', each.user)} < {file}",
                "fi",
            ]
    lines += ["", "# configure, write, read"]
    lines += [
        _in_vhost(plan, "set_permissions", each.user, each.configure, each.write, each.read) for each in plan.rights
    ]
    lines += ["", "# The routing keys with which it may publish, and bind."]
    lines += [
        _in_vhost(plan, "set_topic_permissions", each.user, plan.exchange, each.publish_keys, each.bind_keys)
        for each in plan.rights
    ]
    policy = plan.policy
    body = json.dumps(dict(policy.definition))
    lines += [
        "",
        "# Before the queues are, so that they never are without it.",
        _in_vhost(
            plan,
            *("set_policy", "--priority", str(policy.priority), "--apply-to", "queues"),
            *(policy.name, policy.pattern, body),
        ),
        "",
        "# rabbitmqctl has no lines for these.",
        "rabbitmqctl import_definitions <<'END'",
        json.dumps(topology(plan), indent=2),
        "END",
    ]
    return "\n".join(lines) + "\n"


def password_lines(plan: Plan) -> list[str]:
    """Return the lines that make and set a random password for each user, after an import."""
    lines = [f"umask 077; mkdir -p {PASSWORD_FOLDER}"]
    for each in plan.rights:
        file = _password_file(each.peer)
        lines += [
            f"openssl rand -base64 24 > {file}",
            f"{_line('change_password', each.user)} < {file}",
        ]
    return lines


def limit_lines(plan: Plan) -> list[str]:
    """Return the lines that hold a user who opens more and more connections, and what peers make by themselves."""
    lines = []
    if not plan.choices.existing_users:  # they may work in other vhosts, too, and the limits hold for all together
        lines = [_line("set_user_limits", each.user, json.dumps(USER_LIMITS)) for each in plan.rights]
    most = plan.policy.definition.get("max-length-bytes")
    if plan.choices.peers_declare and most is not None:
        # A policy with a key that a type of queue does not have is not applied to it, and who makes a queue chooses its
        # type. All types know this key.
        body = json.dumps({"max-length-bytes": most})
        arguments = ("--apply-to", "queues", plan.policy.name, plan.policy.pattern, body)
        lines.append(_in_vhost(plan, "set_operator_policy", *arguments))
    return lines


def exchange_removal(vhost: str, name: str) -> str:
    """Return the line that removes an exchange: an Erlang expression, since `rabbitmqctl` has no command for it."""
    place, named = (json.dumps(each, ensure_ascii=False) for each in (vhost, name))
    resource = f"rabbit_misc:r(<<{place}/utf8>>, exchange, <<{named}/utf8>>)"
    return _line("eval", f'rabbit_exchange:delete({resource}, false, <<"rabbitmqctl">>).')


def removal_lines(plan: Plan) -> list[str]:
    """Return the lines that remove what the trial had."""
    choices = plan.choices
    addresses = [*plan.inboxes, *([plan.weights] if plan.weights else [])]
    lines = []
    if not choices.existing_vhost:
        lines += ["# With everything in it, if nothing but this trial is in it:", _line("delete_vhost", choices.vhost)]
        lines += ["", "# Or what is this trial's alone:"]
    lines += [_in_vhost(plan, "delete_queue", each) for each in addresses]
    lines += [exchange_removal(choices.vhost, plan.exchange)]
    lines += [_in_vhost(plan, "clear_policy", plan.policy.name)]
    if choices.peers_declare and "max-length-bytes" in plan.policy.definition:
        lines += [f"{_in_vhost(plan, 'clear_operator_policy', plan.policy.name)}   # if it was set"]
    for each in plan.rights:
        lines += [
            _in_vhost(plan, "clear_topic_permissions", each.user, plan.exchange),
            _in_vhost(plan, "clear_permissions", each.user),
        ]
    if not choices.existing_users:
        lines += ["", "# The users, if they are in no other trial:"]
        lines += [_line("delete_user", each.user) for each in plan.rights]
    return lines


def _password_file(peer: str) -> str:
    return f"{PASSWORD_FOLDER}/{peer}.password"


def _in_vhost(plan: Plan, command: str, *arguments: str) -> str:
    return _line(command, "--vhost", plan.choices.vhost, *arguments)


def _line(*words: str) -> str:
    return shlex.join(("rabbitmqctl", *words))
