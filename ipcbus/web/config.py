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

    [database]                       # without it, services have no ``database``
    url = "sqlite:///chat.db"        # beside this file; or "postgresql+psycopg://...", or "$NAME_OF_A_VARIABLE"
    connections = 20                 # of all services together

    [metrics]                        # without it, nothing is measured
    bind = "127.0.0.1:9464"          # where Prometheus fetches them

In a channel's URL ``{name}`` becomes the name of its receiver (``chat``, ``front-0``) and ``{port}`` a free port, for
transports whose channels need an address each: ``channel = "zmq+tcp://127.0.0.1:{port}"``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ipcbus.config import load_file
from ipcbus.errors import ConfigError
from ipcbus.web.database import DatabaseConfig  # noqa: TC001  read at run time, by ipcbus.options.build
from ipcbus.web.link import MAX_FRONTS, MAX_PAYLOAD
from ipcbus.web.metrics import MetricsConfig  # noqa: TC001  as above

__all__ = ["FrontConfig", "ServerConfig", "ServiceConfig", "load_server_config"]


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """The processes that hold the sockets."""

    bind: str = "127.0.0.1:8080"
    """``host:port``, ``[v6]:port`` or ``:port`` (every address of this machine); port 0 picks a free one."""
    processes: int = 2
    """How many of them, all on the same port."""
    page: str | None = None
    """A file served at ``/``; relative to the configuration file. Read once, at the start."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may connect, besides this host itself; ``"*"`` is all of them."""
    channel: str | None = None
    """URL of the front ends' inboxes, if it is not ``transport``."""
    headers: tuple[str, ...] = ("user-agent", "accept-language")
    """Request headers that services get to see."""
    max_size: int = 64 << 10
    """Bytes of the largest message a client may send; a larger one closes its connection with 1009."""
    write_limit: int = 1 << 20
    """Bytes that may wait for one slow client; over that its connection is cut."""
    open_timeout: float = 5.0
    """Seconds for a client's opening handshake."""
    ping_interval: float = 20.0
    """Seconds between two pings of a client."""
    ping_timeout: float = 20.0
    """Seconds for its answer; without one its connection is cut."""
    max_queue: int = 16
    """Messages of one client read ahead of what its service has taken."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One service process."""

    factory: str
    """``module:name`` of a Service subclass, or of a function that returns a Service."""
    channel: str | None = None
    """URL of its inbox, if it is not ``transport``."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A whole server."""

    services: dict[str, ServiceConfig]
    front: FrontConfig = field(default_factory=FrontConfig)
    database: DatabaseConfig | None = None
    metrics: MetricsConfig | None = None
    transport: str = "auto:"
    """URL of every channel that names none."""
    start_method: Literal["spawn", "forkserver"] = "spawn"
    """How the processes are made."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """What the processes write to stderr."""

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            ConfigError: a number is out of range.
        """
        front = self.front
        if not self.services:
            raise ConfigError("a server needs a service: add [services.NAME] with factory = 'module:Class'")
        if not 1 <= front.processes <= MAX_FRONTS:
            raise ConfigError(f"front: processes must be 1 to {MAX_FRONTS}, not {front.processes}")
        if not 1 <= front.max_size <= MAX_PAYLOAD:
            raise ConfigError(f"front: max_size must be 1 to {MAX_PAYLOAD} bytes, not {front.max_size}")
        if front.write_limit < front.max_size:
            raise ConfigError("front: write_limit is below max_size, so one message could cut a connection")
        if front.max_queue < 1:
            raise ConfigError(f"front: max_queue must be at least 1 message, not {front.max_queue}")
        for name in ("open_timeout", "ping_interval", "ping_timeout"):
            if getattr(front, name) <= 0:
                raise ConfigError(f"front: {name} must be more than 0 seconds, not {getattr(front, name)}")


def load_server_config(path: str | os.PathLike[str]) -> ServerConfig:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or says something wrong.
    """
    config = load_file(ServerConfig, path)
    if config.database is not None:
        config = dataclasses.replace(config, database=config.database.beside(Path(path).resolve().parent))
    if config.front.page is None:
        return config
    page = Path(path).resolve().parent / config.front.page
    return dataclasses.replace(config, front=dataclasses.replace(config.front, page=os.fspath(page)))
