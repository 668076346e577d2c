from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from ppdl_mq.errors import DiskFull, RelayLost
from ppdl_mq.peer import blobs
from ppdl_mq.peer.fetcher import Fetcher
from ppdl_mq.protocol.effects import Fetch
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.transport.base import Delivery
from ppdl_mq.wire.kinds import Kind
from tests.peer.desk import desk_for, moments


class Breaking:
    """Hands out parts, and breaks where one is to go back."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def get(self, _: str) -> Delivery | None:
        return Delivery(self._parts.pop(0), None) if self._parts else None

    def requeue(self, _: Iterable[Delivery]) -> None:
        raise RelayLost("The connection broke.")


def test_a_connection_that_breaks_does_not_hide_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer would reconnect and go on with a message half taken, and end by another error later."""
    moment = moments("server-aided")[Kind.TURN]
    with desk_for(moment, tmp_path) as desk:
        transport = cast("Any", Breaking(moment.parts(stride=40)))
        fetcher = Fetcher(transport, desk.intake, lambda refused: [desk.quarantine.add(*each) for each in refused])
        fetcher.want(Fetch(turn=moment.letter.send.turn, message_id=moment.letter.message_id))

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(blobs.os, "truncate", full)
        with pytest.raises(DiskFull):
            fetcher.sweep(moment.reader_state.replace(phase=Phase.FETCHING))
