"""How a client connects, and what it does when things go wrong."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ipcbus.errors import ConfigError
from ipcbus.web.client.incoming import Overflow  # noqa: TC001  read at run time, by ipcbus.options.build

if TYPE_CHECKING:
    import ssl

__all__ = ["ClientOptions", "tls_context"]

POLICY = 1008


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What :func:`ipcbus.web.connect` takes besides URLs and channels."""

    overflow: Overflow = "block"
    """When messages come faster than they are taken: ``block`` stops reading, so that the server notices; ``drop_oldest``
    and ``drop_newest`` drop messages, and mark and count the gap."""
    buffer: int = 64
    """Messages of each connection held in the client while the channel is full."""
    give_up_on: tuple[int, ...] = (POLICY, *range(4400, 4500))
    """Close codes, and HTTP statuses of a refused handshake, after which a connection is not tried again."""
    reconnect: bool = True
    """False: one connection, and no second try."""
    first_delay: float = 0.5
    """Seconds before the first new try, at most: the delay is drawn between nothing and this."""
    longest_delay: float = 30.0
    """Seconds that the growing delay is at most. A connection that lasted longer begins with the first one again."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of the opening handshake."""
    subprotocols: tuple[str, ...] = ()
    """Subprotocols offered, the one liked best first."""
    max_size: int = 1 << 20
    """Bytes of the largest message; a larger one ends the connection with 1009."""
    compression: bool = False
    """Whether permessage-deflate is offered."""
    open_timeout: float = 10.0
    """Seconds for the opening handshake."""
    close_timeout: float = 2.0
    """Seconds that a server has to answer when a connection is closed."""
    ping_interval: float = 20.0
    """Seconds between two pings."""
    ping_timeout: float = 20.0
    """Seconds for the answer to a ping; without one the connection is taken for dead."""
    proxy: str | None = None
    """URL of an HTTP or SOCKS proxy. The environment is not asked for one."""
    ca_file: str | None = None
    """Certificates trusted for ``wss:``, as PEM, instead of the system's."""

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            ConfigError: a number is out of range.
        """
        for name in ("buffer", "max_size", "longest_delay", "open_timeout", "close_timeout", "ping_interval", "ping_timeout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not 0 <= self.first_delay <= self.longest_delay:
            raise ConfigError(f"first_delay must be 0 to longest_delay ({self.longest_delay:g}), not {self.first_delay:g}")


@functools.cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Make what checks servers' certificates; raises ``ConfigError`` if the file cannot be used."""
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file = {ca_file!r} cannot be used: {error}") from error
