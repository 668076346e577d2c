"""Who talks to which relay: from the files that a command is given."""

from __future__ import annotations

from pathlib import Path

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import read_settings
from ppdl_mq.crypto.identity import PublicIdentity
from ppdl_mq.errors import IdentityError
from ppdl_mq.peer.identity_file import read_public_line


def address_of(config: Path) -> BrokerAddress:
    """Return the relay's address in an organisation's settings.

    Raises:
        ConfigError: the settings do not hold.
    """
    return BrokerAddress.from_settings(read_settings(config).broker, config.absolute().parent)


def own_name(config: Path, manifest: Manifest, trial: Path) -> str:
    """Return this organisation's name in a trial.

    Args:
        config: its settings.
        manifest: of the trial.
        trial: its file, for the message.

    Raises:
        IdentityError: its identity is not one of the peers.
    """
    settings = read_settings(config)
    public = PublicIdentity.from_line(read_public_line(settings.identity))
    if (public.name, public.keys) not in {(peer.name, peer.keys) for peer in manifest.peers}:
        raise IdentityError(
            f"The identity {public.name} in {settings.identity} is not one of the peers of {trial}.",
            hint="Compare the fingerprints of `ppdl-mq identity show` and `ppdl-mq trial check`.",
        )
    return public.name
