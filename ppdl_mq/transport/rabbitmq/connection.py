"""pika's connection, held to what a broker may do to our memory, and quicker to receive.

pika has settings for none of this, so attributes and methods of its own are replaced here and nowhere else. A test
with a broker that keeps to no limit tells whether a later pika still goes by them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import pika
from pika import exceptions as amqp
from pika import frame, spec
from pika.channel import Channel

from ppdl_mq.config import limits
from ppdl_mq.errors import RelayLost

_RECEIVE_BYTES: Final = 128 * 1024


class BoundedMessage:
    """Puts the frames of a message together, and keeps no more of its body than one byte over a limit.

    So a longer message comes out longer than any may be, and is refused like other rubbish; it was never in memory.

    Args:
        limit_bytes: of a message's body.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._kept_bytes = limit_bytes + 1
        self._begin(None)

    def _begin(self, method: Any) -> None:
        self._method, self._header = method, cast(Any, None)
        self._seen_bytes = 0
        self._body = bytearray()

    def process(self, value: Any) -> tuple[Any, Any, bytes] | None:
        """Take one frame; return method, header and body of the message that it completes.

        Raises:
            pika.exceptions.AMQPError: the frames do not make up a message.
        """
        if isinstance(value, frame.Method) and spec.has_content(value.method.INDEX):
            self._begin(value)
            return None
        if isinstance(value, frame.Header) and self._method is not None and self._header is None:
            self._header = value
        elif isinstance(value, frame.Body) and self._header is not None:
            self._seen_bytes += len(value.fragment)
            self._body += value.fragment[: self._kept_bytes - len(self._body)]
            if self._seen_bytes > self._header.body_size:
                raise amqp.BodyTooLongError(self._seen_bytes, self._header.body_size)
        else:
            raise amqp.UnexpectedFrameError(value)
        if self._seen_bytes < self._header.body_size:
            return None
        whole = self._method, self._header, bytes(self._body)
        self._begin(None)
        return whole


class Connection(pika.SelectConnection):  # type: ignore[misc]  # pika has no types that mypy can see
    """pika's connection; see above."""

    _frame_buffer: bytes
    message_bytes = limits.MAX_CHUNK_BYTES  # of which no more is kept; may be set before a channel is opened

    def channel(
        self, channel_number: int | None = None, on_open_callback: Callable[[Channel], Any] | None = None
    ) -> Channel:
        """Open a channel whose messages are bounded."""
        channel = super().channel(channel_number, on_open_callback)
        channel._content_assembler = BoundedMessage(self.message_bytes)
        return channel

    @property
    def unwritten_bytes(self) -> int:
        """How much was given to pika and not yet taken by the system."""
        size: int = self._stream.get_write_buffer_size()
        return size

    def hang_up(self, error: Exception) -> None:
        """End the connection without a farewell, for a broker that does not answer one."""
        self._terminate_stream(error)

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = _RECEIVE_BYTES  # by itself 4096, which is what holds pika's consumers back
        self._stream = transport
        super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        super()._on_data_available(data_in)
        # What is left is one frame that is not whole yet. pika would wait for 4 GB if a frame says so.
        if len(self._frame_buffer) > self.params.frame_max + _RECEIVE_BYTES:
            self._frame_buffer = b""
            self.hang_up(RelayLost("The relay sends a larger frame than was agreed."))
