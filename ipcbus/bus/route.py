"""Routes: where what this process publishes to one topic goes, which is a sending end for every subscriber."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import weakref
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ipcbus.bus import pattern as patterns
from ipcbus.bus import topics_home
from ipcbus.bus.bulletin import NEVER, Bulletin, stamp
from ipcbus.channel import rebuild
from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelError, ChannelFull, PeerDied
from ipcbus.frame import Headed
from ipcbus.plan import make_codec, resolve
from ipcbus.plumbing import forks
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import unpacking
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.settings import ChannelOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ipcbus.bus.topics_home import Answer, Newcomer
    from ipcbus.codec import Codec
    from ipcbus.endpoint import Endpoint
    from ipcbus.transport import Frame

    _Send: TypeAlias = Callable[[Frame, float | None], None]

__all__ = ["Route", "find", "partings"]

logger = logging.getLogger("ipcbus.topic")
# Errors are logged as text: who keeps records would otherwise keep everything that an error's traceback refers to.

_RETRY = 1.0
"""Seconds after which a home that did not answer is asked again, though nothing shows that it would."""
_SLOW = 0.5
"""Seconds after which a home that does not answer is taken to hang."""
_MOMENT = 0.1
"""Seconds that a publisher has for taking out a subscriber's oldest message, which may be on its way into the channel."""
_QUIET = 60.0
"""Seconds between two complaints about one subscriber."""
_PARTING = 5.0
"""Seconds without a message after which what waits for a subscriber that has gone is given up."""


class _Way(NamedTuple):
    """All that decides how a message is encoded: subscribers of one way get the same frame."""

    serializer: str
    accept: tuple[str, ...] | None
    checksum: bool
    key_file: str | None
    private: bool
    max_message: int

    @classmethod
    def of(cls, settings: ChannelOptions, *, private: bool, max_message: int) -> _Way:
        return cls(settings.serializer, settings.accept, settings.checksum, settings.key_file, private, max_message)


