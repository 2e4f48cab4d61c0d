"""The home of a bus: the names, and the directory that other processes reach them by."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ipcbus import config as configuration
from ipcbus import endpoints
from ipcbus.bus.board import Board
from ipcbus.bus.bulletin import BULLETIN
from ipcbus.bus.meter import Meter
from ipcbus.bus.opening import open_between_processes
from ipcbus.bus.topics_home import TopicsHome
from ipcbus.channel import Channel, rebuild
from ipcbus.directory import client
from ipcbus.directory.server import SOCKET, Directory
from ipcbus.errors import ChannelBroken, ChannelClosed, ConfigError
from ipcbus.options import nearest
from ipcbus.plumbing import forks, rundir
from ipcbus.plumbing.claim import Claim
from ipcbus.plumbing.fds import packing, refused, unpacking

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ipcbus.bus.facts import ChannelFacts
    from ipcbus.directory.server import Guest

    Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | configuration.Config | None
    """A configuration, or where it is."""

__all__ = ["Home"]

_TRIES = 100
"""How often an address is tried whose home is just leaving it."""
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
        self._keys: dict[str, bytes] = {}
        """What the channel of each name is kept under in the directory, for as long as this is the home."""
        self._closed = False
        self._lock = threading.RLock()
        address = address or self._config.bus.address
        self._directory = Path(address).absolute() if address else rundir.create()
        self._claim = _claim(self._directory) if address else None
        try:
            self.directory = Directory(self._directory)
        except BaseException:
            self._give_up()
            raise
        try:
            self._topics = TopicsHome(self._config, self.directory)
        except BaseException:
            self.directory.close()
            self._give_up()
            raise
        self.board = Board(self.directory)
        self.directory.left += [self._let_go, self.board.abandon]
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
        _hook()
        _homes.add(self)

    @property
    def address(self) -> str:
        """The directory, as text."""
        return str(self._directory)

    @property
    def here(self) -> bool:
        """Whether this process is the home, and not a forked child of it."""
        return self._pid == os.getpid()

    def channel(self, name: str) -> Channel:
        """Return the channel of a name, made now if there is none; raises what ``Bus.channel`` raises.

        A name has one channel for as long as this is the home: also when this process has closed its ends meanwhile,
        because others may use it, or find the messages that wait in it.
        """
        with self._lock:
            key = self._key(name)
            channel = self._channels.get(name)
            if channel is None or endpoints.find(key.hex()) is None:
                channel = self._channels[name] = self._reopen(key)
            channel._end.reopen()  # noqa: SLF001  this package's
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
            if self._closed:
                return
            self._closed = True
        _homes.discard(self)
        client.unkeep(self.directory)
        client.detach(self.address)
        self._restore_variable()
        self.directory.close()
        self._topics.close()
        for channel in self._channels.values():
            channel.destroy()
        self.board.close()
        self._give_up()

    def _restore_variable(self) -> None:
        """Let ``IPCBUS_ADDRESS`` say what it said before, also where homes are not closed in turn."""
        for other in _homes:
            if other._variable_before == self.address:  # noqa: SLF001  its own class
                other._variable_before = self._variable_before  # noqa: SLF001  the same
        if os.environ.get(client.ADDRESS) == self.address:
            if self._variable_before is None:
                del os.environ[client.ADDRESS]
            else:
                os.environ[client.ADDRESS] = self._variable_before

    def _let_go(self) -> None:
        """Free a forked child's copy of the claim, or the address would stay claimed while the child lives."""
        if self._claim is not None:
            self._claim.close()

    def _give_up(self) -> None:
        if self._claim is None:
            rundir.remove(self._directory)
            return
        # The directory is somebody's, who may have other things in it.
        for name in (SOCKET, BULLETIN, _CLAIM):
            (self._directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._directory.rmdir()
        self._claim.close()

    def _key(self, name: str) -> bytes:
        """Return what the channel of a name is kept under, made now if there is none. The lock is held."""
        if self._closed:
            raise ChannelClosed(f"the bus at {self.address} is closed")
        key = self._keys.get(name)
        if key is None:
            channel = self._open(name)
            end = channel._end  # noqa: SLF001  this package's
            end.meter = Meter(self.address, end.key, self.board)
            try:
                with packing() as fds:
                    state = pickle.dumps(end.state())
                self.board.enter(end.key)
                self.directory.put(end.key, state, fds, held=True, pinned=True)
            except BaseException:
                channel.destroy()
                raise
            end.shared[self.address] = 0
            self._channels[name] = channel
            key = self._keys[name] = end.key
        return key

    def _reopen(self, key: bytes) -> Channel:
        """Open a channel again whose ends this process has closed."""
        content, fds = self._found(key)
        with unpacking(fds):
            end = rebuild(*pickle.loads(content))
        end.meter = Meter(self.address, key, self.board)
        end.shared[self.address] = 0
        self.directory.hold(key)
        return Channel(end)

    def _found(self, key: bytes) -> tuple[bytes, list[int]]:
        found = self.directory.look(key)
        if found is None:
            raise ChannelBroken("this channel was taken from the directory of the bus by somebody who should not")
        return found

    def _open(self, name: str) -> Channel:
        said = self._config.channels
        key = name if name in said else DEFAULT
        where = f"channels.{name}"
        if key not in said and self._config.bus.strict:
            raise ConfigError(f"the configuration has no channel {name!r} and is strict; {nearest(name, said)}")
        wanted = said.get(key, {})
        if not isinstance(wanted, (str, Mapping)):
            raise ConfigError(f"channels.{key}: must be a URL or a table of url and options, not {wanted!r}")
        options = {"url": wanted} if isinstance(wanted, str) else dict(wanted)
        url = options.pop("url", None) or self._config.transport or "auto:"
        return open_between_processes(url, options, where)

    def _answer_channel(self, guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        with self._lock:
            key = self._key(content.decode())
        state, fds = self._found(key)
        self.directory.use(guest, key)
        return key + state, fds

    def _answer_channels(self, _guest: Guest, _content: bytes) -> tuple[bytes, Sequence[int]]:
        return pickle.dumps(self.channels()), ()

    def _answer_meter(self, guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        self.directory.use(guest, content)  # it may have the channel by inheritance
        number, fd = self.board.attach(guest, content)
        return number.to_bytes(8, "little"), [fd]

    def _answer_tap(self, guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        number, fd = self.board.tap(guest.pid, content[:16], content[16:])
        return bytes([number]), [fd]

    def _answer_taps(self, _guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        return b"".join(bytes([number]) + key for number, key in self.board.taps(content)), ()

    def _answer_untap(self, _guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        self.board.untap(content)
        return b"", ()


_homes: weakref.WeakSet[Home] = weakref.WeakSet()
_hooked = False


def _hook() -> None:
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        forks.at_exit(_close_all, -80)
        _hooked = True


def _close_all() -> None:
    for home in list(_homes):
        home.close()


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
    for _ in range(_TRIES):
        claim = _claim_once(directory)
        if claim is not None:
            (directory / SOCKET).unlink(missing_ok=True)
            return claim
    raise ChannelBroken(f"other processes keep opening and closing a bus at {directory}; give it an address of its own")


def _claim_once(directory: Path) -> Claim | None:
    """Try to, and return None if the home before was just leaving."""
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        rundir.check(directory)
        rundir.socket_path(directory, SOCKET)
        fd = os.open(directory / _CLAIM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        if not directory.parent.is_dir():
            raise ChannelBroken(f"{directory} cannot be made for a bus: there is no {directory.parent}") from None
        return None
    except ChannelBroken as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None  # it was removed behind mkdir; by now there may be another
        raise
    except OSError as error:
        raise refused(f"the directory {directory} cannot be used for a bus", error) from error
    try:
        claim = Claim(fd)
        owner = claim.take()
        # A claim on a file that was removed is none: the next process would make another file.
        left = os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)
    if owner is None and not left:
        return claim
    claim.close()
    if left:
        return None
    raise ConfigError(
        f"process {owner} is the home of the bus at {directory}; connect to it with Bus.connect({str(directory)!r})"
    )
