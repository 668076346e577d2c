"""A state folder that is taken in the middle of a trial, without the identity, gives away no secret of the session."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from ppdl_mq.peer.intake import Arrived, Intake
from ppdl_mq.peer.mailroom import Mailroom
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.header import Header
from ppdl_mq.wire.messages import Confirm, Release
from tests.trial import PEERS, TrialInProcess, manifest_for


@pytest.mark.parametrize(
    ("protocol", "kind", "attribute"),
    [("server-aided", Confirm, "contribution"), ("masked-average", Release, "mask")],
)
def test_what_others_sent_in_confidence_lies_sealed(
    protocol: str, kind: type, attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets: dict[str, set[bytes]] = defaultdict(set)  # that a peer was sent, from when on it could be on its disk
    checked: dict[str, int] = defaultdict(int)
    found: list[tuple[str, str]] = []

    def read(intake: Intake, row: int, header: Header, blob: int) -> Arrived:
        arrived = real_read(intake, row, header, blob)
        if isinstance(arrived.opened.message, kind):
            secrets[intake._terms.me].add(getattr(arrived.opened.message, attribute))
        look(intake._journal.folder)
        return arrived

    def work(mailroom: Mailroom) -> None:
        look(mailroom._journal.folder)
        real_work(mailroom)
        look(mailroom._journal.folder)

    def look(folder: Path) -> None:
        me = folder.name
        on_disk = b"".join(path.read_bytes() for path in folder.glob("journal.sqlite*"))
        checked[me] += bool(secrets[me])
        found.extend((me, each.hex()) for each in secrets[me] if each in on_disk)

    real_read, real_work = Intake.read, Mailroom.work
    monkeypatch.setattr(Intake, "read", read)
    monkeypatch.setattr(Mailroom, "work", work)
    relay = MemoryRelay()
    manifest = manifest_for(PEERS[:3], protocol=protocol, training__epochs=1)
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay))
    trial.run()
    assert not trial.errors
    for name in PEERS[:3]:
        assert len(secrets[name] - {b""}) >= 2, "of both others"
        assert checked[name] > 3
    assert not found, found
