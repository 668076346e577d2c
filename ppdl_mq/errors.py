"""One error tree: what went wrong, whose fault it is, and the next step for the person.

PpdlError
├── LocalError              this organisation's own side
│   ├── ConfigError         a file that a person wrote
│   │   ├── ManifestError   the trial's manifest
│   │   ├── PeerFileError   the organisation's own settings
│   │   └── PrivacyBudget   what the trial would cost in differential privacy is more than the settings allow
│   ├── IdentityError       a key file: missing, readable by others, not in the manifest
│   │   └── PassphraseError
│   ├── JournalError        the state folder: damaged, of another trial
│   │   ├── AlreadyRunning  another process works in it
│   │   └── InTheWay        cannot be read or written for now, and what is in it is whole (passes)
│   │       └── DiskFull    it takes no more
│   ├── DataError           the organisation's samples
│   ├── ModelError          the model cannot be imported or built
│   ├── TrainingError       the worker
│   │   ├── NotFinite       weights became NaN or infinite
│   │   └── Interrupted     stopped before the end of a turn
│   ├── Overflow            a weight does not fit
│   ├── Unwell              a peer is not running, or its loop hangs
│   ├── TooFewPeers         fewer are left than the manifest wants
│   ├── Dropped             the others go on without this peer
│   └── IllegalEvent        a machine was driven wrongly: our own bug
├── RelayError              the broker, or the way to it
│   ├── RelayUnreachable    nobody answers (passes; worth waiting)
│   ├── RelayLost           the connection broke in the middle (passes)
│   ├── RelayRefused        credentials, rights, TLS (does not pass by itself)
│   ├── InboxTaken          another process reads this inbox
│   ├── Unroutable          the addressee's queue does not exist yet
│   ├── NotTaken            the relay refuses a message for now (nack: a full queue)
│   └── MessageTooLarge     over the relay's limit
└── RemoteError             another peer, or somebody who forged a message
    ├── Malformed           does not decode, or not in the one encoding
    │   ├── UnknownVersion
    │   └── TooLarge        over a limit, seen before the work
    ├── Unauthentic         seal or signature does not hold
    ├── Misdirected         another trial, session, recipient, or an unknown sender
    ├── OutOfTurn           of the past or the future, or not that peer's to send
    ├── Equivocation        two different signed messages where one is allowed
    │   ├── SplitView       two peers were told different things
    │   └── FalseSum        a signed sum that its parts do not add up to
    ├── PeerAbsent          waited for longer than the manifest allows
    └── ManifestMismatch    the peer agreed on something else
"""

from __future__ import annotations


class PpdlError(Exception):
    """Something that a person can act on.

    Args:
        message: one sentence that says what is wrong. Never holds a secret.
        hint: the next step, as one sentence; empty where the message says it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class LocalError(PpdlError):
    """The fault is on this organisation's own side."""


class ConfigError(LocalError):
    """A file that a person wrote does not hold."""


class ManifestError(ConfigError):
    """The trial's manifest is missing, malformed or nonsensical."""


class PeerFileError(ConfigError):
    """The organisation's own settings are missing, malformed or nonsensical."""


class PrivacyBudget(ConfigError):
    """What a trial costs in differential privacy is more than the settings allow, or is not known."""


class IdentityError(LocalError):
    """The identity cannot be used: missing, readable by others, not in the manifest."""


class PassphraseError(IdentityError):
    """The passphrase is missing or wrong."""


class JournalError(LocalError):
    """The state folder is damaged, or belongs to another trial or identity."""


class AlreadyRunning(JournalError):
    """Another process already works in this state folder."""


class InTheWay(JournalError):
    """Something keeps the state folder from being read or written for now: rights, open files, memory, the disk.

    It says nothing against what stands there: the peer goes on where it was when that has passed or is mended.

    Args:
        message: one sentence that says what cannot be read or written, and why.
        hint: the next step.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "Nothing is lost: see to rights, file system, disk, number of open files and memory, and run it "
        "again; the peer goes on where it was.",
    ) -> None:
        super().__init__(message, hint=hint)


class DiskFull(InTheWay):
    """The disk takes no more. What was journalled is whole: when there is room the peer goes on where it was.

    Args:
        what: what could not be written; begins the sentence.
        reason: the system's words for it.
    """

    def __init__(self, what: str, reason: str = "no room") -> None:
        super().__init__(
            f"{what} cannot be written: {reason.rstrip('.')}.",
            hint="Nothing is lost: make room, and run the peer again; it goes on where it was.",
        )


class DataError(LocalError):
    """The organisation's own samples cannot be used."""


