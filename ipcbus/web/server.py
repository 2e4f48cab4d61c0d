"""Server: sockets, channels and processes of one configuration, started and stopped together."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ipcbus.channel import Channel, open_channel
from ipcbus.errors import ConfigError, GaveUp
from ipcbus.plumbing.ports import free_port
from ipcbus.supervisor import Program, Supervisor
from ipcbus.web.config import ServerConfig, load_server_config
from ipcbus.web.database import Database
from ipcbus.web.metrics import Metrics, Source
from ipcbus.web.processes import run_front_end, run_service
from ipcbus.web.snapshots import Snapshots

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from ipcbus.supervisor import Occurrence
    from ipcbus.web.snapshots import Slot

__all__ = ["Server", "serve"]

logger = logging.getLogger("ipcbus.web")

BACKLOG = 4096
"""Connections that may wait to be accepted, per front end."""

_SERIALIZER = "msgpack"
"""What links speak: never pickle, because whoever could write to such a link would run code in a service."""


class Server:
    """A WebSocket server; a context manager that starts and stops it.

    Args:
        config: what to run.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._host, self._port = _split(config.front.bind)
        self._resources = ExitStack()
        self._sockets: list[socket.socket] = []
        self._supervisor: Supervisor | None = None
        self._metrics: Metrics | None = None

    def start(self) -> Self:
        """Start every process and wait until clients are served.

        Raises:
            ConfigError: the address is taken or makes no sense, the page cannot be read, or a transport does not cross
                processes.
            StartFailed: a process did not become ready; says what it said. Nothing is left running.
            TransportUnavailable: a transport needs something that is not installed.
        """
        if self._supervisor is not None:
            raise ConfigError("this server was started before; make another one")
        try:
            self._supervisor = self._assemble()
            self._supervisor.start()
        except BaseException:
            self._resources.close()
            raise
        return self

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the server has stopped.

        Args:
            timeout: seconds; None waits without limit.

        Returns:
            0 after ``stop``, 1 if it gave up because processes died too often, None when the timeout has passed.
        """
        try:
            return 0 if self._running().wait(timeout) else None
        except GaveUp:
            return 1

    def request_stop(self) -> None:
        """Begin to stop and return at once. May be called from a signal handler."""
        self._running().request_stop()

    def stop(self) -> None:
        """Close connections with 1001, let services finish, end every process. Idempotent."""
        if self._supervisor is not None:
            self._supervisor.stop()
        self._resources.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port; the one that was picked, once started."""
        return self._port

    @property
    def address(self) -> str:
        """``host:port`` to connect to from this machine."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)  # noqa: S104  compared, not bound
        return f"{f'[{host}]' if ':' in host and host[0] != '[' else host}:{self._port}"

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.address}/"

    @property
    def metrics_url(self) -> str | None:
        """Where the metrics are; None without ``[metrics]``."""
        return None if self._metrics is None else self._metrics.url

    @property
    def pids(self) -> dict[str, int]:
        """The process ids by name: ``chat``, ``front-0``, ``front-1``."""
        return self._running().pids

    @property
    def history(self) -> list[Occurrence]:
        """What has happened to the processes."""
        return self._running().history

    @property
    def failure(self) -> str | None:
        """Why the server gave up, or None."""
        return self._running().failure

    # ------------------------------------------------------------------ inside

    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise ConfigError("the server is not started; call start() first")
        return self._supervisor

    def _assemble(self) -> Supervisor:
        config, front = self._config, self._config.front
        page = _read(front.page)
        self._listen(front.processes)
        fronts = [self._open(front.channel, f"front-{index}") for index in range(front.processes)]
        inboxes = {name: self._open(service.channel, name) for name, service in config.services.items()}
        databases: list[Database | None] = [None] * len(inboxes)
        if config.database is not None:
            databases = [*Database.shares(config.database, len(inboxes))]
        slots = self._measure(len(fronts), list(inboxes))
        services = [
            Program(
                name,
                run_service,
                (
                    config.log_level,
                    service.factory,
                    name,
                    index,
                    inboxes[name].receiver,
                    _senders(fronts),
                    databases[index],
                    slots.get(name),
                ),
            )
            for index, (name, service) in enumerate(config.services.items())
        ]
        known = [(name, channel.sender) for name, channel in inboxes.items()]
        ends = [
            Program(
                f"front-{index}",
                run_front_end,
                (config.log_level, front, index, sock, inbox.receiver, known, page, slots.get(f"front-{index}")),
            )
            for index, (sock, inbox) in enumerate(zip(self._sockets, fronts, strict=True))
        ]
        # Front ends are stopped first, so that services hear of every connection that closes.
        return Supervisor([services, ends], start_method=config.start_method, at_end=self._hang_up)

    def _measure(self, fronts: int, services: list[str]) -> dict[str, Slot]:
        """Begin to serve metrics, and return where each process is to report; nowhere without ``[metrics]``."""
        if self._config.metrics is None:
            return {}
        sources = [Source(f"front-{index}", "front") for index in range(fronts)]
        sources += [Source(name, "service", name) for name in services]
        page = Snapshots([source.name for source in sources])
        self._resources.callback(page.close)
        self._metrics = Metrics(
            self._config.metrics, sources, page.read, lambda: {} if self._supervisor is None else self._supervisor.pids
        )
        self._resources.callback(self._metrics.close)
        return {source.name: page.slot(source.name) for source in sources}

    def _listen(self, count: int) -> None:
        """Make one listening socket per front end, all on the same port; the kernel spreads connections over them.

        They stay open here, so that what waits in the queue of a front end that died is there for the next one.
        """
        family, address = _resolve(self._host, self._port)
        if self._port:
            _refuse_shared_port(family, address)
        for _ in range(count):
            sock = self._resources.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                sock.bind((address[0], self._port, *address[2:]))
                sock.listen(BACKLOG)
            except OSError as error:
                raise _cannot_bind(self._host, self._port, error) from error
            self._port = sock.getsockname()[1]
            self._sockets.append(sock)

    def _hang_up(self) -> None:
        """Refuse connections: when nobody is left to accept them they would wait for nothing."""
        for sock in self._sockets:
            sock.close()

    def _open(self, url: str | None, name: str) -> Channel:
        """Make the inbox of a process."""
        url = self._config.transport if url is None else url
        url = url.replace("{name}", name)
        if "{port}" in url:
            url = url.replace("{port}", str(free_port()))
        channel = self._resources.enter_context(open_channel(url, serializer=_SERIALIZER, accept=(_SERIALIZER,)))
        if not channel.capabilities.crosses_processes:
            raise ConfigError(f"{name}: {channel.url} works between threads only; a server needs one between processes: pipe:")
        return channel


def serve(config: ServerConfig | str | os.PathLike[str], *, ready: Callable[[Server], None] | None = None) -> int:
    """Run a server until SIGTERM or SIGINT.

    Args:
        config: what to run, or the path of a configuration file; its directory is searched for modules first.
        ready: called once clients are served.

    Returns:
        The exit code: 0, or 1 if the server gave up because processes died too often.

    Raises:
        ConfigError: the configuration is wrong.
        StartFailed: a process did not become ready.
    """
    if not isinstance(config, ServerConfig):
        path = Path(config).resolve()
        config = load_server_config(path)
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))  # children get a copy of it
    stop = threading.Event()
    server = Server(config)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(*_: object) -> None:
        stop.set()
        if server._supervisor is not None:  # noqa: SLF001  a function of the same module
            server.request_stop()

    for number in before:
        signal.signal(number, on_signal)
    try:
        with server:
            logger.info("serving at %s", server.url)
            if ready is not None:
                ready(server)
            if stop.is_set():
                server.request_stop()
            return server.wait() or 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _senders(channels: list[Channel]) -> list[Channel]:
    return [channel.sender for channel in channels]


def _split(bind: str) -> tuple[str, int]:
    host, colon, port = bind.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"front: bind = {bind!r} must read host:port, [v6]:port or :port, with a port below 65536")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigError(f"front: bind = {bind!r}: write an IPv6 address in brackets: [::1]:{port}")
    return host.strip("[]"), int(port)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"front: bind: no address is known for {host!r}: {error.strerror}") from error
    # With no host given, IPv4 is what every client on every machine can reach.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address  # type: ignore[return-value]  # of these two families, both begin with host and port


def _refuse_shared_port(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    """Raise if somebody listens there already: SO_REUSEPORT would silently share the port with another server of ours."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise _cannot_bind(address[0], address[1], error) from error


def _cannot_bind(host: str, port: int, error: OSError) -> ConfigError:
    remedy = {
        errno.EADDRINUSE: "another program listens there; choose another port, or 0 for a free one",
        errno.EACCES: "ports below 1024 need a privilege; choose a higher one",
        errno.EADDRNOTAVAIL: "that address is not one of this machine's",
    }.get(error.errno or 0, error.strerror)
    return ConfigError(f"front: bind: cannot listen at {host or '*'}:{port}: {remedy}")


def _read(page: str | None) -> bytes | None:
    if page is None:
        return None
    try:
        return Path(page).read_bytes()
    except OSError as error:
        raise ConfigError(f"front: page = {page!r} cannot be read: {error.strerror}") from error
