"""Orders: decisions of people at this organisation, left in the state folder for the peer to take up.

A file for each: `orders/drop-NAME`, `orders/leave`. The name says everything and the files are empty, so making one is
atomic, and giving an order twice is giving it once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ppdl_mq.config.writing import sync_folder
from ppdl_mq.errors import JournalError
from ppdl_mq.peer.durable import read_error, write_error

ORDERS_NAME: Final = "orders"
_LEAVE: Final = "leave"
_DROP: Final = "drop-"
_PEER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")  # as in the manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What people decided.

    Args:
        drop: name of the peer to go on without; None where this organisation itself leaves.
        file: where the order lies; None before it is given.
    """

    drop: str | None = None
    file: Path | None = field(default=None, compare=False)


def give_order(folder: Path, order: Order) -> Order:
    """Leave an order for the peer whose state folder this is; return it with its file. It is on disk then.

    Raises:
        JournalError: it cannot be written, or the peer could not take it away.
    """
    orders = folder / ORDERS_NAME
    file = orders / (_LEAVE if order.drop is None else _DROP + order.drop)
    try:
        # A folder made by root would be closed to the user that runs the peer.
        if folder.stat().st_uid != os.geteuid():
            raise JournalError(
                f"The state folder {folder} belongs to another user.",
                hint="Give orders as the user that runs the peer.",
            )
        orders.mkdir(mode=0o700, exist_ok=True)
        file.touch(mode=0o600)
        for changed in (orders, folder):
            sync_folder(changed)
    except OSError as fault:
        raise write_error(f"The order {file}", fault) from None
    return Order(drop=order.drop, file=file)


def take_orders(folder: Path) -> list[Order]:
    """Return the orders that wait in a state folder, by name; they stay until they are `done`. Other files are ignored.

    Raises:
        JournalError: the folder cannot be read.
    """
    orders = folder / ORDERS_NAME
    try:
        with os.scandir(orders) as entries:
            files = sorted(Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as fault:
        raise read_error(f"The folder {orders}", fault) from None
    found = []
    for file in files:
        name = file.name.removeprefix(_DROP)
        if file.name == _LEAVE:
            found.append(Order(file=file))
        elif file.name.startswith(_DROP) and _PEER_NAME.fullmatch(name):
            found.append(Order(drop=name, file=file))
    return found


def done(order: Order) -> None:
    """Remove an order that has been journalled, for good. A crash before is harmless: it is taken up again.

    After a power cut it would come back, and be given once more: the peer may have a use for it again by then.

    Raises:
        JournalError: it cannot be removed.
    """
    assert order.file is not None, "an order that was taken has a file"
    try:
        order.file.unlink(missing_ok=True)
        sync_folder(order.file.parent)
    except OSError as fault:
        raise write_error(f"The order {order.file}", fault, done="removed") from None
