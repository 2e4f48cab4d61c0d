"""Topics: everyone who has subscribed gets a copy of what is published."""

from __future__ import annotations

import os
import pickle
import threading
import warnings
from typing import TYPE_CHECKING, Any, final

from ipcbus.bus import pattern as patterns
from ipcbus.bus.opening import open_between_processes
from ipcbus.directory import aside
from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelEmpty, ChannelError, ConfigError, Unsupported
from ipcbus.options import parse_url
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import TravellingFd, loading, packing
from ipcbus.plumbing.finalizers import finalizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Literal, Self

    from ipcbus.aio import AsyncChannel
    from ipcbus.bus.route import Route
    from ipcbus.channel import Channel
    from ipcbus.endpoint import Watcher
    from ipcbus.message import Message


__all__ = ["Subscription", "Topic"]

_FAREWELL = 1.0
"""Seconds for receiving what nobody wants any more, so that publishers need not wait until they can close."""
_SILENCE = 0.02
"""Seconds without a message after which no more of them is waited for."""
_OVERFLOWS = ("drop_new", "drop_old")


@final
class Topic:
    """A topic of a bus, to publish to and to subscribe to; or a pattern of topics, to subscribe to. Get one by ``Bus.topic``.

    Every subscriber has a bounded channel of its own, in which messages wait for it alone. Picklable; threads may share one.
    """

    __slots__ = ("__weakref__", "_address", "_name", "_route")

    def __init__(self, address: str, name: str) -> None:
        patterns.check_pattern(name)
        self._address = address
        self._name = name
        self._route: Route | None = None

    @property
    def name(self) -> str:
        """Its name, or the pattern."""
        return self._name

    def publish(self, obj: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send a copy to every subscriber. It is encoded here, once; changing it afterwards changes nothing.

        Waits for no subscriber: one that has no room loses this message, or its oldest, as it wished when it subscribed,
        and the loss is counted for it. Whoever has returned from ``subscribe`` before this is called gets the message.

        Args:
            obj: anything that the topic's serializer can encode.
            headers: texts that travel beside it. ``"topic"`` is taken: it is the topic's name.

        Raises:
            ConfigError: this is a pattern, or the configuration is wrong.
            EncodeError: the object cannot travel. Nothing was sent, whether or not anybody listens.
            MessageTooLarge: it is over ``max_message``. Nothing was sent.
            ChannelBroken: the home of the bus has ended, and this process has not published to this topic before.
        """
        if headers is not None and patterns.HEADER in headers:
            raise ConfigError(f"the header {patterns.HEADER!r} is the topic's name; choose another")
        (self._route or self._find()).publish(obj, headers)

    def subscribers(self) -> int:
        """Return how many subscriptions what is published here goes to now.

        Raises:
            ConfigError: this is a pattern.
            ChannelBroken: the home of the bus has ended, and this process has not published to this topic before.
        """
        return (self._route or self._find()).subscribers()

    def subscribe(self, capacity: int | None = None, overflow: Literal["drop_new", "drop_old"] | None = None) -> Subscription:
        """Get a copy of everything that is published from now on: what is published after this has returned is not missed.

        Args:
            capacity: messages that may wait, per publishing process where ``capabilities.capacity_scope`` says so; None is
                what the configuration says, else 1024.
            overflow: what is lost when there is no room: ``drop_new``, the message that comes, or ``drop_old``, the oldest
                that waits. None is what the configuration says, else ``drop_new``.

        Raises:
            ConfigError: an argument or the configuration makes no sense.
            Unsupported: the topic's transport cannot drop old messages, or is not for processes.
            ChannelBroken: the home of the bus has ended, or the system refused.
        """
        with loading("what a subscription takes"):
            from ipcbus.bus import topics_home

        url, options, where = topics_home.settings(self._address, self._name)
        options |= {key: value for key, value in (("capacity", capacity), ("overflow", overflow)) if value is not None}
        channel = _open(url, options, where)
        try:
            return Subscription(self._address, self._name, channel)
        except BaseException:
            channel.destroy()
            raise

    def _find(self) -> Route:
        with loading("what a topic takes"):
            from ipcbus.bus import route

        patterns.check_name(self._name)
        self._route = found = route.find(self._address, self._name)
        return found

    def __repr__(self) -> str:
        return f"<ipcbus.Topic {self._name} of {self._address}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topic):
            return NotImplemented
        return (self._address, self._name) == (other._address, other._name)

    def __hash__(self) -> int:
        return hash((self._address, self._name))

    def __reduce__(self) -> tuple[Any, ...]:
        return Topic, (self._address, self._name)


@final
class Subscription:
    """What one subscriber receives by: like the receiving side of a channel. Get one by ``Topic.subscribe``.

    Belongs to the process that subscribed; close it, or use it as a context manager. ``ipcbus.wait`` takes it.
    """

    __slots__ = ("__weakref__", "_address", "_channel", "_closed", "_dropped", "_drops", "_lock", "_name", "_pid")

    def __init__(self, address: str, name: str, channel: Channel) -> None:
        from ipcbus.bus import topics_home

        self._closed = True
        self._address = address
        self._name = name
        self._pid = os.getpid()
        self._lock = threading.RLock()  # which a signal handler that closes this may have
        self._dropped = 0
        self._channel = channel.receiver
        end = channel._end  # noqa: SLF001  of this package
        # Receiving before anybody can send: where the transport has one receiver, it must be this process.
        end.open_receiver()
        try:
            self._drops = TravellingFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        except OSError as error:
            raise ChannelBroken(f"no descriptor for a subscription: {error.strerror}; see 'ulimit -n'") from error
        try:
            with packing() as fds:
                content = pickle.dumps((end.state(), self._drops))
            topics_home.enter(address, end.key, name, content, fds)
        except BaseException:
            topics_home.withdraw(address, end.key)
            self._drops.close()
            raise
        self._closed = False

    @property
    def name(self) -> str:
        """The topic or pattern that was subscribed to."""
        return self._name

    def recv(self, timeout: float | None = None) -> Any:
        """Receive the next object; as ``Channel.recv``."""
        return self._channel.recv(timeout)

    def recv_message(self, timeout: float | None = None) -> Message:
        """Receive the next message with its envelope; ``message.headers["topic"]`` is the topic it was published to."""
        return self._channel.recv_message(timeout)

    def recv_many(self, limit: int, timeout: float | None = None) -> list[Any]:
        """Wait for one object and return it with what else is there already, at most ``limit``; as ``Channel.recv_many``."""
        return self._channel.recv_many(limit, timeout)

    def __iter__(self) -> Iterator[Any]:
        """Receive until another thread closes the subscription."""
        while True:
            try:
                obj = self._channel.recv()
            except ChannelClosed:
                if self._closed:
                    return
                raise
            yield obj

    @property
    def aio(self) -> AsyncChannel:
        """The same for asyncio: ``await sub.aio.recv()``, ``async for x in sub.aio``."""
        return self._channel.aio

    @property
    def dropped(self) -> int:
        """How many messages this subscriber lost because they found no room, over all publishers, until now."""
        with self._lock:
            if not self._closed and self._pid == os.getpid():
                try:
                    lost = os.eventfd_read(self._drops.fileno())
                except OSError as error:
                    if not isinstance(error, BlockingIOError) and not self._closed:
                        raise
                    lost = 0  # none since the last time, or since a signal handler has closed this just now
                self._dropped += lost
            return self._dropped

    def fileno(self) -> int:
        """Return a descriptor that polls readable when ``recv(timeout=0)`` should be tried; as ``Channel.fileno``."""
        return self._channel.fileno()

    def ready(self) -> bool:
        """Tell whether ``recv(timeout=0)`` would not find it empty."""
        return self._channel.ready()

    def close(self) -> None:
        """Subscribe no longer; what waits is lost. Idempotent, and never waits for a publisher."""
        if self._pid != os.getpid():
            return  # a forked child's copy: the subscription is its parent's
        self.dropped  # noqa: B018  the last count
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        from ipcbus.bus import topics_home

        told = False
        try:
            told = topics_home.leave(self._address, self._channel._end.key)  # noqa: SLF001  of this package
        except ChannelBroken:
            # The home has ended, and with it the list to be taken off; or this is a signal handler that interrupts a question.
            topics_home.withdraw(self._address, self._channel._end.key)  # noqa: SLF001  of this package
        finally:
            self._discard(told=told)
            self._channel.destroy()
            self._drops.close()

    def _discard(self, *, told: bool) -> None:
        """Take off the publishers' hands what they have sent, and say that this ends if the home did not tell them."""
        end = self._channel._end  # noqa: SLF001  of this package
        deadline = Deadline(_FAREWELL)
        try:
            link = end.open_receiver()
            while left := deadline.remaining():
                link.recv(min(left, _SILENCE))
        except ChannelEmpty:
            pass
        except ChannelError:
            return  # it has been closed by other means, or cannot be used
        if not told:
            try:
                end.shutdown(may_send=False, may_receive=True)
            except ChannelError:
                pass  # as above

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @finalizer
    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self._drops.close()
            aside.leave_finally(self._address, "unsubscribe", self._channel._end.key)  # noqa: SLF001  as above

    def __repr__(self) -> str:
        return f"<ipcbus.Subscription {self._name}{' (closed)' if self._closed else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise Unsupported("a subscription belongs to the process that made it: pass the Topic on, and subscribe there")

    def _watchers(self) -> set[Watcher]:
        """Return who is told when it is closed."""
        return self._channel._watchers()  # noqa: SLF001  of this package


def _open(url: str, options: dict[str, Any], where: str) -> Channel:
    """Make the channel of one subscriber."""
    if "{port}" in url:
        from ipcbus.plumbing.ports import free_port

        url = url.replace("{port}", str(free_port()))
    said = parse_url(url).options
    overflow = options.get("overflow") or said.get("overflow")
    if overflow is None:
        options["overflow"] = "drop_new"
    elif overflow not in _OVERFLOWS:
        raise ConfigError(
            f"{where}: a subscriber's overflow is {' or '.join(_OVERFLOWS)}, not {overflow!r}: publishers wait for nobody"
        )
    if (options.get("receivers") or said.get("receivers") or "one") != "one":
        raise ConfigError(f"{where}: a subscription has one receiver; to share out work, use a channel with receivers='many'")
    return open_between_processes(url, options, where)
