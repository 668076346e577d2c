"""A plan as RabbitMQ's definitions: the file that `rabbitmqctl import_definitions` and the management UI import.

Only keys that RabbitMQ 3.10 to 4.x all know. An import adds to what is there; what exists keeps its properties, but for
users (who lose password and tags) and vhosts (which lose description and tags): those can be left out.
"""

from __future__ import annotations

from typing import Any

from ppdl_mq.transport.plan.objects import Plan


def definitions(plan: Plan) -> dict[str, Any]:
    """Return all of a plan. The users have no passwords, so that nobody can log in with one before it is set."""
    vhost = plan.choices.vhost
    answer: dict[str, Any] = {}
    if not plan.choices.existing_vhost:
        answer["vhosts"] = [{"name": vhost}]
    if not plan.choices.existing_users:
        answer["users"] = [
            {
                "name": each.user,
                "password_hash": "",
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for each in plan.rights
        ]
    answer["permissions"] = [
        {"user": each.user, "vhost": vhost, "configure": each.configure, "write": each.write, "read": each.read}
        for each in plan.rights
    ]
    answer["topic_permissions"] = [
        {
            "user": each.user,
            "vhost": vhost,
            "exchange": plan.exchange,
            "write": each.publish_keys,
            "read": each.bind_keys,
        }
        for each in plan.rights
    ]
    answer["policies"] = [
        {
            "vhost": vhost,
            "name": plan.policy.name,
            "pattern": plan.policy.pattern,
            "apply-to": "queues",
            "definition": dict(plan.policy.definition),
            "priority": plan.policy.priority,
        }
    ]
    return answer | topology(plan)


def topology(plan: Plan) -> dict[str, Any]:
    """Return only what `rabbitmqctl` has no line for: the exchange, the queues and their bindings."""
    vhost = plan.choices.vhost
    return {
        "exchanges": [
            {
                "name": plan.exchange,
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
                "name": each.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                # The only argument: everything else comes from the policy, which can be changed later.
                "arguments": {"x-queue-type": plan.choices.queue_type},
            }
            for each in plan.queues
        ],
        "bindings": [
            {
                "source": plan.exchange,
                "vhost": vhost,
                "destination": each.name,
                "destination_type": "queue",
                "routing_key": each.key,
                "arguments": {},
            }
            for each in plan.queues
        ],
    }
