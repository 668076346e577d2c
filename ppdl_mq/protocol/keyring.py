"""Which key seals or opens a message. Source: docs/PROTOCOL.md, section 2."""

from __future__ import annotations

from typing import Final

from ppdl_mq.crypto.agreement import identity_pair_key, trial_key
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire.header import Header

_MOST_REMEMBERED: Final = 4_096


class Keyring:
    """Derives the keys of one trial and remembers them, since each costs a Diffie-Hellman.

    Args:
        terms: of the trial.
        identity: this peer's own.
    """

    def __init__(self, terms: Terms, identity: Identity) -> None:
        self._terms = terms
        self._identity = identity
        self._derived: dict[tuple[bytes, str, str], Secret] = {}

    def key(self, state: SessionState, header: Header) -> Secret | None:
        """Return the key that seals the message of this header, or None while the session is not that far.

        Args:
            state: holds the session's keys.
            header: names kind, sender and recipient; one of the two is this peer, the other is in the manifest (or
                `weights`). A HELLO may name another trial, in order to be compared.
        """
        if header.kind.before_session:
            return self._remembered(header)
        if not state.pair_keys:
            return None
        if self._terms.is_for_all(header.kind):
            complete = len(state.contributions) == len(self._terms.peers)
            return trial_key(state.session_id, state.contributions) if complete else None
        pair = state.pair_keys[self._other(header)]
        return pair.towards if header.sender == self._terms.me else pair.back

    def _remembered(self, header: Header) -> Secret:
        asked = (header.trial_id, header.sender, header.recipient)
        if asked not in self._derived:
            if len(self._derived) > _MOST_REMEMBERED:  # a flood of foreign trial ids must not fill the memory
                self._derived.clear()
            self._derived[asked] = self._identity_pair(header)
        return self._derived[asked]

    def _identity_pair(self, header: Header) -> Secret:
        return identity_pair_key(
            self._identity.x25519_secret,
            self._terms.peers[self._other(header)].x25519,
            trial_id=header.trial_id,
            sender=header.sender,
            recipient=header.recipient,
        )

    def _other(self, header: Header) -> str:
        return header.recipient if header.sender == self._terms.me else header.sender
