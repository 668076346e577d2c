"""The plan as a page of Markdown: what an administrator is asked for, why, and what stays possible."""

from __future__ import annotations

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.report.relay_plan.sizes import Sizes, readable
from ppdl_mq.transport.plan.lines import limit_lines, password_lines, removal_lines
from ppdl_mq.transport.plan.making import NOTHING, UNLIMITED
from ppdl_mq.transport.plan.objects import Plan

DEFINITIONS = "definitions.json"
SCRIPT = "rabbitmqctl.sh"
PAGE = "ADMINISTRATOR.md"


def page(plan: Plan, manifest: Manifest, sizes: Sizes | None) -> str:
    """Return the page.

    Args:
        plan: what is to be set up.
        manifest: of the same trial.
        sizes: of it; None where the size of the model is not known.
    """
    parts = [_head(plan), _things(plan), _rights(plan), _setup(plan), _broker_sees(plan), _remains(plan)]
    parts += [_sizes(plan, manifest, sizes), _policy(plan), _afterwards(plan), _versions()]
    return "\n\n".join(parts) + "\n"


def _head(plan: Plan) -> str:
    return (
        f"# The trial `{plan.trial}` at your RabbitMQ\n\n{len(plan.rights)} organisations train a model together; "
        "their messages pass this broker, sealed and signed. It is trusted with nothing but to keep them until they "
        "are fetched. They need no management account, no default exchange, no plug-in, and no right outside the "
        f"names below. Nothing on this page is secret.\n\nWritten by `ppdl-mq relay plan`, beside `{DEFINITIONS}` "
        f"(to import) and `{SCRIPT}` (the same, line by line)."
    )


def _things(plan: Plan) -> str:
    rows = [("topic exchange", plan.exchange, "everything is published here")]
    for right, inbox in zip(plan.rights, plan.inboxes, strict=True):
        made_by = f"; `{right.user}` makes it" if plan.choices.peers_declare else ""
        rows.append(("queue", inbox, f"inbox of {right.peer}, bound with its name{made_by}"))
    if plan.weights:
        rows.append(("queue", plan.weights, "the current weights, sealed, bound with `weights`"))
    rows.append(("policy", plan.policy.name, "for these queues alone; see below"))
    lines = [f"| {kind} | `{name}` | {what} |" for kind, name, what in rows]
    there = " (which exists)" if plan.choices.existing_vhost else ""
    return "\n".join(
        [
            "## What there will be",
            "",
            f"In the vhost `{plan.choices.vhost}`{there}, all durable, queues of the type {plan.choices.queue_type}:",
            "",
            "| | name | what for |",
            "|---|---|---|",
            *lines,
        ]
    )


def _rights(plan: Plan) -> str:
    rows = [
        line
        for each in plan.rights
        for line in (
            f"    {each.user}",
            f"        configure        {_shown(each.configure)}",
            f"        write            {_shown(each.write)}",
            f"        read             {_shown(each.read)}",
            f"        bind with keys   {_shown(each.bind_keys)}",
        )
    ]
    lines = [
        "## Who may do what",
        "",
        "Patterns, as `rabbitmqctl` takes them between quotes:",
        "",
        *rows,
        "",
        f"Each may publish to the exchange with the routing keys `{plan.rights[0].publish_keys}` (topic "
        "permission), "
        "and read its own inbox" + (" and the weights." if plan.weights else "."),
    ]
    if plan.choices.peers_declare:
        lines.append(
            "Each makes its inbox itself: configure on it, and to bind it write on it and read on the exchange. The "
            "topic permission is what keeps it from binding the inbox with another's key and getting copies: do not "
            "leave it out."
        )
    else:
        lines.append("Nobody may make, remove or bind anything: peer.toml says `declare = false`.")
    lines += [
        "A user has one set of rights in a vhost: importing the plan of another trial for the same users and vhost "
        "replaces these. Give every trial a vhost of its own, or its users other names (`--user PEER=NAME`).",
    ]
    return "\n".join(lines)


