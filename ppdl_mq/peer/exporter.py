"""Shows a peer's metrics over HTTP, in the text form of Prometheus: GET /metrics, and nothing else.

One thread answers one request after another, and rests a moment after each. It reads a dict that is replaced as a whole
and touches nothing else of the peer, so that a slow, broken or hostile scraper can neither stop nor delay it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final, Self

from ppdl_mq.config.hosts import is_this_machine
from ppdl_mq.config.listening import Listening, parse_listening
from ppdl_mq.config.settings import Metrics
from ppdl_mq.errors import PeerFileError
from ppdl_mq.peer.figures import FIGURES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("ppdl_mq.peer")

PATH: Final = "/metrics"
_LOOK_S: Final = 0.25  # how soon the thread notices that it is to end
_REST_S: Final = 0.05  # after each answer: a scraper that asks without pause may have 20 a second
_REQUEST_S: Final = 5.0  # for the whole of a request
_END_S: Final = 1.0  # the peer waits no longer for the thread's end

Source = Callable[[], Mapping[str, Any]]


@contextlib.contextmanager
def shown(metrics: Metrics) -> Iterator[Callable[[Source], None]]:
    """Show metrics where the settings say so, within the block; give what is to be called with their source.

    Raises:
        PeerFileError: as of `Exporter`.
    """
    if metrics.listen is None:
        yield lambda _: None
        return
    with Exporter(metrics.listen, private=metrics.private) as exporter:
        yield exporter.watch


class Exporter:
    """Listens from the beginning; without `watch` there is nothing yet to show but the process itself.

    Args:
        listen: HOST:PORT.
        private: whether to show what tells of the organisation's samples, too.

    Raises:
        PeerFileError: nobody can listen there, or prometheus-client is not installed.
    """

    def __init__(self, listen: str, *, private: bool) -> None:
        self._source: Source = dict
        self._stopped = threading.Event()
        render, self._content_type = _renderer(lambda: self._source(), private=private)
        self._server = _Server(parse_listening(listen), render, self._content_type)
        self._thread = threading.Thread(target=self._serve, name="ppdl-mq metrics", daemon=True)

    def __enter__(self) -> Self:
        log.info("Metrics are at http://%s%s.", self.address, PATH)
        if not is_this_machine(self.address.host):
            log.warning("They have no password: whoever reaches %s can read them.", self.address)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(_END_S)

    @property
    def address(self) -> Listening:
        """Where it listens, with the port that was chosen."""
        host, port, *_ = self._server.server_address
        return Listening(str(host), int(port))

    def watch(self, source: Source) -> None:
        """Show from now on what `source` returns: a status that nobody changes any more."""
        self._source = source

    def _serve(self) -> None:
        with self._server:
            while not self._stopped.is_set():
                try:
                    self._server.handle_request()
                except Exception:
                    log.exception("Metrics are shown no more.")
                    return
                self._stopped.wait(_REST_S if self._server.has_answered() else 0.0)


class _Server(TCPServer):
    """One request at a time, no look-up of the host's name, no traceback on the terminal."""

    allow_reuse_address = True
    request_queue_size = 16
    timeout = _LOOK_S

    def __init__(self, listening: Listening, render: Callable[[], bytes], content_type: str) -> None:
        self.render, self.content_type = render, content_type
        self._answers = False
        try:
            family, _, _, _, where = socket.getaddrinfo(
                listening.host, listening.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self.address_family = family
            super().__init__(where[:2] if family == socket.AF_INET else where, _Handler)  # type: ignore[arg-type]
        except OSError as fault:
            raise PeerFileError(
                f"Metrics cannot be shown at {listening}: {fault.strerror}.",
                hint="Choose another port with --metrics or under [metrics] of peer.toml, or end who listens there.",
            ) from None

    def has_answered(self) -> bool:
        """Tell whether the last call of `handle_request` had a request."""
        answers, self._answers = self._answers, False
        return answers

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer, within a limit for the whole of it: one byte now and then must not hold the thread for ever."""
        self._answers = True
        ending = threading.Timer(_REQUEST_S, _shut, args=(request,))
        ending.daemon = True
        ending.start()
        try:
            super().finish_request(request, client_address)
        finally:
            ending.cancel()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (the signature is given)
        """Say that a request failed to those who look closely; mostly its sender has hung up."""
        log.debug("A request for metrics failed.", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics; other paths are not found, and the base class refuses all other methods."""

    server: _Server
    timeout = _REQUEST_S
    server_version, sys_version = "ppdl-mq", ""
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        """Send the metrics."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(404)
            return
        body = self.server.render()
        self.send_response(200)
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Leave requests out of the log."""


def _renderer(source: Source, *, private: bool) -> tuple[Callable[[], bytes], str]:
    """Return what writes the metrics of a source, and the content type of that."""
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
        from prometheus_client.registry import Collector
    except ImportError:
        raise PeerFileError(
            "Metrics need prometheus-client, which is not installed.", hint="pip install 'ppdl-mq[metrics]'"
        ) from None

    class Figures(Collector):
        def collect(self) -> Iterable[Metric]:
            status = source()
            for figure in FIGURES:
                samples = [] if figure.private and not private else list(figure.read(status))
                if samples:
                    kind = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
                    family = kind(figure.name, figure.help, labels=figure.labels)
                    for labels, value in samples:
                        family.add_metric(labels, value)
                    yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures())
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
