"""A private RabbitMQ node for the tests: own folder, ports, cookie and port mapper; never the machine's own node.

    with RabbitNode() as node:
        node.url()              # amqp://guest@127.0.0.1:PORT
        node.kill(); node.start()   # as after a crash; durable queues are still there

A node starts in 3 to 8 s, so use the session's fixture `rabbit`, and names of your own within it.

    with cluster(3) as nodes:   # takes half a minute; quorum queues live on a majority of them
        nodes[0].kill()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pika

START_S = 90.0  # far more than it takes, for a machine that is busy
STOP_S = 30.0
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # what RabbitMQ 4.x allows by default
_PAUSES = "cluster_partition_handling = pause_minority\n"

# Linux ends the child with us, however we end. `exec` keeps this and the pid.
_END_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 15)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def scripts_folder() -> Path | None:
    """Return the package's own sbin folder; the wrapper on the PATH would change the user."""
    for pattern in ("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin", "/opt/homebrew/opt/rabbitmq/sbin"):
        for folder in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if (folder / "rabbitmq-server").exists():
                return folder
    return None


def why_absent() -> str | None:
    """Say in one line why no node can be started here; None when one can."""
    if scripts_folder() is None:
        return "RabbitMQ is not installed: run scripts/install-rabbitmq"
    if shutil.which("epmd") is None:
        return "Erlang's epmd is not on the PATH"
    return None


@dataclass(frozen=True)
class Seen:
    """One message that passed the broker, as the firehose shows it.

    Args:
        kind: `publish` (came in) or `deliver` (went out).
        name: the exchange it came to, or the queue it went out of.
        routing_keys: of the message.
        body: its bytes.
        properties: of the message, as the tracer found them.
    """

    kind: str
    name: str
    routing_keys: tuple[str, ...]
    body: bytes
    properties: Any


class Tap:
    """Everything that passes one vhost, from `RabbitNode.tap`."""

    def __init__(self, channel: Any, queue: str) -> None:
        self._channel = channel
        self._queue = queue

    def read(self) -> list[Seen]:
        """Return what has passed since the last call. A confirmed message is here by then."""
        seen = []
        while True:
            method, properties, body = self._channel.basic_get(self._queue, auto_ack=True)
            if method is None:
                return seen
            kind, _, name = method.routing_key.partition(".")
            headers = properties.headers or {}
            seen.append(Seen(kind, name, tuple(headers.get("routing_keys", ())), body, headers.get("properties")))