def _setup(plan: Plan) -> str:
    choices = plan.choices
    lines = ["## Set it up", "", f"    rabbitmqctl import_definitions < {DEFINITIONS}"]
    if not choices.existing_users:
        lines += [f"    {each}" for each in password_lines(plan)]
    lines += ["", "Importing adds to what is there; an exchange or queue of the same name stays as it is."]
    if not choices.existing_users:
        names = ", ".join(f"`{each.user}`" for each in plan.rights)
        lines.append(
            f"**It takes password and tags from the users {names}, if they exist**, at every import: set the "
            "passwords after it, or make the plan with `--existing-users` where they are there, or come from LDAP, "
            "OAuth or certificates. Give each organisation its own password over a channel that you trust."
        )
    if not choices.existing_vhost:
        lines.append(
            f"If the vhost `{choices.vhost}` exists, it loses its description and tags: `--existing-vhost` leaves it "
            "as it is."
        )
    lines += [
        "",
        "Each organisation then checks, from its own machine, without any right of yours: `ppdl-mq relay check "
        "--config peer.toml --trial FILE`.",
    ]
    return "\n".join(lines)


def _broker_sees(plan: Plan) -> str:
    return (
        "## What you will see, and what not\n\n"
        "Each peer opens one connection to your AMQP port, 5671 with TLS, and on it 4 channels; nobody connects to a "
        "peer. It verifies chain and host name of your certificate, and logs in with a password (PLAIN) or a client "
        "certificate (EXTERNAL).\n\n"
        "Each message has a clear header: the trial's id, who sends it to whom, its kind, turn or round, part number "
        "and size. You see these, the users, addresses and times of connections, and connections named "
        f"`ppdl-mq {plan.trial}/PEER`. You cannot read weights, records, metrics or keys, nor change, replay or roll "
        "back a message without its reader noticing. You can delay, lose or refuse messages: that stalls the trial, "
        "and reveals nothing."
    )


def _remains(plan: Plan) -> str:
    lines = ["## What a user with these rights could still do", ""]
    if plan.weights:
        lines.append(
            f"- To read `{plan.weights}` includes to purge it: any peer can destroy the resting weights, or take them "
            "and give them back to nobody, never read past the seal or forge them. Their maker sends them again when "
            "it is asked; who does it again and again stops the trial. A consumer on this queue is no peer at work: "
            "peers get."
        )
    lines += [
        "- Fill the queues of this trial with junk. The limits below count what waits to be fetched, and nothing else: "
        "who fetches from its own inbox and acknowledges nothing goes past them (3.10.8 took 251 MB into a queue "
        "limited to 67), until `consumer_timeout` ends that. Where it fills the disk, RabbitMQ stops the publishers of "
        "all vhosts. So watch `messages_unacknowledged`, and end it with `rabbitmqctl clear_permissions` and "
        "`rabbitmqctl close_all_user_connections`; a broker of its own is what keeps others out of it.",
        "- Open connections and channels without end, each of which takes memory: `rabbitmqctl set_user_limits` sets a "
        "limit.",
        "- Name further routing keys in the header `CC`, which RabbitMQ does not compare with topic permissions: it "
        f"reaches whatever is bound to `{plan.exchange}`. So bind nothing to it but what is listed above.",
        "- Learn how many messages wait in a queue of this vhost whose name it knows, how many read it, and whether an "
        "exchange or queue of some name is there: RabbitMQ asks for no right for that.",
    ]
    if plan.choices.peers_declare:
        lines.append(
            "- Remove its own inbox, or make it anew with other arguments or of another type: its own loss. But to "
            "another type of queue the policy does not apply, and so no limit: an operator policy sets one."
        )
    if limit_lines(plan):
        lines += ["", "What holds a user that means harm, if your broker has others; after the setup:", ""]
        lines += [f"    {each}" for each in limit_lines(plan)]
    return "\n".join(lines)


