"""A relay without a broker: one SQLite file that several processes of one machine share."""

from ppdl_mq.transport.embedded.adapter import EmbeddedTransport

__all__ = ["EmbeddedTransport"]