class RabbitNode:
    """One node in a folder that is thrown away.

    Args:
        config: more lines for rabbitmq.conf.
        plugins: names of plugins to enable; each costs start-up time.
        beside: a node whose cluster this one joins when it starts for the first time; it must run then.
    """

    def __init__(self, *, config: str = "", plugins: tuple[str, ...] = (), beside: RabbitNode | None = None) -> None:
        folder = scripts_folder()
        assert folder is not None, why_absent()
        self._scripts = folder
        self._home = Path(tempfile.mkdtemp(prefix="ppdl-rabbit-"))
        self.port, self._dist_port, self._epmd_port = free_ports(3)
        self.name = f"ppdl{self.port}@localhost"  # a name that resolves; another costs a minute
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._cookie = os.urandom(16).hex()
        self._epmd_is_ours = beside is None
        if beside is not None:
            self._cookie, self._epmd_port = beside._cookie, beside._epmd_port
            for number, name in enumerate((beside.name, self.name), start=1):
                config += f"cluster_formation.classic_config.nodes.{number} = {name}\n"
        self._write_files(config, plugins)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()  # nobody else does: what is never entered is never left
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def folder(self) -> Path:
        """Where the node's files are."""
        return self._home

    @property
    def is_running(self) -> bool:
        """Whether the node's process runs."""
        return self._server is not None and self._server.poll() is None

    def url(self, user: str = "guest", vhost: str = "") -> str:
        """Return the node's URL, without a password."""
        return f"amqp://{user}@127.0.0.1:{self.port}/{vhost}"

    def start(self) -> None:
        """Start the node, and its port mapper, and wait until it answers AMQP; harmless when it runs."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the node without waiting for it. Call it on a thread that lives on: the node ends with the thread."""
        if self.is_running:
            return
        if self._epmd_is_ours and self._epmd is None:
            self._epmd = self._spawn([shutil.which("epmd") or "epmd"], self._environment(), self._home / "epmd.log")
            _wait_until(self._epmd_port, self._epmd, b"", self._home / "epmd.log")
        environment = self._environment()
        # Bind the distribution to loopback as well; not for rabbitmqctl, which would listen on the same port.
        environment["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] = "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none"
        self._server = self._spawn([str(self._scripts / "rabbitmq-server")], environment, self._home / "node.log")

    def wait(self) -> None:
        """Wait until the node answers AMQP."""
        self._wait_at(self.port, b"AMQP\x00\x00\x09\x01")

    def _wait_at(self, port: int, greeting: bytes) -> None:
        assert self._server is not None, "launched before"
        _wait_until(port, self._server, greeting, self._home / "node.log")

    def stop(self) -> None:
        """Stop the node in good order."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(STOP_S)

    def kill(self) -> None:
        """End the node as a crash would, but not with the newest queues' names unwritten (docs/CONNECTION.md)."""
        if self.is_running:
            self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")
        self._kill()

    def _kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait(STOP_S)

    def remove(self) -> None:
        """Stop everything by process id and throw the folder away."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        self._kill()
        if self._epmd is not None:
            self._epmd.terminate()
            self._epmd.wait(STOP_S)
        shutil.rmtree(self._home, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this node and return what it prints."""
        done = subprocess.run(
            [str(self._scripts / "rabbitmqctl"), "--node", self.name, *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"rabbitmqctl {arguments[0]} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def add_user(
        self,
        name: str,
        password: str,
        *,
        vhost: str = "/",
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
    ) -> None:
        """Add a user with these rights, patterns as in `rabbitmqctl set_permissions`."""
        self.ctl("add_user", name, password)
        self.ctl("set_permissions", "--vhost", vhost, name, configure, write, read)

    def delete_user(self, name: str) -> None:
        """Remove a user."""
        self.ctl("delete_user", name)

    def waiting(self, vhost: str) -> dict[str, int]:
        """Return how many messages wait in each queue, as the queues know it: `list_queues` counts every 5 s."""
        names = self.ctl("list_queues", "--vhost", vhost, "--silent", "--no-table-headers", "name").split()
        self.ctl("set_permissions", "--vhost", vhost, "guest", "^$", "^$", "^$")  # to come in, and look
        with self.channel(vhost) as channel:
            return {name: channel.queue_declare(name, passive=True).method.message_count for name in names}

    @contextlib.contextmanager
    def channel(self, vhost: str = "/") -> Iterator[Any]:
        """Give a plain pika channel, to look at the broker past the adapter."""
        parameters = pika.ConnectionParameters(host="127.0.0.1", port=self.port, virtual_host=vhost)
        connection = pika.BlockingConnection(parameters)
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()

    @contextlib.contextmanager
    def tap(self, vhost: str = "/") -> Iterator[Tap]:
        """Copy everything that passes `vhost` (RabbitMQ's firehose) to where `Tap.read` finds it."""
        self.ctl("trace_on", "--vhost", vhost)
        try:
            with self.channel(vhost) as channel:
                queue = channel.queue_declare("", exclusive=True).method.queue
                channel.queue_bind(queue, "amq.rabbitmq.trace", "#")
                yield Tap(channel, queue)
        finally:
            self.ctl("trace_off", "--vhost", vhost)

    def _write_files(self, config: str, plugins: tuple[str, ...]) -> None:
        cookie = self._home / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        (self._home / "plugins").write_text(f"[{','.join(plugins)}].\n")
        (self._home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "disk_free_limit.absolute = 10MB\n"
            "log.console = false\n"
            f"max_message_size = {MAX_MESSAGE_BYTES}\n"
            f"{config}"
        )

    def _environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        return inherited | {
            "HOME": str(self._home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self._home / "data"),
            "RABBITMQ_LOG_BASE": str(self._home / "log"),
            "RABBITMQ_PID_FILE": str(self._home / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self._home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # the machine's own settings stay out
            "RUNNING_UNDER_SYSTEMD": "true",  # the script then replaces itself by the node: its pid is the child's
        }

    def _spawn(self, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", _END_WITH_PARENT, *command],
                env=environment,
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


@contextlib.contextmanager
def cluster(size: int) -> Iterator[list[RabbitNode]]:
    """Start nodes that form one cluster; in a partition its smaller part pauses."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(RabbitNode(config=_PAUSES))
        nodes = [first, *(RabbitNode(config=_PAUSES, beside=first) for _ in range(size - 1))]
        for node in nodes[1:]:
            stack.callback(node.remove)
            node.launch()
        for node in nodes[1:]:
            node.wait()
        yield nodes


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        return ports


def _wait_until(port: int, process: subprocess.Popen[bytes], greeting: bytes, log: Path) -> None:
    """Wait until `port` accepts, and answers `greeting` where there is one."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if not greeting:
                return
            connection.sendall(greeting)
            if connection.recv(1):
                return
        time.sleep(0.05)  # between two looks at another process, which tells in no other way
    raise AssertionError(f"it does not answer on port {port}: {log.read_text(errors='replace')[-2000:]}")
