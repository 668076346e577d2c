"""What all protocols begin with: HELLO, the session id, CONFIRM, and the keys that follow from them.

Source: docs/PROTOCOL.md, sections 2 and 7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.agreement import check_public, mask_root, public_half, session_pair_key
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.crypto.identity import verify
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Equivocation, Malformed, ManifestMismatch
from ppdl_mq.protocol.effects import Effect, PublishAgain, Record, Send
from ppdl_mq.protocol.events import Event, Received, Started
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import session_key_bytes
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire.messages import Confirm, Hello, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKey:
    """A peer's signed key for the session: 32 and 64 bytes."""

    key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PairKeys:
    """The keys between this peer and another one in a session.

    Args:
        towards: seals what goes to it.
        back: opens what comes from it.
    """

    towards: Secret
    back: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What a machine of any protocol remembers.

    Args:
        phase: where it stands.
        session_secret: this peer's X25519 secret for the session; None before the start, and once it has served.
        session_keys: by name, as they come in; this peer's own from the start.
        contributions: to the trial key, by name; secret, and dropped at the end.
        session_id: 32 bytes once all session keys are known.
        pair_keys: by name of the other peer, once the session id is known; dropped at the end.
        mask_keys: by name of the other peer, for the masks of this round; in masked-average only.
        resends: how often others were asked to send again; makes each request a new message.
    """

    phase: Phase = Phase.NEW
    session_secret: Secret | None = None
    session_keys: Mapping[str, SessionKey] = field(default_factory=lambda: MappingProxyType({}))
    contributions: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))
    session_id: bytes = b""
    pair_keys: Mapping[str, PairKeys] = field(default_factory=lambda: MappingProxyType({}))
    mask_keys: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))
    resends: int = 0

    def replace(self, **changes: Any) -> Self:
        """Return this state with some fields changed."""
        return dataclasses.replace(self, **changes)

    def without_secrets(self) -> Self:
        """Return this state with none of the session's secrets left."""
        none: Mapping[str, Any] = MappingProxyType({})
        return self.replace(session_secret=None, contributions=none, pair_keys=none, mask_keys=none)

    def as_data(self) -> dict[str, Any]:
        """Return the state as plain data; what must be erased in time stands under `secrets`."""
        return {
            "phase": self.phase.value,
            "session_keys": {name: [held.key, held.signature] for name, held in self.session_keys.items()},
            "session_id": self.session_id,
            "resends": self.resends,
            "secrets": {
                "session_secret": self.session_secret.reveal() if self.session_secret else b"",
                "contributions": {name: held.reveal() for name, held in self.contributions.items()},
                "pair_keys": {
                    name: [held.towards.reveal(), held.back.reveal()] for name, held in self.pair_keys.items()
                },
                "mask_keys": {name: held.reveal() for name, held in self.mask_keys.items()},
            },
        }

    @staticmethod
    def session_fields(data: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of this class from what `as_data` returned."""
        secrets = data["secrets"]
        return {
            "phase": Phase(data["phase"]),
            "session_secret": Secret(secrets["session_secret"]) if secrets["session_secret"] else None,
            "session_keys": {
                name: SessionKey(key=key, signature=signature)
                for name, (key, signature) in data["session_keys"].items()
            },
            "contributions": {name: Secret(held) for name, held in secrets["contributions"].items()},
            "session_id": data["session_id"],
            "pair_keys": {
                name: PairKeys(towards=Secret(towards), back=Secret(back))
                for name, (towards, back) in secrets["pair_keys"].items()
            },
            "mask_keys": {name: Secret(held) for name, held in secrets["mask_keys"].items()},
            "resends": data["resends"],
        }


class SessionSteps:
    """The handlers of the session's messages; a protocol's machine inherits them and goes on in `_on_confirmed`."""

    terms: Terms

    def _on_confirmed(self, state: Any) -> tuple[Any, tuple[Effect, ...]]:
        """Go on: everybody has confirmed the session."""
        raise NotImplementedError

    def _on_started(self, state: Any, event: Started) -> tuple[Any, tuple[Effect, ...]]:
        terms = self.terms
        public = public_half(event.session_secret)
        own_key = SessionKey(key=public, signature=terms.sign(session_key_bytes(terms.trial_id, terms.me, public)))
        hello = Hello(
            manifest=terms.manifest,
            session_key=own_key.key,
            session_signature=own_key.signature,
            layout=terms.layout,
            software=terms.software,
        )
        started = state.replace(
            phase=Phase.AWAITING_HELLOS,
            session_secret=event.session_secret,
            session_keys=added(state.session_keys, terms.me, own_key),
            contributions=added(state.contributions, terms.me, event.contribution),
        )
        return started, tuple(self._send(name, hello) for name in terms.others)

    def _on_hello(self, state: Any, event: Received) -> tuple[Any, tuple[Effect, ...]]:
        terms, hello = self.terms, message_as(Hello, event)
        if hello.manifest != terms.manifest:  # the header named our trial id: the runner compares other manifests
            raise Malformed(f"A HELLO of {event.sender} names one trial and holds another.")
        signed = session_key_bytes(terms.trial_id, event.sender, hello.session_key)
        verify(terms.peers[event.sender], hello.session_signature, signed)
        check_public(hello.session_key)  # here, where its sender is refused; later it would be whoever came last
        if hello.layout != terms.layout:
            raise ManifestMismatch(event.sender, ("the installed build of the model",))
        theirs = SessionKey(key=hello.session_key, signature=hello.session_signature)
        known = state.session_keys.get(event.sender)
        if known is not None:
            if known.key == theirs.key:
                return state, ()
            raise Equivocation(
                f"{event.sender} sent two session keys for this trial: it lost its state, or its identity runs twice.",
                hint="Ask that organisation; then start again with `ppdl-mq trial renew`.",
                records=(self._record_key(event.sender, theirs),),
            )
        keys = added(state.session_keys, event.sender, theirs)
        if len(keys) < len(terms.peers):
            return state.replace(session_keys=keys), ()
        return self._agreed(state, keys)

    def _agreed(self, state: Any, keys: Mapping[str, SessionKey]) -> tuple[Any, tuple[Effect, ...]]:
        """With everybody's session key: derive what is to be derived, and let the session's secret go."""
        terms = self.terms
        parts = [part for name in sorted(keys) for part in (name.encode(), keys[name].key, keys[name].signature)]
        session_id = sha256(labels.SESSION_ID, terms.trial_id, *parts)
        secret: Secret = state.session_secret
        pair_keys = {
            name: PairKeys(
                towards=session_pair_key(
                    secret, keys[name].key, session_id=session_id, sender=terms.me, recipient=name
                ),
                back=session_pair_key(secret, keys[name].key, session_id=session_id, sender=name, recipient=terms.me),
            )
            for name in terms.others
        }
        mask_keys = {
            name: mask_root(secret, keys[name].key, session_id=session_id, one=terms.me, other=name)
            for name in terms.others
            if terms.is_masked
        }
        agreed = state.replace(
            phase=Phase.AWAITING_CONFIRMS,
            session_secret=None,
            session_keys=keys,
            session_id=session_id,
            pair_keys=MappingProxyType(pair_keys),
            mask_keys=MappingProxyType(mask_keys),
        )
        contribution = state.contributions[terms.me].reveal() if terms.uses_trial_key else b""
        records = [self._record_key(name, keys[name]) for name in sorted(keys)]
        confirms = [self._send(name, Confirm(contribution=contribution)) for name in terms.others]
        return agreed, (*records, *confirms)

    def _record_key(self, name: str, key: SessionKey) -> Record:
        about = {"trial": self.terms.trial_id, "name": name, "key": key.key}
        return Record(by=name, says="session key", about=about, signature=key.signature)

    def _on_confirm(self, state: Any, event: Received) -> tuple[Any, tuple[Effect, ...]]:
        terms, confirm = self.terms, message_as(Confirm, event)
        if len(confirm.contribution) != (32 if terms.uses_trial_key else 0):
            raise Malformed(f"The CONFIRM of {event.sender} has a contribution of the wrong length.")
        theirs = Secret(confirm.contribution)
        if event.sender in state.contributions:
            if state.contributions[event.sender] == theirs:
                return state, ()
            raise Equivocation(f"{event.sender} confirmed the session twice, differently.")
        contributions = added(state.contributions, event.sender, theirs)
        confirmed = state.replace(contributions=contributions)
        if len(contributions) < len(terms.peers):
            return confirmed, ()
        return self._on_confirmed(confirmed)

    # --- lost messages -------------------------------------------------------------------------------------------

    def _on_resend(self, state: Any, event: Received) -> tuple[Any, tuple[Effect, ...]]:
        return state, (PublishAgain(reader=event.sender),)

    def _ignore(self, state: Any, _: Event) -> tuple[Any, tuple[Effect, ...]]:
        return state, ()

    def _send(self, recipient: str, message: Message, *, turn: int = 0, ordinal: int = 0) -> Send:
        return Send(recipient=recipient, reader=recipient, turn=turn, message=message, ordinal=ordinal)


def added(mapping: Mapping[Any, Any], key: Any, value: Any) -> Mapping[Any, Any]:
    """Return the mapping with one more entry."""
    return MappingProxyType({**mapping, key: value})


def message_as(wanted: type[Any], event: Received) -> Any:
    """Return the message of an event, which the table sent to the right handler."""
    assert isinstance(event.message, wanted), "the table sent an event to the wrong handler"
    return event.message
