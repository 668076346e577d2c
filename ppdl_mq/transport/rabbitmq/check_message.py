"""The small message that a check of the broker sends through a trial's own exchange: marked, and always the same."""

from __future__ import annotations

from typing import Final

import pika

MARK: Final = "ppdl-mq-check"  # the AMQP type of what a check sends
SMALL: Final = b"0"  # says nothing: whoever reads it learns that a peer looked at the broker


def says_nothing(properties: pika.BasicProperties, body: bytes) -> bool:
    """Tell whether a message is that one. Whatever else is marked so counts as a message of the trial."""
    return properties.type == MARK and body == SMALL
