"""Transcripts of machines that ran in a test world: real logs, or a ledger filled without any signature."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ppdl_mq.audit.findings import Comparison, Finding
from ppdl_mq.audit.ledger import Ledger
from ppdl_mq.audit.reading import Log
from ppdl_mq.audit.verdict import Verdict, verify_logs
from ppdl_mq.errors import Equivocation, RemoteError
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.transcript import Transcript
from ppdl_mq.protocol.effects import Record, Send
from ppdl_mq.wire.entries import NOTHING_BEFORE, Entry
from ppdl_mq.wire.messages import Message
from tests.people import identity_of
from tests.protocol.masked_scene import Scene
from tests.protocol.masked_world import Letter

_FIRST_SAID = 10**6  # number of a letter; machines count from 1


class Recorded(Scene):
    """A scene in which a peer that stops has written down why, as its runner does."""

    def __init__(self, count: int = 3, **options: Any) -> None:
        self.said: list[Letter] = []
        super().__init__(count, **options)

    def refused(self, name: str, letter: Letter, error: RemoteError) -> None:
        super().refused(name, letter, error)
        if isinstance(error, Equivocation):
            self.peers[name].records += [each for each in error.records if isinstance(each, Record)]

    def say(self, sender: str, to: str, message: Message, *, turn: int = 1, attempt: int = 0) -> None:
        """Bring a message to a peer that the sender's machine did not send."""
        send = Send(recipient=to, reader=to, turn=turn, attempt=attempt, message=message)
        number = _FIRST_SAID + len(self.said)
        self.said.append(Letter(sender, send, b"", number))
        self.deliver(self.said[-1:])

    def verdict(self, folder: Path, *names: str, without: Callable[[Record], bool] = lambda _: False) -> Verdict:
        """Verify the logs that peers would hand over.

        Args:
            folder: for them.
            names: of the peers; all if none is named.
            without: what its signer leaves out of its own log, as a liar can.
        """
        paths = []
        for name in names or self.peers:
            said = [each for each in self.peers[name].records if each.by != name or not without(each)]
            paths.append(self._log_of(folder, name, said))
        shown = verify_logs(paths)
        shutil.rmtree(folder)
        return shown

    def _log_of(self, folder: Path, name: str, said: Sequence[Record]) -> Path:
        terms, identity = self.peers[name].machine.terms, identity_of(name)
        with closing(Journal(folder / name, trial_id=terms.trial_id, identity=identity)) as journal:
            log = Transcript(journal, me=name, sign=identity.sign, trial_id=terms.trial_id, manifest=terms.manifest)
            with journal.transaction():
                for record in said:
                    log.add(record)
            log.flush()
            return log.path


def findings_in(records: Mapping[str, Sequence[Record]]) -> list[Finding]:
    """Compare what peers recorded, whose signatures may be cheap ones.

    Args:
        records: by owner of the log.
    """
    logs = [Log(Path(name)) for name in records]
    with Ledger() as ledger:
        for index, (owner, said) in enumerate(records.items()):
            for number, record in enumerate(said, start=1):
                entry = Entry(
                    number=number,
                    previous=NOTHING_BEFORE,
                    by=record.by,
                    says=record.says,
                    about=record.about,
                    signature=record.signature,
                    logged_by=owner,
                )
                ledger.add(index, entry)
            ledger.close_log(index, owner)
        ledger.close_books()
        return Comparison(ledger, logs).findings()
