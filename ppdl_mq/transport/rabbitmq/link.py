"""One AMQP connection in a thread of its own, and how other threads ask it for something."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, Final

import pika
from pika.adapters.select_connection import IOLoop

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayError, RelayLost, RelayUnreachable
from ppdl_mq.transport.rabbitmq.connection import Connection
from ppdl_mq.transport.rabbitmq.errors import lost, opening_error
from ppdl_mq.transport.rabbitmq.stillness import LOST_AFTER_S, Stillness

_CLOSE_TIMEOUT_S: Final = 5.0
_BEAT_BYTES: Final = 64  # what comes between two looks and is no more is a heartbeat, 8 bytes, and no answer

_log = logging.getLogger(__name__)


class Link:
    """One connection, from `open` until it is lost or closed; never used again after that.

    The thread does nothing but AMQP, so heartbeats are answered whatever the rest of the process does.

    Args:
        parameters: pika's, with the password.
        broker: for messages; holds no password.
        look: called again and again by a thread that waits for the relay; what it raises ends the wait.
        where: which of its hosts, for messages; empty where there is one only.
        message_bytes: the largest message; of a larger one no more than one byte over it is kept.
        on_lost: called once, on the I/O thread, when the connection is gone; wakes whoever waits elsewhere.
    """

    def __init__(
        self,
        parameters: pika.ConnectionParameters,
        broker: BrokerAddress,
        on_lost: Callable[[RelayError], None],
        *,
        look: Callable[[], None],
        where: str = "",
        message_bytes: int = limits.MAX_CHUNK_BYTES,
    ) -> None:
        # pika logs what it also raises; without any handler Python would print it over the terminal.
        pika_log = logging.getLogger("pika")
        if not pika_log.handlers:
            pika_log.addHandler(logging.NullHandler())
        self._parameters = parameters
        self._broker = broker
        self.look = look
        self._where = where
        self._message_bytes = message_bytes
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._lost: RelayError | None = None
        self._questions: dict[Future[Any], Stillness] = {}
        self._opening: Future[None] = Future()
        self._loop = IOLoop()
        self._thread = threading.Thread(target=self._run, name="ppdl-mq amqp", daemon=True)
        self.connection: Connection = None  # type: ignore[assignment]  # of the I/O thread, which makes it first of all
        self.blocked_reason: str | None = None

    @property
    def unanswered_reason(self) -> str | None:
        """That the relay leaves a question unanswered, in words, which do not change while it lasts; or None."""
        with self._lock:
            still = [stillness.since for stillness in self._questions.values() if stillness.is_to_be_said]
        return f"the relay does not answer what it was asked, since {min(still)}" if still else None

    @property
    def unwritten_bytes(self) -> int:
        """How much was sent and still waits in this process for the network. Of an open connection."""
        size: int = self.connection.unwritten_bytes
        return size

    def open(self) -> None:
        """Connect and log in.

        Raises:
            RelayUnreachable: nobody answers within `limits.HOST_S`.
            RelayRefused: wrong credentials, no such vhost, TLS failure.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise RelayUnreachable(f"{self._where or self._broker} was not asked: no thread can be begun.") from error
        deadline = time.monotonic() + limits.HOST_S  # pika bounds each address of a host, not all, nor its resolution
        try:
            while not wait([self._opening], timeout=limits.LOOK_S).done:
                self.look()
                if time.monotonic() >= deadline:
                    raise RelayUnreachable(
                        f"{self._where or self._broker} does not answer: no login in {limits.HOST_S:.0f} s.",
                        hint="Is the broker up, and its name's resolution?",
                    )
            self._opening.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Say farewell, or hang up where nobody answers; harmless when it is closed already.

        A thread that does not even end then is left behind: it knows of nothing but this connection.
        """
        with contextlib.suppress(RelayLost):
            self.submit(self._farewell)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            with contextlib.suppress(RelayLost):
                self.submit(lambda: self.connection.hang_up(RelayLost("The relay does not answer the farewell.")))
            self._thread.join(_CLOSE_TIMEOUT_S)

    def submit(self, work: Callable[[], None]) -> None:
        """Have `work` done on the I/O thread, soon and in order. It must not raise.

        Raises:
            RelayLost: the connection is gone.
        """
        with self._lock:
            self._check()
            self._loop.add_callback_threadsafe(work)

    def ask(self, question: Callable[[Future[Any]], None]) -> Any:
        """Have `question` done on the I/O thread and wait until it, or what it starts, settles the future.

        Raises:
            RelayLost: the connection is gone, or goes before there is an answer; or there is none for so long that the
                connection counts as gone, as where a queue hangs while heartbeats go on.
        """
        answer: Future[Any] = Future()
        stillness = Stillness()

        def start() -> None:
            try:
                question(answer)
            except Exception as error:  # handed to the thread that asked
                fail(answer, error)

        with self._lock:
            self._check()
            self._questions[answer] = stillness
            self._loop.add_callback_threadsafe(start)
        try:
            while True:
                received, unwritten = self.connection.bytes_received, self.unwritten_bytes
                try:
                    return answer.result(timeout=limits.LOOK_S)
                except TimeoutError:
                    self.look()  # it may be long: a blocked connection answers nothing
                # On a slow line what comes before the answer, or goes before the question, may take long.
                has_come = self.connection.bytes_received - received > _BEAT_BYTES
                with self._lock:
                    if has_come or self.unwritten_bytes < unwritten or self.blocked_reason is not None:
                        stillness.moves()
                    is_lost = stillness.is_a_loss
                if is_lost:
                    said = f"The relay did not answer what it was asked for {LOST_AFTER_S:.0f} s."
                    # Who bears with the loss of one answer is not to wait as long for the next one.
                    self.submit(partial(self.connection.hang_up, RelayLost(said)))
                    raise RelayLost(said)
        finally:
            with self._lock:
                del self._questions[answer]

    def _check(self) -> None:
        if self._lost is not None:
            raise RelayLost(self._lost.message, hint=self._lost.hint)  # a new one: tracebacks grow on old ones

    def _farewell(self) -> None:
        if self.connection.is_open and self.blocked_reason is None:  # a blocked connection is not read
            self.connection.close()
        elif not self.connection.is_closing:
            self.connection.hang_up(RelayLost("The connection to the relay is closed."))

    def _run(self) -> None:
        try:
            self.connection = Connection(
                self._parameters,
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_open_error,
                on_close_callback=self._on_close,
                custom_ioloop=self._loop,
            )
            self.connection.message_bytes = self._message_bytes
            del self._parameters  # and with it the password
            self._loop.start()
        except Exception:  # a bug, ours or pika's: it must not leave others waiting for ever
            _log.exception("the I/O thread of the relay's connection failed")
            self._end(RelayLost("The connection to the relay broke."))
            if self.connection is not None and not self.connection.is_closed:
                self.connection.hang_up(RelayLost("The connection to the relay broke."))
                self._loop.start()  # until pika has closed the socket
        finally:
            self._loop.close()

    def _on_open(self, connection: pika.SelectConnection) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(lambda *_: self._on_unblocked())
        give(self._opening, None)

    def _on_open_error(self, _: pika.SelectConnection, error: BaseException) -> None:
        fail(self._opening, opening_error(error, self._broker, where=self._where))
        self._end(RelayLost("There is no connection to the relay."))
        self._loop.stop()

    def _on_close(self, _: pika.SelectConnection, error: BaseException) -> None:
        self._end(lost(error))
        self._loop.stop()

    def _on_blocked(self, _: pika.SelectConnection, frame: Any) -> None:
        self.blocked_reason = frame.method.reason or "the relay does not say why"

    def _on_unblocked(self) -> None:
        self.blocked_reason = None

    def _end(self, error: RelayError) -> None:
        with self._lock:
            if self._lost is not None:
                return
            self._lost = error
            questions = list(self._questions)
            self.blocked_reason = None
        for answer in (self._opening, *questions):
            fail(answer, RelayLost(error.message, hint=error.hint))
        self._on_lost(error)


def give(answer: Future[Any], value: object) -> None:
    """Settle a future with a value, unless it is settled."""
    if not answer.done():
        answer.set_result(value)


def fail(answer: Future[Any], error: BaseException) -> None:
    """Settle a future with an error, unless it is settled."""
    if not answer.done():
        answer.set_exception(error)
