"""What ``app.toml`` says about a WebSocket server.

::

    transport = "pipe:"              # for every channel that names none; default "auto:"

    [front]
    bind = "127.0.0.1:8080"          # port 0 picks a free one
    processes = 2
    page = "index.html"              # served at /, beside this file
    origins = ["https://example.org"]

    [services.chat]
    factory = "app:Chat"             # module:class, the module beside this file or installed
    channel = "zmq:"
    processes = 2                    # each connection belongs to one of them

    [database]                       # without it, services have no ``database``
    url = "sqlite:///chat.db"        # beside this file; or "postgresql+psycopg://...", or "$NAME_OF_A_VARIABLE"
    connections = 20                 # of all services together

    [metrics]                        # without it, nothing is measured
    bind = "127.0.0.1:9464"          # where Prometheus fetches them

In a channel's URL ``{name}`` becomes the name of its receiver (``chat``, ``chat-1``, ``front-0``), and ``{port}`` a free
port, for transports whose channels need an address each: ``channel = "zmq+tcp://127.0.0.1:{port}"``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ipcbus.config import load_file
from ipcbus.errors import ConfigError
from ipcbus.options import rate
from ipcbus.web.database import DatabaseConfig  # noqa: TC001  read at run time, by ipcbus.options.build
from ipcbus.web.limits import networks
from ipcbus.web.link import MAX_FRONTS, MAX_PAYLOAD
from ipcbus.web.metrics import MetricsConfig  # noqa: TC001  as above
from ipcbus.web.origins import Origins

__all__ = ["FrontConfig", "ServerConfig", "ServiceConfig", "load_server_config"]

MAX_PROCESSES = 64
"""Processes of one service."""


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """The processes that hold the sockets."""

    bind: str = "127.0.0.1:8080"
    """``host:port``, ``[v6]:port`` or ``:port`` (every address of this machine); port 0 picks a free one."""
    processes: int = 2
    """How many of them, all on the same port."""
    page: str | None = None
    """A file served at ``/``; relative to the configuration file. Read once, at the start. It is meant to be small: who has not
    read it within some ``open_timeout`` seconds is cut off, as in any opening handshake."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may connect, besides this host itself: ``"https://example.org"``, ``"https://*.example.org"`` for all
    below it, ``"*"`` for all there are."""
    channel: str | None = None
    """URL of the front ends' inboxes, if it is not ``transport``."""
    headers: tuple[str, ...] = ("user-agent", "accept-language")
    """Request headers that services get to see; those called ``x-forwarded-...`` only if a trusted proxy sent them."""
    max_size: int = 64 << 10
    """Bytes of the largest message a client may send; a larger one closes its connection with 1009."""
    soft_limit: int = 256 << 10
    """Bytes that may wait for one client before it counts as slow: see ``slow`` of ``Service.publish``."""
    write_limit: int = 1 << 20
    """Bytes that may wait for one slow client; over that its connection is cut."""
    coalesce: float = 0.0
    """Seconds within which a client gets what is published to its rooms in one write, the first message at once. Costs busy
    rooms so much time at most, and saves processor time; 0 writes each message by itself."""
    open_timeout: float = 5.0
    """Seconds for a client's opening handshake, TLS, waiting for the service and ``authorize`` included."""
    ping_interval: float = 20.0
    """Seconds between two pings of a client, at most; up to a tenth less, so that who came together is not pinged together."""
    ping_timeout: float = 20.0
    """Seconds for its answer, or for anything else it sends that is whole; without it the connection is closed with 1011. A
    client is given this anew when it has not been read for a while, because its service was away or it sends too fast."""
    first_message: float = 0.0
    """Seconds for a client to say something, after which it is closed with 4408; 0 is no limit."""
    idle_timeout: float = 0.0
    """Seconds between two messages of a client, after which it is closed with 4408; 0 is no limit. Answers to pings are none,
    and time in which it is not read because its service is away does not count."""
    max_lifetime: float = 0.0
    """Seconds that a connection may last; at nine tenths of it or a little later it is closed with 1001. 0 is no limit."""
    max_queue: int = 16
    """Messages of one client read ahead of what its service has taken."""
    message_rate: float = rate(50.0, "messages")
    """Messages a second of one client, on average; 0 is no limit. One that sends faster is read more slowly."""
    message_burst: int = 100
    """Messages that it may send at once."""
    byte_rate: int = 256 << 10
    """Bytes a second of one client, on average; as much at once; 0 is no limit."""
    rate_patience: float = 10.0
    """Seconds for which a client may go on sending too fast; after that it is closed with 4429. 0: for as long as it likes."""
    frame_rate: float = rate(1000.0, "frames")
    """Pings, pongs and fragments a second of one client, on average, twice as many at once; 0 is no limit. Over that it is
    closed with 1008."""
    max_groups: int = 128
    """Rooms that one connection may be in."""
    max_connections: int = 0
    """Connections of each front end; 0 is nine tenths of the descriptors it may have."""
    half_open: int = 256
    """Connections of each front end that may be in their opening handshake."""
    per_address: int = 100
    """Connections that one address may have in each front end; 0 is no limit."""
    exempt: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Networks whose addresses are not counted: a proxy on this machine speaks for everybody."""
    accept_rate: float = rate(200.0, "connections")
    """Connections a second that each front end accepts, on average; 0 is no limit. Others are told to come again (503)."""
    accept_burst: int = 500
    """Connections that may come at once."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks or addresses of proxies whose X-Forwarded-For is believed, and what else begins with X-Forwarded."""
    tls_certificate: str | None = None
    """A PEM file with the certificate and those it depends on, for ``wss://``; relative to the configuration file."""
    tls_key: str | None = None
    """A PEM file with its key, if that is not in the same file."""
    drain: float = 10.0
    """Seconds over which connections are closed (1001) when the server stops, so that clients do not all return at once."""
    drain_rate: float = rate(500.0, "connections")
    """Connections a second that are closed when it stops; faster only if ``drain`` would not do."""
    link_timeout: float = 10.0
    """Seconds after which a service that says nothing at all counts as away."""
    heartbeat: float = 20.0
    """Seconds for which a front end's process may be stuck before it is killed and started again; 0: for ever."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One service."""

    factory: str
    """``module:name`` of a Service subclass, or of a function that returns a Service."""
    channel: str | None = None
    """URL of its inbox, if it is not ``transport``."""
    processes: int = 1
    """How many it runs in; each connection belongs to one of them, which handles its messages in order."""
    shard: str = "connection"
    """What decides to which: ``"connection"``; or ``"query:NAME"``: those whose URLs say the same ``NAME`` together."""
    grace: float = 30.0
    """Seconds for which its clients are kept while a process is away; then they are closed with 1013."""
    finish_timeout: float = 10.0
    """Seconds that handlers under way have for finishing when a process is replaced or the server stops; what they still hold
    then is lost. Clients of a process that is replaced wait meanwhile."""
    heartbeat: float = 20.0
    """Seconds for which a handler may keep the whole process from doing anything else; then it is killed and started again.
    0: for ever."""

    def process_names(self, name: str) -> list[str]:
        """Return what the processes of a service of that name are called."""
        return [name] if self.processes == 1 else [f"{name}-{number}" for number in range(self.processes)]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A whole server."""

    services: dict[str, ServiceConfig]
    front: FrontConfig = field(default_factory=FrontConfig)
    database: DatabaseConfig | None = None
    metrics: MetricsConfig | None = None
    transport: str = "auto:"
    """URL of every channel that names none."""
    start_method: Literal["spawn", "forkserver"] = "forkserver"
    """How the processes are made. From a fork server that has imported what they need (none of your modules) a process is
    there in a tenth of the time, which is how long clients wait when a service dies."""
    restarts: int = 5
    """How many processes that died, services and front ends together, are started again within ``restart_period``. One more,
    and the server stops with exit status 1. 0: the first death stops it."""
    restart_period: float = 10.0
    """Seconds over which deaths are counted."""
    start_timeout: float = 30.0
    """Seconds that a process has for being ready: for a service from the import of its module to the end of ``on_start``. One
    that takes longer is killed. That ends the start of the server; at a reload the old process goes on; at any other time it
    counts as a death."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """What the processes write to stderr."""

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            ConfigError: a number is out of range.
        """
        if not self.services:
            raise ConfigError("a server needs a service: add [services.NAME] with factory = 'module:Class'")
        _check_front(self.front)
        _at_least("server", self, 0, "restarts")
        _more_than_zero("server", self, "restart_period", "start_timeout")
        owners = {f"front-{index}": "a front end" for index in range(self.front.processes)}
        for name, service in self.services.items():
            if not 1 <= service.processes <= MAX_PROCESSES:
                raise ConfigError(f"services.{name}: processes must be 1 to {MAX_PROCESSES}, not {service.processes}")
            kind, _, key = service.shard.partition(":")
            if service.shard != "connection" and not (kind == "query" and key):
                raise ConfigError(f"services.{name}: shard must be 'connection' or 'query:NAME', not {service.shard!r}")
            for process in service.process_names(name):
                if (owner := owners.setdefault(process, f"services.{name}")) != f"services.{name}":
                    raise ConfigError(f"services.{name}: a process of {owner} is called {process!r}, too; choose another name")
            _at_least(f"services.{name}", service, 0.0, "grace", "finish_timeout", "heartbeat")


