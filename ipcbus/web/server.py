"""Server: sockets, channels and processes of one configuration, started and stopped together."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import pkgutil
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ipcbus.bus.bus import Bus
from ipcbus.channel import Channel, open_channel
from ipcbus.errors import ConfigError, GaveUp
from ipcbus.plumbing.ports import free_port
from ipcbus.supervisor import Program, Supervisor, forkserver
from ipcbus.web.config import ServerConfig, load_server_config
from ipcbus.web.database import Database
from ipcbus.web.link import MAX_PAYLOAD, start
from ipcbus.web.metrics import Metrics, Source
from ipcbus.web.outside import bus_config
from ipcbus.web.paths import Paths
from ipcbus.web.processes import ServiceArgs, notice, run_front_end, run_service, tls_context
from ipcbus.web.servicelink import ServiceInbox
from ipcbus.web.snapshots import Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from ipcbus.supervisor import Events, Occurrence
    from ipcbus.web.snapshots import Slot

__all__ = ["Server", "serve"]

logger = logging.getLogger("ipcbus.web")

BACKLOG = 4096
"""Connections that may wait to be accepted, per front end."""

_PRELOAD = ("ipcbus.web.server", "ipcbus.web.host", "ipcbus.requests", "ipcbus.aio", "ipcbus.serializers.msgpack", "uvloop")
"""What every process of a server imports anyhow, besides its transports. What cannot be imported is passed over."""
_PRELOAD_DATABASE = ("sqlalchemy.orm", "ipcbus.web.database")
"""And where there is a database: SQLAlchemy takes longer to import than everything else together."""
LARGEST = 2 * MAX_PAYLOAD
"""Bytes that a message of a link may have: one of a client, or what there is to tell of some clients: see ``SNAP_BYTES``."""
STOP_TIMEOUT = 10.0
"""Seconds that a process may take to stop, besides the time in which connections are closed or handlers finish."""
_ENDED = frozenset({"died", "done", "late", "stuck", "stopped", "killed"})

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
        self._fronts: list[str] = []
        self._services: list[str] = []
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

    def request_reload(self) -> None:
        """Begin to replace every service process by a new one, and return at once. May be called from a signal handler.

        The new process is loaded, and ``on_start`` has returned in it, before the old one is asked to stop; if that fails the
        old one goes on, and the log says so. No socket is closed and no message is lost: front ends hold what clients send
        while the old process finishes what it has, for which it has ``finish_timeout`` seconds. Asked for again while it is
        under way, it happens once more.
        """
        self._running().request_replace(*self._services)

    def reload(self) -> None:
        """Replace every service process by a new one, and wait until all are ready; see ``request_reload``.

        Raises:
            StartFailed: a process could not be replaced, and the old one goes on; or it does not run.
        """
        running = self._running()
        with ThreadPoolExecutor(len(self._services)) as pool:
            list(pool.map(running.replace, self._services))

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
        return f"{'http' if self._config.front.tls_certificate is None else 'https'}://{self.address}/"

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
    def events(self) -> Events:
        """What happens to the processes, as a stream to receive from; see :class:`ipcbus.supervisor.Events`."""
        return self._running().events

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
        tls_context(front)  # so that a mistake in it is told here
        self._listen(front.processes)
        counts = {name: service.processes for name, service in config.services.items()}
        bus = self._resources.enter_context(Bus(bus_config(counts)))
        self._fronts = [f"front-{index}" for index in range(front.processes)]
        fronts = [self._open(front.channel, name) for name in self._fronts]
        slots = self._measure()
        paths = Paths(sum(counts.values()))
        self._resources.callback(paths.close)
        databases: Iterator[Database | None] = itertools.repeat(None)
        if config.database is not None:
            databases = iter(Database.shares(config.database, sum(counts.values())))
        services: list[Program] = []
        known: list[ServiceInbox] = []
        for name, service in config.services.items():
            inboxes = []
            for number, called in enumerate(service.process_names(name)):
                inbox = self._open(service.channel, called)
                args = ServiceArgs(
                    name=name,
                    factory=service.factory,
                    index=len(services),
                    shard=(number, service.processes),
                    fronts=_senders(fronts),
                    services=tuple(config.services),
                    bus=bus.address,
                    link_timeout=front.link_timeout,
                    max_groups=front.max_groups,
                    finish_timeout=service.finish_timeout,
                    paths=paths,
                    database=next(databases),
                )
                arguments = (config.log_level, inbox.receiver, args, slots.get(called))
                services.append(Program(called, run_service, arguments, heartbeat=service.heartbeat))
                inboxes.append((called, inbox.sender))
            farewell = service.finish_timeout + STOP_TIMEOUT
            known.append(ServiceInbox(name, inboxes, key=service.shard, grace=service.grace, farewell=farewell))
        self._services = [program.name for program in services]
        ends = [
            Program(
                name,
                run_front_end,
                (config.log_level, front, index, sock, inbox.receiver, known, page, slots.get(name)),
                heartbeat=front.heartbeat,
            )
            for index, (name, sock, inbox) in enumerate(zip(self._fronts, self._sockets, fronts, strict=True))
        ]
        if config.start_method == "forkserver":
            forkserver.begin([*_PRELOAD, *(_PRELOAD_DATABASE if config.database else ()), *_plugins()])
        # Front ends are stopped first, so that services hear of every connection that closes.
        return Supervisor(
            [services, ends],
            start_method=config.start_method,
            intensity=config.restarts,
            period=config.restart_period,
            ready_timeout=config.start_timeout,
            stop_timeout=max(front.drain, *(service.finish_timeout for service in config.services.values())) + STOP_TIMEOUT,
            at_end=self._hang_up,
            on_event=self._spread,
        )

    def _spread(self, occurrence: Occurrence) -> None:
        """Tell those at the other ends of its links that a process has ended: they would find out by themselves, later."""
        if self._supervisor is None or occurrence.what not in _ENDED:
            return
        for those, others in ((self._fronts, self._services), (self._services, self._fronts)):
            if occurrence.name in those:
                news = notice(those.index(occurrence.name), start())
                for other in others:
                    self._supervisor.tell(other, news)

    def _measure(self) -> dict[str, Slot]:
        """Begin to serve metrics, and return where each process is to report; nowhere without ``[metrics]``."""
        if self._config.metrics is None:
            return {}
        sources = [Source(name, "front") for name in self._fronts]
        for name, service in self._config.services.items():
            sources += [Source(called, "service", name) for called in service.process_names(name)]
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
        end = channel._end  # noqa: SLF001  what a channel does when it is full is not told elsewhere
        if end.options.overflow != "block":
            raise ConfigError(
                f"{name}: {channel.url} has overflow={end.options.overflow!r}, and nothing that front ends and services say to "
                "each other may be lost; make it without"
            )
        if end.codec.max_message < LARGEST:
            raise ConfigError(f"{name}: {channel.url} has max_message={end.codec.max_message}; it has to be {LARGEST} at least")
        return channel


def serve(config: ServerConfig | str | os.PathLike[str], *, ready: Callable[[Server], None] | None = None) -> int:
    """Run a server until SIGTERM, SIGINT, or the end of its terminal; SIGHUP replaces its services, see ``request_reload``.

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
    asked = False  # no Event: the handler of one signal may interrupt that of another, and would wait for its lock
    server = Server(config)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals}
    terminals = [fd for fd in range(3) if os.isatty(fd)]

    def on_signal(number: int, _: object) -> None:
        nonlocal asked
        # At the end of a terminal SIGHUP comes by itself, and a server that went on would have nobody who knows of it.
        hung_up = bool(terminals) and not any(map(os.isatty, terminals))
        stop = number != signal.SIGHUP or hung_up
        asked = asked or stop
        if server._supervisor is None:  # noqa: SLF001  a function of the same module
            return
        if stop:
            server.request_stop()
        else:
            server.request_reload()

    for number in signals:
        signal.signal(number, on_signal)
    try:
        with server:
            if not asked:  # else it was told to stop while it started, and serves nobody
                logger.info("serving at %s", server.url)
                if ready is not None:
                    ready(server)
            if asked:
                server.request_stop()
            return server.wait() or 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plugins() -> list[str]:
    """Return the modules of the transports in use, as far as they are packages of ipcbus's own: others only start later."""
    found = []
    for name, package in list(sys.modules.items()):
        if name.startswith("ipcbus_") and hasattr(package, "__path__"):
            found += [name, *(f"{name}.{module.name}" for module in pkgutil.iter_modules(package.__path__))]
    return found


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