class ModelError(LocalError):
    """The model named in the manifest cannot be imported or built."""


class TrainingError(LocalError):
    """Local training failed."""


class NotFinite(TrainingError):
    """Weights or loss became NaN or infinite."""


class Interrupted(TrainingError):
    """Training was asked to stop before the turn's end."""


class Overflow(LocalError):
    """A weight does not fit. The message names no tensor: it may be told to others."""


class IllegalEvent(LocalError):
    """A protocol machine was given an event that its state does not allow: our own bug."""


class RelayError(PpdlError):
    """The broker, or the way to it."""


class RelayUnreachable(RelayError):
    """Nobody answers at the relay's address. It may come up later."""


class RelayLost(RelayError):
    """The connection broke; what was not confirmed is sent again after reconnecting."""


class RelayRefused(RelayError):
    """The relay refuses: credentials, rights, TLS. Waiting does not help."""


class InboxTaken(RelayError):
    """Another process is reading this inbox."""


class Unroutable(RelayError):
    """The addressee's queue does not exist yet.

    Args:
        address: the address nobody listens to.
    """

    def __init__(self, address: str) -> None:
        super().__init__(f"Nobody has opened the inbox {address!r} yet.")
        self.address = address


class NotTaken(RelayError):
    """The relay refused a message with a nack, for instance because a queue is full. It may pass."""


class MessageTooLarge(RelayError):
    """A message is over the relay's limit."""


class RemoteError(PpdlError):
    """A message that another peer sent wrongly, or that somebody forged."""


class Malformed(RemoteError):
    """The bytes do not decode, or are not the one encoding of what they decode to."""


class UnknownVersion(Malformed):
    """The message is of a version that this program does not speak."""


class TooLarge(Malformed):
    """A length or count in the message is over its limit."""


class Unauthentic(RemoteError):
    """The seal or the signature does not hold."""


class Misdirected(RemoteError):
    """For another trial, session or recipient, or from somebody not in the manifest."""


class OutOfTurn(RemoteError):
    """Of the past or of the future, or not that peer's to send."""


class Equivocation(RemoteError):
    """A peer signed two different messages where the protocol allows one.

    Args:
        message: one sentence that says what is wrong.
        hint: the next step.
        records: the signed statements that show it, for the transcript.
    """

    def __init__(self, message: str, *, hint: str = "", records: tuple[object, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.records = records


class SplitView(Equivocation):
    """Two peers were told different things; who did it, two transcripts show. Arguments as above."""

    def __init__(self, message: str, *, hint: str = "", records: tuple[object, ...] = ()) -> None:
        asks = "`ppdl-mq trial verify-log A.log B.log` on two peers' transcripts names who told them different things."
        super().__init__(message, hint=hint or asks, records=records)


class FalseSum(Equivocation):
    """A peer signed a sum that its parts do not add up to."""


class Unwell(LocalError):
    """A peer is not running although its trial has not ended, or its loop does not go round any more."""


class TooFewPeers(LocalError):
    """Fewer peers are left than the manifest wants."""


class Dropped(LocalError):
    """The others have decided to go on without this peer."""


class PeerAbsent(RemoteError):
    """A peer has been waited for longer than the manifest allows."""


class ManifestMismatch(RemoteError):
    """A peer runs this trial with a different manifest.

    Args:
        peer: the name of the other peer.
        fields: dotted names of the fields that differ.
    """

    def __init__(self, peer: str, fields: tuple[str, ...]) -> None:
        listed = ", ".join(fields)
        super().__init__(
            f"{peer} runs this trial with a different manifest: {listed} differ{'s' if len(fields) == 1 else ''}.",
            hint="Agree on one file and start again; `ppdl-mq trial check` prints its id.",
        )
        self.peer = peer
        self.fields = fields
