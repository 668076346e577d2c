"""Queues of the benchmark's own, removed at the end."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.opening import open_transport

PREFIX: Final = "ppdl"


@contextmanager
def cleaned(address: BrokerAddress, trial: str, addresses: Sequence[str], *, declare: bool) -> Iterator[None]:
    """Remove queues and exchange at the end, whatever happens; where asked to, declare the queues first.

    Args:
        address: the relay.
        trial: names the queues.
        addresses: of the queues within the trial.
        declare: whether to declare them.
    """
    with open_transport(address, trial=trial, prefix=PREFIX, peer="bench") as transport:
        try:
            if declare:
                for each in addresses:
                    transport.declare(each)
            yield
        finally:
            for each in addresses:
                transport.delete(each)
            if address.scheme != "embedded":
                from ppdl_mq.transport.rabbitmq.bare import BarePika

                pika = BarePika(address, Names(prefix=PREFIX, trial=trial), peer="bench")
                try:
                    pika.remove_exchange()
                finally:
                    pika.close()


def new_name() -> str:
    """Return a name for one trial of the benchmark."""
    return f"bench-{secrets.token_hex(6)}"
