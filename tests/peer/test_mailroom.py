from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppdl_mq.errors import DiskFull, Equivocation, PpdlError, RelayLost
from ppdl_mq.peer.mailroom import Mailroom

TWO = Equivocation("bert signed two things.")


@pytest.mark.parametrize(
    ("found", "fails", "told"),
    [
        (TWO, None, Equivocation),
        (TWO, DiskFull("The journal", "no room"), DiskFull),  # its evidence is not on disk
        (TWO, RelayLost("The connection broke."), Equivocation),  # of an effect: the evidence is
        (None, RelayLost("The connection broke."), RelayLost),
    ],
)
def test_what_ends_the_trial_is_told_once_it_is_on_disk(
    found: Equivocation | None, fails: PpdlError | None, told: type[PpdlError]
) -> None:
    @contextmanager
    def batch() -> Iterator[None]:
        yield
        if fails is not None:
            raise fails

    room = cast("Any", SimpleNamespace(_driver=SimpleNamespace(batch=batch), _offer_all=lambda: found))
    with pytest.raises(told):
        Mailroom.work(room)