def _sizes(plan: Plan, manifest: Manifest, sizes: Sizes | None) -> str:
    chunk = manifest.relay.chunk_bytes
    lines = [
        "## Sizes",
        "",
        f"- One AMQP message has at most {chunk} bytes (`relay.chunk_bytes` in the manifest): `max_message_size` "
        "must not be less. RabbitMQ's default is 128 MiB, since 4.0 16 MiB; services allow as little as 1 MB.",
    ]
    if sizes is None:
        lines.append(
            "- The size of the model is not known here, so no queue has a limit: `--weights-bytes` sets one. On "
            "disk, plan for several times the model's size for each queue."
        )
    else:
        away = readable(sizes.inbox_peak)
        parts = f"{sizes.parts} message{'s' if sizes.parts > 1 else ''}"
        total = sizes.inbox_peak * len(plan.inboxes) + sizes.weights_peak
        limits = sizes.queue_limit * (len(plan.inboxes) + bool(plan.weights))
        lines += [
            f"- The model's weights are {readable(sizes.weights)}; the largest letter travels as {parts}.",
            f"- About {away} wait in the inbox of a peer that is away"
            + (f", and {readable(sizes.weights_peak)} in `{plan.weights}`" if plan.weights else "")
            + f"; in all about {readable(total)}. The limits of all queues together are {readable(limits)}, beyond "
            "what is fetched and not acknowledged; a quorum queue keeps that on each of its nodes. Let "
            "`disk_free_limit` leave room.",
        ]
    if plan.weights:
        lines.append(
            f"- A peer keeps what it took from `{plan.weights}` unacknowledged while it trains. `consumer_timeout` "
            "(default: 30 minutes) should be longer than the longest turn; otherwise the peer fetches the weights "
            "again, which costs time only."
        )
    return "\n".join(lines)


def _policy(plan: Plan) -> str:
    definition = plan.policy.definition
    lines = [
        f"## The policy `{plan.policy.name}`",
        "",
        "Limits come by policy, so that you can change them while the trial runs:",
        "",
        "- `overflow: reject-publish`: what is over a limit is refused to its sender, who tries again. Anything "
        "else drops messages.",
    ]
    if "max-length-bytes" in definition:
        lines.append(
            f"- `max-length-bytes: {definition['max-length-bytes']}`: far above what an honest trial leaves in a queue."
        )
    if "delivery-limit" in definition:
        lines.append(
            f"- `delivery-limit: {UNLIMITED}`, which is none: RabbitMQ 4.x otherwise drops what was handed out 20 "
            "times, such as messages to a peer that restarts often. (-1 says the same to 4.x and is refused by 3.x.)"
        )
    lines += [
        "- No `message-ttl`, no `expires`: a peer may be away for days. No dead-letter exchange: nothing is ever "
        "rejected, expired or dropped, so nothing would come there. Add one to this policy if your rules ask for it.",
        "",
        f"Its priority is {plan.policy.priority}: RabbitMQ applies one policy to a queue, and nothing of the others "
        "that match. Of a policy of yours with a higher priority nothing may drop messages. Operator policies hold "
        "beside it: they must not set `message-ttl`, `expires` or a small `delivery-limit`. The type of a queue is "
        "no matter of policies; the definitions name it.",
    ]
    return "\n".join(lines)


def _afterwards(plan: Plan) -> str:
    return "\n".join(
        ["## When the trial is over", "", *(f"    {each}" if each else "" for each in removal_lines(plan))]
    )


def _versions() -> str:
    return (
        "## Versions\n\nRun with RabbitMQ 3.10.8: import, rights, whole trials. For 3.11 to 4.x it follows from "
        "release notes: no classic mirroring, no transient queue, no global QoS, `frame_max` of at least 8192."
    )


def _shown(pattern: str) -> str:
    """Return a pattern as people read it."""
    return "nothing" if pattern == NOTHING else pattern
