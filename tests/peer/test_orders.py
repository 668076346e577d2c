from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ppdl_mq.config.manifest import Peer
from ppdl_mq.errors import JournalError
from ppdl_mq.peer import orders
from ppdl_mq.peer.orders import Order, done, give_order, take_orders
from tests.writes import noted_writes


def test_what_was_given_is_taken_until_it_is_done(tmp_path: Path) -> None:
    assert take_orders(tmp_path) == []
    for order in (Order(), Order(drop="zurich"), Order(drop="basel")):
        assert give_order(tmp_path, order) == order
    taken = take_orders(tmp_path)
    assert taken == [Order(drop="basel"), Order(drop="zurich"), Order()]
    assert take_orders(tmp_path) == taken
    done(taken[1])
    done(taken[1])
    assert take_orders(tmp_path) == [Order(drop="basel"), Order()]


def test_what_is_done_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = give_order(tmp_path, Order(drop="basel"))
    steps = noted_writes(monkeypatch, lambda folder: ", ".join(path.name for path in folder.iterdir()) or "nothing")
    done(order)
    assert steps == ["fsync nothing"]


def test_an_order_given_twice_is_one(tmp_path: Path) -> None:
    for _ in range(2):
        give_order(tmp_path, Order(drop="basel"))
    assert take_orders(tmp_path) == [Order(drop="basel")]
    assert [path.name for path in (tmp_path / "orders").iterdir()] == ["drop-basel"]


def test_only_the_peers_user_sees_them(tmp_path: Path) -> None:
    given = give_order(tmp_path, Order(drop="basel"))
    assert given.file is not None
    assert stat.S_IMODE(given.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(given.file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name",
    ["drop-", "drop-Basel", "drop--basel", "drop-basel\n", "drop-" + "b" * 33, "drop-basel~", ".drop-basel", "drop",
     "leave.txt", "Leave", ".leave.swp", "dropped-basel", "drop-../basel".replace("/", "_")],
)  # fmt: skip
def test_junk_is_ignored(tmp_path: Path, name: str) -> None:
    give_order(tmp_path, Order(drop="mercy"))
    (tmp_path / "orders" / name).touch()
    assert take_orders(tmp_path) == [Order(drop="mercy")]


def test_only_plain_files_are_orders(tmp_path: Path) -> None:
    (tmp_path / "orders" / "drop-basel").mkdir(parents=True)
    (tmp_path / "orders" / "leave").symlink_to(tmp_path)
    (tmp_path / "orders" / "drop-mercy").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "orders" / "drop-zurich").symlink_to(tmp_path / "file")
    assert take_orders(tmp_path) == []


def test_names_are_those_of_the_manifest() -> None:
    (pattern,) = (part.pattern for part in Peer.model_fields["name"].metadata if hasattr(part, "pattern"))
    assert pattern == f"^{orders._PEER_NAME.pattern}$"


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written"):
        give_order(tmp_path / "missing", Order())
    (tmp_path / "orders").touch()
    with pytest.raises(JournalError, match="cannot be written"):
        give_order(tmp_path, Order())
    with pytest.raises(JournalError, match="cannot be read"):
        take_orders(tmp_path)


def test_another_user_cannot_leave_an_order_that_the_peer_could_not_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(JournalError, match="another user"):
        give_order(tmp_path, Order())
    assert list(tmp_path.iterdir()) == []


def test_an_order_that_cannot_be_removed_is_said(tmp_path: Path) -> None:
    (tmp_path / "orders" / "leave").mkdir(parents=True)
    with pytest.raises(JournalError, match="cannot be removed"):
        done(Order(file=tmp_path / "orders" / "leave"))
