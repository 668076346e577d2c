"""What RabbitMQ's management tells over HTTP and AMQP does not: policies, arguments, types, alarms, the clock.

Optional: an account with the tag `management` is asked for nowhere else. What it tells of a queue is as old as the
broker's statistics, 5 seconds by default.
"""

from __future__ import annotations

import base64
import email.utils
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretStr

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.hosts import is_this_machine
from ppdl_mq.errors import ConfigError
from ppdl_mq.transport.findings import Finding, Wanted
from ppdl_mq.transport.plan.lines import exchange_removal
from ppdl_mq.transport.rabbitmq.doctor.certificates import now
from ppdl_mq.transport.rabbitmq.doctor.judgement import USUAL_DELIVERY_LIMIT, has_usual_limit, judge_queue
from ppdl_mq.transport.rabbitmq.doctor.lines import ctl
from ppdl_mq.transport.rabbitmq.parameters import tls_context

_MAX_REPLY_BYTES: Final = 4 * 1024 * 1024
_CLOCKS_DIFFER_S: Final = 60.0
_FORM: Final = "Write http://USER@HOST:15672 or https://USER@HOST:15671."


@dataclass(frozen=True, slots=True, kw_only=True)
class Management:
    """Where the management is. Printable: the password is a secret.

    Args:
        url: `http://host:port` or `https://host:port`, with the path of a proxy where there is one.
        user: whom to log in as.
        password: with what.
    """

    url: str
    user: str
    password: SecretStr

    @classmethod
    def parse(cls, url: str, broker: BrokerAddress, password: SecretStr | None) -> Management:
        """Read `https://user@host:port`; without user and password they are the broker's.

        Raises:
            ConfigError: the URL is malformed, or holds a password, or there is none for its user.
        """
        try:
            parts = urlsplit(url)
            host, port, has_password = parts.hostname, parts.port, parts.password is not None
        except ValueError:  # its text may quote the URL, and with it a password
            raise ConfigError("The management's URL is malformed.", hint=_FORM) from None
        if has_password:
            raise ConfigError(
                "The management's URL holds a password, which would end up in shell histories and logs.",
                hint="Take it out, and give --management-password-env NAME.",
            )
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise ConfigError("The management's URL is not of the form that is known.", hint=_FORM)
        place = f"[{host}]" if ":" in host else host
        user = unquote(parts.username) if parts.username else broker.login
        if password is None and user != broker.login:
            raise ConfigError(
                f"No password is given for the management's user {user!r}.", hint="Give --management-password-env NAME."
            )
        return cls(
            url=f"{parts.scheme}://{place}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}",
            user=user,
            password=broker.password() if password is None else password,
        )


class _Refused(Exception):
    """The management answers, and not with what was asked for. The argument is the HTTP status."""


