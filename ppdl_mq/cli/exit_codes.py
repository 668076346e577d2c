"""Which exit code an error becomes: one table, which the main command's help prints."""

from __future__ import annotations

from typing import Final

from ppdl_mq import errors

OK: Final = 0
INTERNAL: Final = 1
USAGE: Final = 2
CONFIG: Final = 3
IDENTITY: Final = 4
WORK: Final = 5
RELAY: Final = 6
REMOTE: Final = 7
RUNNING: Final = 8
STATE: Final = 9
IN_THE_WAY: Final = 10
UNWELL: Final = 11
INTERRUPTED: Final = 130  # as shells report SIGINT
READER_LEFT: Final = 141  # as they report SIGPIPE

MEANINGS: Final = {
    OK: "done",
    INTERNAL: "a bug of this program",
    USAGE: "wrong command line, or one that needs a yes and got none: nothing was done",
    CONFIG: "manifest or settings",
    IDENTITY: "identity file or passphrase",
    WORK: "data, model or training",
    RELAY: "relay: unreachable, lost, refuses",
    REMOTE: "another peer: manifest differs, wrong messages, too few left",
    RUNNING: "already running",
    STATE: "state folder: damaged, another's, or given up",
    IN_THE_WAY: "state folder or stdout not to be read or written for now (disk full, no rights, too many open files): "
    "mend that, and run again",
    UNWELL: "peer status --check: not running, or hangs",
    INTERRUPTED: "stopped by Ctrl-C or SIGTERM; run again to go on",
    READER_LEFT: "whoever read the answer has left, as head does",
}

# The first class that fits decides, so the narrower ones stand first.
_CODES: Final[tuple[tuple[type[errors.PpdlError], int], ...]] = (
    (errors.Interrupted, INTERRUPTED),
    (errors.AlreadyRunning, RUNNING),
    (errors.InboxTaken, RUNNING),
    (errors.ConfigError, CONFIG),
    (errors.IdentityError, IDENTITY),
    (errors.InTheWay, IN_THE_WAY),
    (errors.JournalError, STATE),
    (errors.Unwell, UNWELL),
    (errors.DataError, WORK),
    (errors.ModelError, WORK),
    (errors.TrainingError, WORK),
    (errors.Overflow, WORK),
    (errors.TooFewPeers, REMOTE),
    (errors.Dropped, REMOTE),
    (errors.RelayError, RELAY),
    (errors.RemoteError, REMOTE),
)


def exit_code(error: errors.PpdlError) -> int:
    """Return the exit code of an error; `INTERNAL` where only a bug can raise it."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), INTERNAL)