def _check_front(front: FrontConfig) -> None:
    if not 1 <= front.processes <= MAX_FRONTS:
        raise ConfigError(f"front: processes must be 1 to {MAX_FRONTS}, not {front.processes}")
    if not 1 <= front.max_size <= MAX_PAYLOAD:
        raise ConfigError(f"front: max_size must be 1 to {MAX_PAYLOAD} bytes, not {front.max_size}")
    if front.write_limit < front.max_size:
        raise ConfigError("front: write_limit is below max_size, so one message could cut a connection")
    if front.soft_limit > front.write_limit:
        raise ConfigError("front: soft_limit is above write_limit, so a client would be cut before it counts as slow")
    if front.max_queue < 1:
        raise ConfigError(f"front: max_queue must be at least 1 message, not {front.max_queue}")
    _at_least("front", front, 1, "message_burst", "max_groups", "half_open", "accept_burst", "soft_limit")
    _at_least("front", front, 0, "message_rate", "byte_rate", "rate_patience", "frame_rate", "drain", "heartbeat", "coalesce")
    _at_least(
        "front", front, 0, "max_connections", "per_address", "accept_rate", "first_message", "max_lifetime", "idle_timeout"
    )
    _more_than_zero("front", front, "open_timeout", "ping_interval", "ping_timeout", "link_timeout", "drain_rate")
    for name, read in (("exempt", networks), ("trusted_proxies", networks), ("origins", Origins)):
        try:
            read(getattr(front, name))
        except ValueError as error:
            raise ConfigError(f"front: {name}: {error}") from error
    if front.tls_key is not None and front.tls_certificate is None:
        raise ConfigError("front: tls_key is given, but no tls_certificate")


def _at_least(where: str, config: object, least: float, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= least:  # nor is what is no number
            raise ConfigError(f"{where}: {name} must be at least {least:g}, not {getattr(config, name)}")


def _more_than_zero(where: str, config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{where}: {name} must be more than 0, not {getattr(config, name)}")


def load_server_config(path: str | os.PathLike[str]) -> ServerConfig:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or says something wrong.
    """
    config = load_file(ServerConfig, path)
    folder = Path(path).resolve().parent
    if config.database is not None:
        config = dataclasses.replace(config, database=config.database.beside(folder))
    files = {
        name: os.fspath(folder / value)
        for name in ("page", "tls_certificate", "tls_key")
        if (value := getattr(config.front, name)) is not None
    }
    return dataclasses.replace(config, front=dataclasses.replace(config.front, **files))