def ask_management(management: Management, broker: BrokerAddress, wanted: Wanted | None) -> Iterator[Finding]:
    """Look at the broker over its management; the last finding is called `management` and says whether it answered.

    Args:
        management: where to.
        broker: for TLS and for the administrator's lines.
        wanted: what a trial needs, or None.
    """
    try:
        yield from _clear(management)
        overview, date = _get(management, broker, "overview")
        yield _clock(date)
        yield from _room(management, broker)
        if wanted is not None:
            yield from _exchange(management, broker, wanted)
            for address in wanted.own_addresses:
                yield from _queue(management, broker, wanted, address, str(overview["rabbitmq_version"]))
    except _Refused as refused:
        status = refused.args[0]
        closed = status in (401, 403)
        yield Finding(
            check="management",
            result="unknown",
            says=f"The management at {management.url} "
            + (f"does not let {management.user!r} in." if closed else f"answers with HTTP status {status}."),
            todo="Check user and password; the user needs the tag management, and rights in the vhost."
            if closed
            else "Is it the URL of RabbitMQ's management?",
            line=ctl("set_user_tags", management.user, "management") if closed else "",
        )
    except (OSError, HTTPException, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "it is no RabbitMQ management"
        yield Finding(
            check="management",
            result="unknown",
            says=f"The management at {management.url} does not answer as it should: {reason}.",
            todo="Check the URL; the port is 15672, or 15671 with TLS.",
            line="rabbitmq-plugins enable rabbitmq_management",
        )
    else:
        yield Finding(check="management", result="pass", says=f"The management at {management.url} answers.")


def _clear(management: Management) -> Iterator[Finding]:
    parts = urlsplit(management.url)
    if parts.scheme == "http" and not is_this_machine(parts.hostname or ""):
        yield Finding(
            check="management",
            result="warn",
            says="The management is asked without TLS: whoever listens on the way sees its password.",
            todo="Use https://, or ask from the broker's own machine.",
        )


def _clock(date: datetime) -> Finding:
    seconds = abs((date - now()).total_seconds())
    if seconds > _CLOCKS_DIFFER_S:
        return Finding(
            check="clock",
            result="warn",
            says=f"The broker's clock and this machine's differ by {seconds:.0f} s.",
            todo="Set the wrong one right: certificates hold from one moment to another, and logs are compared.",
            line="timedatectl   # on both machines",
            figures={"clocks_differ_s": round(seconds)},
        )
    return Finding(check="clock", result="pass", says="The broker's clock and this machine's agree within a minute.")


def _room(management: Management, broker: BrokerAddress) -> Iterator[Finding]:
    try:
        _get(management, broker, "health/checks/alarms")
    except _Refused as refused:
        if refused.args[0] != 503:
            return  # needs the tag `monitoring`; publishing tells as well
        yield Finding(
            check="room",
            result="fail",
            says="The broker has an alarm: it is short of memory or disk, and takes no messages.",
            todo="Peers wait until it has room again; ask the administrator to make some.",
            line="rabbitmq-diagnostics alarms",
            passes=True,
        )


def _exchange(management: Management, broker: BrokerAddress, wanted: Wanted) -> Iterator[Finding]:
    name = wanted.names.exchange
    found = _find(management, broker, f"exchanges/{quote(broker.vhost, safe='')}/{quote(name, safe='')}")
    if found is None:
        return  # told over AMQP
    right = found["type"] == "topic" and found["durable"] is True
    how = f"of type {found['type']} and {'durable' if found['durable'] else 'not durable'}"
    yield Finding(
        check="exchange",
        result="pass" if right else "fail",
        says=f"The exchange {name} is {how}.",
        todo="" if right else "Ask the administrator to remove it and declare it anew: topic, durable.",
        line="" if right else exchange_removal(broker.vhost, name),
    )


def _queue(
    management: Management, broker: BrokerAddress, wanted: Wanted, address: str, version: str
) -> Iterator[Finding]:
    name, enough_bytes = wanted.names.queue(address), wanted.queue_bytes
    found = _find(management, broker, f"queues/{quote(broker.vhost, safe='')}/{quote(name, safe='')}")
    if found is None:
        return  # told over AMQP
    own = {key: str(found[key]).lower() for key in ("durable", "auto_delete") if key in found}
    arguments = dict(found.get("arguments") or {}) | own | {"x-queue-type": found.get("type", "classic")}
    yield from judge_queue(broker, name, arguments, from_policy=False, enough_bytes=enough_bytes)
    policy = dict(found.get("effective_policy_definition") or {})
    if has_usual_limit(version, {**arguments, **policy}):
        policy["delivery-limit"] = USUAL_DELIVERY_LIMIT
    yield from judge_queue(broker, name, policy, from_policy=True, enough_bytes=enough_bytes)
    members, online = found.get("members"), found.get("online")
    if isinstance(members, list) and isinstance(online, list) and len(online) < len(members):
        yield Finding(
            check="members",
            result="warn",
            says=f"Of the {len(members)} copies of the queue {name} only {len(online)} are up.",
            todo="Ask the administrator whether a node of the cluster is down.",
            line="rabbitmq-diagnostics cluster_status",
        )


def _find(management: Management, broker: BrokerAddress, path: str) -> dict[str, Any] | None:
    try:
        found, _ = _get(management, broker, path)
    except _Refused as refused:
        if refused.args[0] == 404:
            return None
        raise
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The password goes to the host that was named and to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


def _get(management: Management, broker: BrokerAddress, path: str) -> tuple[dict[str, Any], datetime]:
    """Return what the management says, and its clock; over https the certificate is verified as the broker's is."""
    said = f"{management.user}:{management.password.get_secret_value()}".encode()
    request = urllib.request.Request(  # noqa: S310 (the scheme is checked in `parse`)
        f"{management.url}/api/{path}", headers={"Authorization": f"Basic {base64.b64encode(said).decode()}"}
    )
    opener = urllib.request.build_opener(
        _NoRedirect, urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls_context(broker))
    )
    try:
        with opener.open(request, timeout=limits.TCP_S) as reply:
            raw = reply.read(_MAX_REPLY_BYTES)
            date = email.utils.parsedate_to_datetime(reply.headers["Date"])
    except urllib.error.HTTPError as error:
        error.close()
        raise _Refused(error.code) from None
    found = json.loads(raw)
    if not isinstance(found, dict):
        raise TypeError("no JSON object")
    return found, date
