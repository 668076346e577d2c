"""Before a peer loads its data: would the trial run at this relay?"""

from __future__ import annotations

import logging

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.findings import Finding, Wanted, refuse_failures
from ppdl_mq.transport.opening import examine_relay

log = logging.getLogger("ppdl_mq.peer")


def wanted_of(manifest: Manifest, me: str) -> Wanted:
    """Return what a peer needs of the relay.

    Args:
        manifest: of the trial.
        me: the peer's name in it.
    """
    return Wanted(
        names=Names(prefix=manifest.relay.prefix, trial=manifest.name),
        me=me,
        peers=manifest.peer_names,
        shares_weights=manifest.shares_weights,
        chunk_bytes=manifest.relay.chunk_bytes,
    )


def check_relay(broker: BrokerAddress, manifest: Manifest, me: str) -> None:
    """Look at the relay before anything is loaded, so that what would end the peer later ends it now.

    What may pass by itself, such as a relay that does not answer, is only logged: the peer waits for it as always.

    Args:
        broker: where the relay is.
        manifest: of the trial.
        me: this peer's name.

    Raises:
        RelayRefused: the trial cannot run there; the hint holds the line for the relay's administrator.
        ConfigError: no password can be found.
    """
    findings: list[Finding] = []
    for finding in examine_relay(broker, wanted_of(manifest, me), thorough=False):
        findings.append(finding)
        if finding.result == "warn" or (finding.result == "fail" and finding.passes):
            log.warning("the relay: %s %s", finding.says, finding.advice)
    refuse_failures(findings)
    if any(finding.check == "login" and finding.result == "pass" for finding in findings):
        hidden = ["policies", *(finding.check for finding in findings if finding.result == "unknown")]
        log.info("the relay: AMQP does not show %s; ask with the lines of `ppdl-mq relay check`", ", ".join(hidden))
