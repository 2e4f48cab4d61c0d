"""What the home of a bus knows of topics: who subscribed to what. No message goes through it."""

from __future__ import annotations

import logging
import os
import pickle
import select
import struct
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from ipcbus.bus import pattern as patterns
from ipcbus.bus.bulletin import Bulletin
from ipcbus.bus.deaths import Deaths
from ipcbus.directory import aside, client
from ipcbus.directory.shelf import copies
from ipcbus.directory.wire import MAX_FDS
from ipcbus.errors import ChannelBroken, ConfigError
from ipcbus.options import nearest
from ipcbus.plumbing.fds import unpacking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.config import Config
    from ipcbus.directory.client import Found
    from ipcbus.directory.server import Directory, Guest

__all__ = ["KEY", "Answer", "Newcomer", "TopicsHome", "ask", "enter", "leave", "settings", "withdraw"]

logger = logging.getLogger("ipcbus.topic")

KEY = 16
"""Bytes of a subscription's key, which is the id of its channel."""
DEFAULT = "*"
"""The key in ``[topics]`` for everything that none of its other keys covers."""
_MOST_MATCHING = 4096
"""Topics of which the home remembers who subscribed to them."""
_question = struct.Struct("<8sQ")


class Newcomer(NamedTuple):
    """A subscription as publishers get it."""

    key: bytes
    content: bytes
    """Pickled: the state of its channel, and the descriptor in which drops are counted."""
    fds: int
    """How many of the descriptors beside the answer are its."""
    pid: int


class Answer(NamedTuple):
    """What a publisher is told of its topic."""

    home: bytes
    """Which home says this."""
    number: int
    """What the bulletin said, or less if there is more to ask for."""
    more: bool
    present: list[bytes]
    """The keys of all that match."""
    new: list[Newcomer]
    """Those that came since the number that the question named."""


