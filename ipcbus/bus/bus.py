"""Bus: channels and topics by name, for every process of this user on this machine, at any time."""

from __future__ import annotations

import contextlib
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ipcbus import endpoints
from ipcbus.bus.topic import Topic
from ipcbus.channel import Channel, rebuild
from ipcbus.errors import ChannelClosed, ConfigError
from ipcbus.plumbing.fds import loading, unpacking

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from ipcbus.bus.facts import ChannelFacts
    from ipcbus.bus.home import Home
    from ipcbus.bus.tap import Tap
    from ipcbus.config import Config

__all__ = ["Bus"]

_MOST_TOPICS = 1000
"""Topics whose ends are kept open though nobody has an object for them."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")


@final
class Bus:
    """Channels and topics by name. Who makes one is its *home*; any other process of this user and machine can ``connect``.

    ::

        with ipcbus.Bus("ipcbus.toml") as bus:          # in one process
            orders = bus.channel("orders")

        bus = ipcbus.Bus.connect()                      # in any other, whenever it starts
        bus.channel("orders").send(order)
        bus.topic("prices.eu.dax").publish(18_700)

    The home only introduces processes to each other: no message goes through it. When it ends, channels that are open go
    on, and opening another raises ``ChannelBroken`` until a new home takes over its address. Picklable: what arrives in
    another process is connected.

    Args:
        config: the path of a TOML file, a mapping with the same keys, or None for no configuration. ``[channels]`` says how
            each name is carried: a URL, or a table of ``url`` and what :func:`ipcbus.open` takes. A name that it does not
            mention is opened as ``transport`` says, unless ``strict`` in ``[bus]`` forbids. ``[topics]`` says the same of the
            channels of those who subscribe, by name or pattern.
        address: a directory for the bus, made if it is not there; None is ``address`` in ``[bus]``, or a new one.

    Raises:
        ConfigError: the configuration is wrong, or another process is the home at the address.
        InsecureConfiguration: the directory is not private to this user.
        ChannelBroken: the system refused.
    """

    def __init__(
        self, config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None, *, address: str | None = None
    ) -> None:
        with loading("what the home of a bus takes"):
            from ipcbus.bus.home import Home

        home = Home(config, address)
        self._enter(home, home.address, attached=True)

    @classmethod
    def connect(cls, address: str | None = None) -> Self:
        """Return the bus whose home is another process (or this one).

        Args:
            address: its directory; None is the bus that this process has come to last and not left, else what
                ``IPCBUS_ADDRESS`` says, which a home sets for the processes it starts.

        Raises:
            ConfigError: there is no address.
            ChannelBroken: nobody answers there.
            InsecureConfiguration: the directory is not private to this user.
        """
        with loading("what a bus takes"):
            from ipcbus.directory import client

        said = address or client.attached()
        if said is None:
            raise ConfigError(
                f"no bus is known here: pass the bus or its address to this process, or set {client.ADDRESS} to it; what is "
                "set after multiprocessing's fork server has started does not reach the fork server's children"
            )
        found = str(Path(said).absolute())
        elsewhere = not client.keeps(found)
        if elsewhere:
            client.place(found).greet()
            client.attach(found)
        bus = cls.__new__(cls)
        bus._enter(None, found, attached=elsewhere)  # noqa: SLF001  its own class
        return bus

    def _enter(self, home: Home | None, address: str, *, attached: bool) -> None:
        self._home = home
        self._address = address
        self._attached = attached
        """Whether to have come to the bus is to be undone."""
        self._closed = False
        self._topics: dict[str, Topic] = {}
        """Kept, because ends to all its subscribers are closed with the last object for a topic."""

    @property
    def address(self) -> str:
        """The directory by which other processes find the home."""
        return self._address

    def channel(self, name: str) -> Channel:
        """Return the channel of a name, made as the configuration says if no process asked for it before.

        Both its sides can be used, also where this process has closed one or both of them before.

        Raises:
            ConfigError: the name cannot be one, or the configuration has no such channel and is strict.
            ChannelBroken: the home has ended, or the system refused.
            ChannelClosed: the bus is closed here.
        """
        check_name(name)
        self._check_open()
        if self._home is not None and self._home.here:
            return self._home.channel(name)
        from ipcbus.directory import client

        found = client.call(self._address, "channel", name.encode())
        channel_id, content = found.content[:16].hex(), found.content[16:]
        with unpacking(found.fds):
            end = endpoints.find(channel_id) or rebuild(*pickle.loads(content))
        end.shared.setdefault(self._address, client.current(self._address))
        end.reopen()
        return Channel(end)

    def topic(self, name: str) -> Topic:
        """Return a topic, to publish to, or a pattern of topics, to subscribe to.

        Args:
            name: words with dots between them; in a pattern ``*`` stands for any one word, and ``>`` at the end for the rest.

        Raises:
            ConfigError: it cannot be one.
            ChannelClosed: the bus is closed here.
        """
        self._check_open()
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics.setdefault(name, Topic(self._address, name))
            if len(self._topics) > _MOST_TOPICS:
                with contextlib.suppress(RuntimeError):  # another thread entered one just now, and makes room
                    self._topics.pop(next(iter(self._topics)), None)
        return topic

    def channels(self) -> list[ChannelFacts]:
        """Return what is known of every channel that some process has opened by name, in the order of their names.

        For rates look twice: ``after.since(before)``.

        Raises:
            ChannelBroken: the home has ended.
            ChannelClosed: the bus is closed here.
        """
        self._check_open()
        if self._home is not None and self._home.here:
            return self._home.channels()
        from ipcbus.directory import client

        found: list[ChannelFacts] = pickle.loads(client.call(self._address, "channels").content)
        return found

    def tap(self, name: str, capacity: int = 1024) -> Tap:
        """Have a copy of every message that is sent by a name from now on; nothing is taken from the channel.

        Copies come from every process that has the channel from the bus, or from one that has. No sender waits for them:
        what this process has no room for is missed, and counted.

        Args:
            name: the channel's; it is made if there is none.
            capacity: copies from each sending process that may wait here.

        Raises:
            Unsupported: the channel has as many taps as it can have.
            ConfigError, ChannelBroken, ChannelClosed: as for ``channel``.
        """
        with loading("what a tap takes"):
            from ipcbus.bus.tap import Tap

        board = self._home.board if self._home is not None and self._home.here else None
        return Tap(self._address, self.channel(name), capacity, board)

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosed("this bus is closed in this process")

    def close(self) -> None:
        """Leave the bus; in its home, close it for all: nobody can open a channel by name any more. Idempotent.

        A bus that this process has left as often as it came to it is no more what ``connect()`` means without an address.
        Channels that other processes have open go on. The home closes its ends of those that were opened by name.
        """
        self._closed = True
        self._topics.clear()
        attached, self._attached = self._attached, False
        if self._home is not None and self._home.here:
            self._home.close()
        elif attached:
            from ipcbus.directory import client

            client.detach(self._address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ipcbus.Bus {self._address}{' (home)' if self._home is not None and self._home.here else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Bus.connect, (self._address,)


def check_name(name: str) -> None:
    """Make sure that a name can be one; raises ``ConfigError``."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a channel: a name has 1 to 200 letters, digits, '_', '.', ':' and '-', and starts with none "
            "of the last three"
        )
