"""The home of a bus: the names, and the directory that other processes reach them by."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ipcbus import config as configuration
from ipcbus import endpoint
from ipcbus.bus.board import Board
from ipcbus.bus.meter import Meter
from ipcbus.channel import open_channel
from ipcbus.directory import client
from ipcbus.directory.server import SOCKET, Directory
from ipcbus.errors import ChannelBroken, ConfigError, Unsupported
from ipcbus.options import nearest
from ipcbus.plumbing import forks, rundir
from ipcbus.plumbing.claim import Claim
from ipcbus.plumbing.fds import packing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ipcbus.bus.facts import ChannelFacts
    from ipcbus.channel import Channel
    from ipcbus.directory.server import Guest
    from ipcbus.endpoint import Endpoint

    Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | configuration.Config | None
    """A configuration, or where it is."""

__all__ = ["Home"]

_CLAIM = "claim"
"""The file in the directory of a bus that its home has claimed."""
DEFAULT = "*"
"""The key in ``[channels]`` for every name that has none of its own."""


class Home:
    """What the home process of a bus keeps.

    Args:
        config: see :class:`ipcbus.Bus`.
        address: the same.
    """

    def __init__(
        self, config: str | os.PathLike[str] | Mapping[str, Any] | configuration.Config | None, address: str | None
    ) -> None:
        self._config = _load(config)
        self._pid = os.getpid()
        self._channels: dict[str, Channel] = {}
        self._lock = threading.RLock()
        address = address or self._config.bus.address
        self._directory = Path(address).absolute() if address else rundir.create()
        self._claim = _claim(self._directory) if address else None
        try:
            self.directory = Directory(self._directory)
        except BaseException:
            self._give_up()
            raise
        self.board = Board(self.directory)
        for name, answer in (
            ("channel", self._answer_channel),
            ("channels", self._answer_channels),
            ("meter", self._answer_meter),
            ("tap", self._answer_tap),
            ("taps", self._answer_taps),
            ("untap", self._answer_untap),
        ):
            self.directory.handle(name, answer)
        self.directory.forgotten = _destroy
        client.keep(self.directory)
        client.attach(self.address)
        self._variable_before = os.environ.get(client.ADDRESS)
        os.environ[client.ADDRESS] = self.address
        forks.at_exit(self.close, -80)

    @property
    def address(self) -> str:
        """The directory, as text."""
        return str(self._directory)

    @property
    def here(self) -> bool:
        """Whether this process is the home, and not a forked child of it."""
        return self._pid == os.getpid()

    def channel(self, name: str) -> Channel:
        """Return the channel of a name, made now if there is none; raises what ``Bus.channel`` raises."""
        with self._lock:
            channel = self._channels.get(name)
            if channel is None or endpoint.find(channel._end.spec.id) is None:  # noqa: SLF001  this package's
                if channel is not None:
                    self.board.leave(channel._end.key)  # noqa: SLF001  as above
                channel = self._channels[name] = self._open(name)
                end = channel._end  # noqa: SLF001  this package's
                self.board.enter(end.key)
                end.meter = Meter(self.address, end.key, self.board)
            return channel

    def channels(self) -> list[ChannelFacts]:
        """Return what is known of the channels that were opened by name, by name."""
        with self._lock:
            return [self.board.facts(name, channel) for name, channel in sorted(self._channels.items())]

    def close(self) -> None:
        """Close the directory and the channels that were opened by name. Idempotent."""
        if not self.here:
            return
        with self._lock:
            channels, self._channels = self._channels, {}
        client.unkeep(self.directory)
        if client.attached() == self.address:
            client.attach(None)
        if os.environ.get(client.ADDRESS) == self.address:
            if self._variable_before is None:
                del os.environ[client.ADDRESS]
            else:
                os.environ[client.ADDRESS] = self._variable_before
        self.directory.close()
        for channel in channels.values():
            channel.destroy()
        self.board.close()
        self._give_up()

    def _give_up(self) -> None:
        rundir.remove(self._directory)
        if self._claim is not None:
            self._claim.close()

    def _open(self, name: str) -> Channel:
        said = self._config.channels
        wanted = said.get(name, said.get(DEFAULT))
        where = f"channels.{name}"
        if wanted is None:
            if self._config.bus.strict:
                raise ConfigError(f"the configuration has no channel {name!r} and is strict; {nearest(name, said)}")
            wanted = {}
        options = {"url": wanted} if isinstance(wanted, str) else dict(wanted)
        url = options.pop("url", None) or self._config.transport or "auto:"
        try:
            channel = open_channel(url, **options)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if not channel.capabilities.crosses_processes:
            channel.close()
            raise Unsupported(f"{where}: {channel.url} works between threads only, and a bus is for processes: pipe:")
        return channel

    def _answer_channel(self, guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        end = self.channel(content.decode())._end  # noqa: SLF001  this package's
        with packing() as fds:
            state = pickle.dumps(end.state())
        self._lend(guest, end, state, fds)
        return end.key + state, [os.dup(fd) for fd in fds]

    def _lend(self, guest: Guest, end: Endpoint, state: bytes, fds: Sequence[int]) -> None:
        # Entered like a channel that was shared: what the guest sends on is fetched by others from here, too.
        self.directory.put(end.key, state, fds, held=True)
        end.shared[self.address] = 0
        self.directory.use(guest, end.key)

    def _answer_channels(self, _guest: Guest, _content: bytes) -> tuple[bytes, Sequence[int]]:
        return pickle.dumps(self.channels()), ()

    def _answer_meter(self, guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        end = endpoint.find(content.hex())
        if end is not None and self.address not in end.shared:  # the guest has it by inheritance
            with packing() as fds:
                state = pickle.dumps(end.state())
            self._lend(guest, end, state, fds)
        self.directory.use(guest, content)
        number, fd = self.board.attach(guest, content)
        return number.to_bytes(8, "little"), [fd]

    def _answer_tap(self, guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        number, fd = self.board.tap(guest, content[:16], content[16:])
        return bytes([number]), [fd]

    def _answer_taps(self, _guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        return b"".join(bytes([number]) + key for number, key in self.board.taps(content)), ()

    def _answer_untap(self, _guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        self.board.untap(content)
        return b"", ()


def _load(config: Source) -> configuration.Config:
    if config is None:
        return configuration.Config()
    if isinstance(config, configuration.Config):
        return config
    if isinstance(config, (str, os.PathLike)):
        return configuration.load_file(configuration.Config, config)
    return configuration.load(configuration.Config, config)


def _destroy(content: bytes) -> None:
    """Remove what has a name of a channel that was sent on and that nobody can open any more."""
    if content:
        handle = pickle.loads(content)[0]
        handle.release()
        handle.destroy()


def _claim(directory: Path) -> Claim:
    """Become the home at an address, or raise; what a home that died left there is removed."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        rundir.check(directory)
        fd = os.open(directory / _CLAIM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if isinstance(error, ChannelBroken):
            raise
        raise ChannelBroken(f"the directory {directory} cannot be used for a bus: {error.strerror}") from error
    try:
        claim = Claim(fd)
    finally:
        os.close(fd)
    owner = claim.take()
    if owner is not None:
        claim.close()
        raise ConfigError(
            f"process {owner} is the home of the bus at {directory}; connect to it with Bus.connect({str(directory)!r})"
        )
    (directory / SOCKET).unlink(missing_ok=True)
    return claim