class _Subscription:
    """One subscriber's channel, and its process, whose death ends it."""

    def __init__(self, number: int, wanted: str, content: bytes, fds: list[int], pid: int) -> None:
        self.number = number
        self.pattern = wanted
        self.content = content
        self.fds = fds
        self.pid = pid

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class TopicsHome:
    """The subscriptions of a bus, kept by its home.

    Args:
        config: the bus's.
        directory: the bus's.

    Raises:
        ConfigError: a key in ``[topics]`` is no name or pattern.
        ChannelBroken: the system refused.
    """

    def __init__(self, config: Config, directory: Directory) -> None:
        self._config = config
        self._directory = directory
        self._token = os.urandom(8)
        self._lock = threading.RLock()
        self._closed = False
        self._subscriptions: dict[bytes, _Subscription] = {}
        self._deaths = Deaths(directory, self._died)
        self._matching: dict[str, list[bytes]] = {}
        """By topic, until the next change: the keys of the subscriptions that match."""
        for key in config.topics:
            patterns.check_pattern(key)
        self._bulletin = Bulletin(directory.home, home=True)
        for name, handler in self._handlers().items():
            directory.handle(name, handler)
        # Only now: whoever sees the new number asks, and is answered.
        self._number = self._bulletin.count()
        directory.left.append(self._forked)
        _kept[str(directory.home)] = self

    def _handlers(self) -> dict[str, Any]:
        return {
            "topic": self._tell,
            "topic settings": lambda _, content: (pickle.dumps(self.settings(content.decode())), ()),
            "subscribe": self._subscribe,
            "unsubscribe": lambda _, content: self._leave(content),
        }

    # ------------------------------------------------------------------ questions

    def settings(self, wanted: str) -> tuple[str, dict[str, Any], str]:
        """Return URL and options of a subscriber's channel, and where they are said; raises ``ConfigError``."""
        said = self._config.topics
        key = wanted if wanted in said else patterns.best([known for known in said if known != DEFAULT], wanted)
        if key is None and DEFAULT in said:
            key = DEFAULT
        if key is None:
            if self._config.bus.strict:
                raise ConfigError(f"the configuration has no topic {wanted!r} and is strict; {nearest(wanted, said)}")
            return self._config.transport or "auto:", {}, f"topics.{wanted}"
        value = said[key]
        if not isinstance(value, str) and not hasattr(value, "items"):
            raise ConfigError(f"topics.{key} must be a URL or a table, not {value!r}")
        options = {"url": value} if isinstance(value, str) else dict(value)
        url = options.pop("url", None) or self._config.transport or "auto:"
        return url, options, f'topics."{key}"'

    def answer(self, content: bytes) -> tuple[bytes, Sequence[int]]:
        """Tell a publisher who subscribed to its topic."""
        (token, since), name = _question.unpack_from(content), content[_question.size :].decode()
        patterns.check_name(name)
        if token != self._token:
            since = 0
        with self._lock:
            present = self._match(name)
            fds: list[int] = []
            new: list[Newcomer] = []
            number, more = self._number, False
            for key in present:  # in the order in which they came
                one = self._subscriptions[key]
                if one.number <= since:
                    continue
                if len(fds) + len(one.fds) > MAX_FDS - 1:
                    more = True
                    break
                number = one.number
                fds += one.fds
                new.append(Newcomer(key, one.content, len(one.fds), one.pid))
            answer = Answer(self._token, number if more else self._number, more, present, new)
            return pickle.dumps(tuple(answer)), copies(fds)

    def _tell(self, guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        if _hung_up(guest):
            # It has given up waiting, this process was stopped, say; a new number has it ask again at once.
            with self._lock:
                self._changed()
        return self.answer(content)

    def _match(self, name: str) -> list[bytes]:
        found = self._matching.get(name)
        if found is None:
            if len(self._matching) >= _MOST_MATCHING:
                self._matching.clear()  # names may be made up for each message, and would be kept until somebody subscribes
            found = [key for key, one in self._subscriptions.items() if patterns.matches(one.pattern, name)]
            self._matching[name] = found
        return found

    # ------------------------------------------------------------------ changes

    def enter(self, key: bytes, wanted: str, content: bytes, fds: list[int], pid: int) -> None:
        """Note a subscription: from the return on, publishers know it. The descriptors are its own."""
        one = _Subscription(0, wanted, content, fds, pid)
        try:
            patterns.check_pattern(wanted)
            self._deaths.watch(pid)
        except BaseException:
            one.close()
            raise
        with self._lock:
            if self._closed:
                one.close()
                raise ChannelBroken("the home of the bus has closed it")
            one.number = self._number + 1
            self._subscriptions[key] = one
            self._changed()

    def leave(self, key: bytes) -> bool:
        """Forget a subscription; say whether it was known."""
        with self._lock:
            one = self._subscriptions.pop(key, None)
            if one is None:
                return False
            self._changed()
        one.close()
        return True

    def close(self) -> None:
        """Forget everything; publishers go on to the subscribers that they know. Idempotent. The directory is closed before."""
        with self._lock:
            if not self._closed:
                _kept.pop(str(self._directory.home), None)
                self._bulletin.end()
                self.abandon()

    def abandon(self) -> None:
        """Free what this process has of it."""
        self._closed = True
        subscriptions, self._subscriptions = self._subscriptions, {}
        for one in subscriptions.values():
            one.close()
        self._bulletin.close()

    def _forked(self) -> None:
        """Let go of what a forked child inherited."""
        self._lock = threading.RLock()
        _kept.pop(str(self._directory.home), None)
        self.abandon()

    def _changed(self) -> None:
        self._matching.clear()
        self._number = self._bulletin.count()

    def _died(self, pid: int) -> None:
        """Forget the subscriptions of a process that has ended, and remove what has a name of its channels."""
        with self._lock:
            keys = [key for key, one in self._subscriptions.items() if one.pid == pid]
            left = [self._subscriptions.pop(key) for key in keys]
            if left:
                self._changed()
        for one in left:
            fds, one.fds = one.fds, []
            try:
                with unpacking(fds):
                    (handle, *_), drops = pickle.loads(one.content)
                drops.close()
                handle.release()
                handle.destroy()
            except Exception:  # of a transport that is not installed here, say; the others of that process go, too
                logger.exception("what a subscriber of %s left cannot be removed", one.pattern)

    def _subscribe(self, guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
        key, wanted = content[:KEY], content[KEY:].decode()
        if _hung_up(guest):
            raise ChannelBroken("who wants to subscribe has given up waiting")
        left = self._directory.look(key)
        self._directory.forget(key)
        if left is None:
            raise ChannelBroken("the home of the bus has changed while this process subscribed; subscribe again")
        self.enter(key, wanted, *left, guest.pid)
        return b"", ()

    def _leave(self, key: bytes) -> tuple[bytes, Sequence[int]]:
        return (b"known" if self.leave(key) else b""), ()


def _hung_up(guest: Guest) -> bool:
    poller = select.poll()
    poller.register(guest.sock, 0)  # the end of a connection shows unasked
    return bool(poller.poll(0))


_kept: dict[str, TopicsHome] = {}
"""What this process keeps itself, by the bus's address."""


def ask(address: str, name: str, since: int, home: bytes) -> tuple[Answer, list[int]]:
    """Ask the home at an address who subscribed to a topic.

    Args:
        address: of the bus.
        name: of the topic.
        since: the number of the last answer.
        home: who gave it; of another home all is news.

    Returns:
        The answer, and descriptors that are the caller's.

    Raises:
        ChannelBroken: nobody answers there.
        ConfigError: the name cannot be one.
    """
    content = _question.pack(home, since) + name.encode()
    if (here := _kept.get(address)) is not None:
        said, fds = here.answer(content)
    else:
        found = client.call(address, "topic", content)
        said, fds = found.content, found.fds
    home, number, more, present, new = pickle.loads(said)
    return Answer(home, number, more, present, [Newcomer(*one) for one in new]), list(fds)


def settings(address: str, wanted: str) -> tuple[str, dict[str, Any], str]:
    """Ask the home at an address how subscribers' channels are made; raises ``ConfigError`` and ``ChannelBroken``."""
    if (here := _kept.get(address)) is not None:
        return here.settings(wanted)
    found: Found = client.call(address, "topic settings", wanted.encode())
    url, options, where = pickle.loads(found.content)
    return url, options, where


def enter(address: str, key: bytes, wanted: str, content: bytes, fds: Sequence[int]) -> None:
    """Subscribe at an address.

    Args:
        address: of the bus.
        key: of the subscription.
        wanted: the pattern.
        content: what publishers get.
        fds: beside it; duplicated, and still the caller's.

    Raises:
        ChannelBroken: nobody answers there, or the system refused.
        ConfigError: the pattern cannot be one.
    """
    if (here := _kept.get(address)) is not None:
        here.enter(key, wanted, content, copies(fds), os.getpid())
    else:
        client.put(address, key, content, fds)
        client.call(address, "subscribe", key + wanted.encode())


def leave(address: str, key: bytes) -> bool:
    """End a subscription at an address and say whether it was known there; raises ``ChannelBroken`` if nobody answers."""
    if (here := _kept.get(address)) is not None:
        return here.leave(key)
    return bool(client.call(address, "unsubscribe", key).content)


def withdraw(address: str, key: bytes) -> None:
    """End a subscription that may or may not have been entered at an address. Waits for nothing, and never fails."""
    if (here := _kept.get(address)) is not None:
        here.leave(key)
    else:
        aside.leave_finally(address, "unsubscribe", key)
