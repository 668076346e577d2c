"""Logging in: the mechanism, the user, the vhost."""

from __future__ import annotations

from typing import Final

from ppdl_mq.errors import RelayError, RelayUnreachable
from ppdl_mq.transport.findings import Finding, Wanted
from ppdl_mq.transport.rabbitmq.doctor.lines import ctl, plan_line, user_of
from ppdl_mq.transport.rabbitmq.doctor.node import Node
from ppdl_mq.transport.rabbitmq.doctor.reach import Greeting
from ppdl_mq.transport.rabbitmq.doctor.session import Session

_EXTERNAL: Final = (
    "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl   # and in rabbitmq.conf: auth_mechanisms.1 = EXTERNAL, "
    "ssl_options.verify = verify_peer, ssl_cert_login_from = common_name"
)


def mechanism(node: Node, greeting: Greeting) -> Finding:
    """Say whether the broker offers the way of logging in that the settings ask for."""
    wanted = "EXTERNAL" if node.broker.by_certificate else "PLAIN"
    offered = f"only {', '.join(greeting.mechanisms)}" if greeting.mechanisms else "and no other this way"
    if wanted not in greeting.mechanisms:
        how = "a client certificate (EXTERNAL)" if node.broker.by_certificate else "a password (PLAIN)"
        other = (
            "set password_env or password_file and take certificate_file out"
            if node.broker.by_certificate
            else "set certificate_file and key_file"
        )
        return Finding(
            check="mechanism",
            result="fail",
            says=f"The broker offers no login with {how}, {offered}.",
            todo=f"Ask the administrator to offer it, or {other}.",
            line=_EXTERNAL if node.broker.by_certificate else "auth_mechanisms.1 = PLAIN   # in rabbitmq.conf",
        )
    if "ANONYMOUS" in greeting.mechanisms:
        return Finding(
            check="mechanism",
            result="warn",
            says="The broker lets anybody in without a password (ANONYMOUS).",
            todo="Ask the administrator to take that away.",
            line=f"auth_mechanisms.1 = {wanted}   # in rabbitmq.conf, and no others",
        )
    return Finding(
        check="mechanism", result="pass", says=f"The broker offers {', '.join(greeting.mechanisms)}; {wanted} is used."
    )


def log_in(node: Node, wanted: Wanted | None, *, trial: str, peer: str) -> Session | Finding:
    """Open a session, or say why there is none.

    Args:
        node: where.
        wanted: what the trial needs there, if it is about one.
        trial: named to the broker.
        peer: named to the broker.

    Raises:
        ConfigError: no password can be found.
    """
    try:
        return Session(node.broker, trial=trial, peer=peer)
    except RelayError as error:
        text = " ".join(str(layer) for layer in _causes(error))
        line = _line(node, wanted, text)
        return Finding(
            check="login",
            result="fail",
            says=error.message,
            todo="Check user, password and vhost, as the plan has them; where they are right, ask the administrator."
            if line
            else error.hint,
            line=line,
            passes=isinstance(error, RelayUnreachable),
        )


def _line(node: Node, wanted: Wanted | None, text: str) -> str:
    user = user_of(node.broker)
    if "NOT_ALLOWED" not in text and "ACCESS_REFUSED" not in text:
        return ""
    if "not found" in text:
        return plan_line() if wanted else f"{ctl('list_vhosts')}   # and then: {ctl('add_vhost', node.broker.vhost)}"
    if "limit" in text:  # of the vhost, or of the user
        of_user = ctl("list_user_limits", "--user", user)
        return f"{ctl('list_vhost_limits', vhost=node.broker.vhost)}; {of_user}"
    if "access to vhost" in text:  # a trial's rights are more than this line
        admit = ctl("set_permissions", user, "^$", "^$", "^$", vhost=node.broker.vhost)
        return plan_line() if wanted else f"{admit}   # lets it in, and no more"
    if node.broker.by_certificate:
        made, without = ctl("add_user", user, ""), ctl("clear_password", user)
        return f"{made}   # USER as in the certificate; then: {without}"
    return f"{ctl('authenticate_user', user)}   # asks for the password; then: {ctl('change_password', user)}"


def _causes(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(causes) < 10:
        causes.append(current)
        current = current.__cause__
    return causes