class _Target:
    """One subscriber as a publisher sees it."""

    __slots__ = ("drops", "end", "held_up_until", "home", "key", "pid", "quiet_until", "way")

    def __init__(self, one: Newcomer, fds: list[int], home: bytes) -> None:
        with unpacking(fds):
            state, drops = pickle.loads(one.content)
            self.drops = Wakeup(drops.detach())
            """Counts what this subscriber does not get, for all publishers."""
            self.end: Endpoint = rebuild(*state)
        self.key = one.key
        self.pid = one.pid
        self.home = home
        self.held_up_until = 0.0
        """Until when nobody waits for its oldest message, because the last one who did waited in vain."""
        self.quiet_until = 0.0
        """Until when nothing is logged about it."""
        end = self.end
        self.way = _Way.of(end.options, private=end.codec.private, max_message=end.spec.max_message)

    def is_gone(self) -> bool:
        """Tell whether its process has ended, as far as that is known without its parent."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it runs, as somebody else by now
        return False

    def open_and_send(self, frame: Frame, timeout: float | None) -> None:
        """Send by an end that could not be opened before: what was the trouble may be over."""
        self.end.open_sender().send(frame, timeout)

    def part(self) -> None:
        """Let go of a subscriber that has gone."""
        # Closing may wait for what the transport has accepted, and no publisher waits for a subscriber.
        thread = threading.Thread(target=_part, args=(self.end,), name="ipcbus-topic-parting", daemon=True)
        _parting.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            # Its end closes itself with its last user, and the home removes what else there is of it.
            _parting.discard(thread)
            logger.warning(
                "no thread for letting go of the subscriber in process %d: %s; see 'ulimit -u'", self.pid, str(error)
            )


class Route:
    """The subscribers of one topic, as far as this process knows, and the way to them.

    Args:
        address: of the bus.
        name: of the topic.
    """

    def __init__(self, address: str, name: str) -> None:
        self._address = address
        self._name = name
        self._headers = {patterns.HEADER: name}
        self._headed = Headed(self._headers)
        self._lock = threading.RLock()
        self._bulletin: Bulletin | None = None
        self._board = memoryview(bytes(8)).cast("Q")
        """What the bulletin says, in its first item."""
        self._seen = NEVER
        self._since = 0
        self._home = bytes(8)
        self._ask_at = 0.0
        """When the home is asked again that did not answer."""
        self._asked = self._signs()
        """What there was to be seen of it when it was asked last."""
        self._forked = False
        self._targets: dict[bytes, _Target] = {}
        self._unreached = False
        """Whether one of the newcomers of the last answer could not be reached."""
        self._codecs: dict[_Way, Codec] = {}
        self._own: _Way | None = None
        self._fan: tuple[tuple[Codec, tuple[tuple[_Send, _Target], ...]], ...] = ()
        """For every way of encoding: how its frames are sent, and to whom."""

    def publish(self, obj: Any, headers: Mapping[str, str] | None) -> None:
        """Encode once and hand a copy to every subscriber; raises what ``Topic.publish`` raises."""
        if self._board[0] != self._seen:
            self.refresh()
        # All that can fail for what is sent comes before anything is sent.
        if headers is None:
            frames = [(codec.encode_headed(obj, self._headed), sends) for codec, sends in self._fan]
        else:
            said = {**headers, **self._headers}
            frames = [(codec.encode(obj, said), sends) for codec, sends in self._fan]
        for frame, sends in frames:
            for send, target in sends:
                try:
                    send(frame, 0)
                except ChannelError as error:
                    self._refused(target, frame, error)

    def subscribers(self) -> int:
        """Return how many subscribers are known, after having asked; raises ``ChannelBroken``."""
        if self._board[0] != self._seen:
            self.refresh()
        return len(self._targets)

    # ------------------------------------------------------------------ subscribers

    def refresh(self) -> None:
        """Learn of the subscribers that came and went.

        Raises:
            ChannelBroken: the home does not answer, and never did.
        """
        with self._lock:
            if self._forked:
                self._forked = False
                self._arrange()
            known = self._bulletin is not None
            if self._board[0] == self._seen or (known and monotonic() < self._ask_at and self._signs() == self._asked):
                return
            self._asked = self._signs()  # before it is asked: what changes from here on is news
            started = monotonic()
            try:
                self._ask()
            except ChannelBroken as error:
                if not known:
                    raise
                # Whoever is known gets what is published, and a home that takes over is found.
                level = logging.DEBUG if self._ask_at else logging.WARNING
                logger.log(level, "no news of who subscribes to %s: %s", self._name, str(error))
                took = monotonic() - started
                # A home that hangs takes long to find out about, and must not take most of a publisher's time.
                self._ask_at = monotonic() + (_RETRY if took < _SLOW else 10 * took)

    def _signs(self) -> tuple[int, tuple[int, int]]:
        """Return what differs once somebody may have subscribed: it is counted, or there is another home to subscribe at."""
        return self._board[0], stamp(Path(self._address))

    def _ask(self) -> None:
        bulletin = self._bulletin
        if bulletin is None or bulletin.ended:
            bulletin = Bulletin(Path(self._address))
            if self._bulletin is not None:
                # Whether or not its home answers now, it is here that news shows. The number may be the old one by chance.
                # The old bulletin is not closed here: another thread may be looking at it.
                self._seen = NEVER
                self._bulletin, self._board = bulletin, bulletin.number
        try:
            if self._own is None:
                self._own = self._resolve()
            self._unreached = False
            more = True
            while more:
                answer, fds = topics_home.ask(self._address, self._name, self._since, self._home)
                self._take(answer, fds)
                more = answer.more
        except BaseException:
            if bulletin is not self._bulletin:
                bulletin.close()
            raise
        self._arrange()
        self._bulletin, self._board = bulletin, bulletin.number
        if self._unreached:
            # What it was may be over soon: all are asked for anew, and whoever is known already stays as it is.
            self._home, self._seen, self._ask_at = bytes(8), NEVER, monotonic() + _RETRY
            return
        self._ask_at = 0.0
        self._seen = self._since  # last of all: from here on other threads do not come here

    def _resolve(self) -> _Way:
        """Find out how the topic's own messages are encoded, so that what cannot be fails even when nobody listens."""
        url, options, _ = topics_home.settings(self._address, self._name)
        options.pop("overflow", None)  # the subscribers' business
        plan = resolve(url, **options)
        return _Way.of(plan.settings, private=plan.private, max_message=plan.max_message)

    def _take(self, answer: Answer, fds: list[int]) -> None:
        present = set(answer.present)
        for one in answer.new:
            mine, fds = fds[: one.fds], fds[one.fds :]
            if one.key in self._targets:
                _close(mine)
                continue
            try:
                self._targets[one.key] = _Target(one, mine, answer.home)
            except ChannelError as error:
                self._unreached = True
                level = logging.DEBUG if self._ask_at else logging.WARNING
                logger.log(level, "the subscriber of %s in process %d cannot be reached: %s", self._name, one.pid, str(error))
        # What another home said stands: who subscribed there knows nothing of this one.
        for target in [known for known in self._targets.values() if known.home == answer.home and known.key not in present]:
            self._forget(target)
        self._home, self._since = answer.home, answer.number

    def _forget(self, target: _Target) -> None:
        if self._targets.pop(target.key, None) is not None:
            target.part()

    def _arrange(self) -> None:
        """Have the tuples that publishing goes through say what the table says; the lock is held."""
        groups: dict[_Way, list[tuple[_Send, _Target]]] = {}
        if self._own is not None:
            groups[self._own] = []
        for target in list(self._targets.values()):
            try:
                send = target.end.open_sender().send
            except ChannelClosed:
                self._forget(target)  # the subscriber has gone, and the home has not said so yet
                continue
            except ChannelError as error:
                self._complain(target, error)
                send = target.open_and_send
            groups.setdefault(target.way, []).append((send, target))
        for way in groups:
            if way not in self._codecs:
                self._codecs[way] = self._codec(way)
        self._fan = tuple((self._codecs[way], tuple(group)) for way, group in groups.items())

    def _codec(self, way: _Way) -> Codec:
        settings = ChannelOptions(serializer=way.serializer, accept=way.accept, checksum=way.checksum, key_file=way.key_file)
        return make_codec(settings, private=way.private, max_message=way.max_message, where=f"topic {self._name}")

    # ------------------------------------------------------------------ what goes wrong

    def _refused(self, target: _Target, frame: Frame, error: ChannelError) -> None:
        """Do what is to be done about a subscriber that did not take a message."""
        if isinstance(error, ChannelFull) and target.end.options.overflow == "drop_old":
            self._replace_oldest(target, frame)
        else:
            self._missed(target, error)

    def _missed(self, target: _Target, error: ChannelError) -> None:
        """Note that a subscriber does not get a message, and let go of it only if it has gone."""
        if isinstance(error, ChannelClosed) or (isinstance(error, ChannelBroken) and target.is_gone()):
            self._remove(target)
            return
        target.drops.set()
        # That its process has died may be known to nobody else yet: the home will say. Whatever else it is may be over with
        # the next message, a lack of descriptors in this process for one: it stays subscribed.
        if not isinstance(error, (ChannelFull, PeerDied)):
            self._complain(target, error)

    def _replace_oldest(self, target: _Target, frame: Frame) -> None:
        # What is oldest may be on its way, or the channel in the hands of another publisher: if that one is stopped, it is
        # not waited for with every message.
        moment = Deadline(0 if monotonic() < target.held_up_until else _MOMENT)
        try:
            link = target.end.open_sender()
            while True:
                if link.discard_oldest(moment.remaining()):
                    target.drops.set()
                try:
                    link.send(frame, 0)
                except ChannelFull:
                    if moment.expired:
                        raise
                    continue  # other publishers were faster
                return
        except ChannelError as error:
            if moment.expired and monotonic() >= target.held_up_until:
                target.held_up_until = monotonic() + _RETRY
            self._missed(target, error)

    def _complain(self, target: _Target, error: ChannelError) -> None:
        now = monotonic()
        if now >= target.quiet_until:
            target.quiet_until = now + _QUIET
            logger.warning("the subscriber of %s in process %d misses messages: %s", self._name, target.pid, str(error))

    def _remove(self, target: _Target) -> None:
        with self._lock:
            self._forget(target)
            self._arrange()

    # ------------------------------------------------------------------ life

    def after_fork(self) -> None:
        """Have a forked child open ends of its own before it publishes."""
        self._lock = threading.RLock()
        self._forked = True
        self._seen = NEVER
        for codec in self._codecs.values():
            codec.after_fork()


def _part(end: Endpoint) -> None:
    try:
        if not end.transport.capabilities.detects_dead_receiver:
            _drain(end)
        if end.rx is not None:
            end.close(sender=True, receiver=False)  # the subscriber is in this process, and closes the rest
            return
        end.close(sender=True, receiver=True)
        end.handle.destroy()  # the subscriber may have been killed, or have done so before this end was closed
    finally:
        _parting.discard(threading.current_thread())


def _drain(end: Endpoint) -> None:
    """Receive what nobody else will: such a transport keeps what it has accepted until somebody does."""
    try:
        end.shutdown(may_send=True, may_receive=False)
        link = end.handle.open_receiver()
    except ChannelError:
        return  # another publisher does it, or nothing can be done
    try:
        while True:
            link.recv(_PARTING)
    except ChannelError:
        pass  # its end, or nothing comes any more
    finally:
        link.close()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


_routes: weakref.WeakValueDictionary[tuple[str, str], Route] = weakref.WeakValueDictionary()
_parting: set[threading.Thread] = set()
_lock = threading.RLock()  # which a signal handler that publishes may have
_hooked = False


def find(address: str, name: str) -> Route:
    """Return this process's route for a topic of the bus at an address."""
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    with _lock:
        if not _hooked:
            _hooked = True
            forks.in_child(_after_fork)
        return _routes.setdefault((address, name), Route(address, name))


def partings() -> list[threading.Thread]:
    """Return the threads that are letting go of subscribers."""
    return list(_parting)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  the parent's lock may be held by a thread that the child does not have
    _lock = threading.RLock()
    _parting.clear()
    for route in list(_routes.values()):
        route.after_fork()
