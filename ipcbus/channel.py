"""Channel: what users hold. A handle, a codec and limits; opens itself in whichever process uses it."""

from __future__ import annotations

import importlib
import os
import pickle
from typing import TYPE_CHECKING, Any, final

from ipcbus import batch, endpoint, endpoints
from ipcbus.codec import COPIED
from ipcbus.errors import ChannelBroken, ChannelError, ConfigError, Unsupported
from ipcbus.options import URL, build
from ipcbus.plan import make_codec, resolve
from ipcbus.plumbing.fds import loading, unpacking
from ipcbus.transport import ChannelSpec, Handle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from ipcbus.aio import AsyncChannel
    from ipcbus.message import Message
    from ipcbus.requests.future import Future
    from ipcbus.requests.reply import ReplyTo
    from ipcbus.settings import ChannelOptions
    from ipcbus.transport import Capabilities, Guarantees, RecvLink, SendLink, Transport

__all__ = ["Channel", "asking", "open_channel", "rebuild"]


@final
class Channel:
    """A one-way, ordered, bounded stream of messages from any number of senders to one receiver or to several.

    A channel is a value: pass it to a process, copy it, keep two objects for it; all of them in one process share that
    process's ends, which open at the first use. Make one with :func:`ipcbus.open`.
    """

    __slots__ = ("__weakref__", "_aio", "_end", "_role", "_short")

    def __init__(self, end: endpoint.Endpoint, role: str = "both") -> None:
        if not isinstance(end, endpoint.Endpoint):
            raise TypeError(
                f"channels are made by another function: write ipcbus.open({end if isinstance(end, str) else 'pipe:'!r})"
            )
        self._end = end
        self._role = role
        self._short: Callable[[bytes], bool] | None = None
        self._aio: AsyncChannel | None = None

    # ------------------------------------------------------------------ sending

    def send(self, obj: Any, timeout: float | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Send an object. It is encoded here, in the caller; changing it afterwards changes nothing.

        Args:
            obj: anything the channel's serializer can encode.
            timeout: seconds to wait for room; None waits without limit, 0 never blocks.
            headers: texts that travel beside it, for ``recv_message``.

        Raises:
            EncodeError: it cannot travel. Nothing was sent; the message names every culprit and a remedy.
            MessageTooLarge: it is over ``max_message``. Nothing was sent.
            ChannelFull: no room within the timeout. Nothing was sent.
            ChannelClosed: closed here, or shut down.
            PeerDied: the receiver died and nobody makes room.
            ChannelBroken: the channel cannot be used any more.
        """
        kind = type(obj)
        if kind is bytes and headers is None and (short := self._short) is not None and short(obj):
            return
        end = self._end
        if self._role == "receiver":
            raise self._wrong_side()
        if kind is bytes:
            self._short = end.send_bytes  # one that is out of date, after a fork, does nothing and says so
        # As Codec.encode, without the call: this runs for every message.
        pack = end.packs.get(kind)
        frame = pack(obj) if pack is not None and headers is None else end.codec.encode(obj, headers)
        try:
            link = end.tx or end.open_sender()
            if end.patient:
                link.send(frame, timeout)
            elif not end.send_or_drop(frame, timeout):
                return
        except ChannelError:
            end.codec.unsent(frame)
            raise
        end.sent += 1

    def send_many(self, objects: Iterable[Any], timeout: float | None = None) -> int:
        """Send objects in order under one timeout and return how many were sent.

        Those that were dropped because the channel was full (overflow ``drop_new``) do not count. The one that found no room
        was taken from an iterator, too: to go on with the rest, give a list.

        Raises:
            ChannelFull: not even the first found room within the timeout. (If some did, their number is returned.)
            EncodeError: as for ``send``; what came before the culprit was sent.
        """
        if self._role == "receiver":
            raise self._wrong_side()
        return batch.send_many(self, self._end, objects, timeout)

    # ------------------------------------------------------------------ receiving

    def recv(self, timeout: float | None = None) -> Any:
        """Receive the next object.

        Args:
            timeout: seconds to wait; None waits without limit, 0 never blocks.

        Raises:
            ChannelEmpty: nothing came within the timeout.
            EndOfChannel: the channel was shut down and is drained.
            DecodeError: a message came that cannot be rebuilt here. It is consumed; receive again for the next.
            ContentRefused: a message came in a content type not accepted here. It is consumed.
            ChannelBusy: another process is the one receiver.
            ChannelClosed: closed here.
            ChannelBroken: the channel cannot be used any more.
        """
        end = self._end
        if self._role == "sender":
            raise self._wrong_side()
        got = (end.take or end.open_take())(timeout)
        if type(got) is bytes:
            return got
        end.received += 1
        try:
            # As Codec.decode, without the call: this runs for every message.
            first: Any
            try:
                (first,) = got
                loads = end.loaders.get(first[:4])
            except (ValueError, TypeError):  # of several pieces, or in memory that can be written to
                loads = None
            if loads is not None and len(first) < COPIED:
                try:
                    return loads(first[4:])
                except Exception as error:  # noqa: BLE001  rebuilding may raise anything, and what is made of it says so
                    raise end.codec.undecodable(first[3], first[4:], error)  # noqa: B904  as above
            return end.codec.decode(got)  # type: ignore[arg-type]  # no frame is bytes
        except Exception:
            end.undecodable += 1
            raise

    def recv_message(self, timeout: float | None = None) -> Message:
        """Receive the next message with its envelope; raises what ``recv`` raises."""
        end = self._end
        if self._role == "sender":
            raise self._wrong_side()
        frame = (end.listen or end.open_listen())(timeout)
        end.received += 1
        try:
            message = end.codec.decode_message(frame)
        except Exception:
            end.undecodable += 1
            raise
        if message.reply_to is not None and not end.asked:
            end.asked, end.listen = True, None
        return message

    def recv_many(self, limit: int, timeout: float | None = None) -> list[Any]:
        """Wait for one object and return it with what else is there already, at most ``limit``; raises what ``recv`` raises.

        A message that cannot be decoded and comes behind others ends the list, and so does what was lost or broke there;
        the next call that receives raises the error, whichever it is. What a call had received is lost with it when a signal
        handler raises amid it.
        """
        return batch.recv_many(self, self._end, limit, timeout)

    def __iter__(self) -> Iterator[Any]:
        """Receive until the end of the channel."""
        while True:
            try:
                obj = self.recv()
            except EOFError:
                return
            yield obj

    # ------------------------------------------------------------------ requests

    def request(self, obj: Any, timeout: float | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """Send a request and return the reply, which comes to this process alone, whoever else asks through this channel.

        Args:
            obj: what is asked.
            timeout: seconds for all of it, sending included; None waits without limit. It travels with the request.
            headers: texts that travel beside it.

        Raises:
            RemoteError: what answered raised an exception, or let go of the request without an answer.
            ChannelEmpty: no reply came within the timeout (a ``TimeoutError`` too). One that comes later is dropped.
            PeerDied: the process that had the request died.
            Unsupported: strangers can send through this channel.
            ChannelError: what ``send`` raises.
        """
        end = self._end
        if self._role == "receiver":
            raise self._wrong_side()
        return (_asking or asking()).request(end, obj, timeout, headers)

    def submit(self, obj: Any, timeout: float | None = None, headers: Mapping[str, str] | None = None) -> Future[Any]:
        """Send a request and return a future of the reply, which comes in even while nobody waits for it.

        The request waits until the reply comes or cannot come any more, or the future is cancelled; it is not enough to drop
        that. ``request`` gives its own up with its timeout.

        Args:
            obj: what is asked.
            timeout: seconds for sending it; it also tells who answers until when somebody waits.
            headers: texts that travel beside it.

        Raises:
            What ``send`` raises, and Unsupported: strangers can send through this channel.
        """
        future: Future[Any] = asking().submit(self._for_sending(), obj, timeout, headers)
        return future

    def serve(self, handler: Callable[[Message], Any]) -> None:
        """Receive until the end of the channel and answer each request with what a function returns for it.

        Args:
            handler: called with each message. What it returns is the reply, and what it raises is raised as
                ``RemoteError`` where the request came from. For a message that is no request it is called, too.

        Raises:
            Unsupported: the function is a coroutine function. Nothing was received.
        """
        with loading(_REQUESTS):
            from ipcbus.requests import serving

        serving.serve(self, handler)

    # ------------------------------------------------------------------ life

    def shutdown(self) -> None:
        """End the stream for everybody: sends raise ``ChannelClosed``, receivers drain and get ``EndOfChannel``. Idempotent."""
        self._end.shutdown(may_send=self._role != "receiver", may_receive=self._role != "sender")

    def close(self) -> None:
        """Release this process's ends of the channel. The channel lives on for other processes. Idempotent."""
        self._end.close(sender=self._role != "receiver", receiver=self._role != "sender")

    def destroy(self) -> None:
        """Close the channel and remove what it has in the file system, so that no process can open it any more.

        Only a process that makes channels without end needs this, and only the process that made the channel can do
        it: what has a name is removed at that process's exit anyhow, and most transports name nothing. Idempotent.
        """
        endpoints.destroy(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def sender(self) -> Channel:
        """The same channel, for sending only."""
        return self._limited("sender")

    @property
    def receiver(self) -> Channel:
        """The same channel, for receiving only."""
        return self._limited("receiver")

    @property
    def aio(self) -> AsyncChannel:
        """The same channel for asyncio: ``await ch.aio.send(x)``, ``await ch.aio.recv()``, ``async for x in ch.aio``."""
        if self._aio is None:
            with loading("what asyncio takes"):
                from ipcbus.aio import AsyncChannel

            self._aio = AsyncChannel(self, self._end, may_send=self._role != "receiver")
        return self._aio

    # ------------------------------------------------------------------ facts

    @property
    def url(self) -> str:
        """The URL the channel was opened by, with what ``auto:`` became."""
        return self._end.url

    @property
    def capabilities(self) -> Capabilities:
        """What the transport can do."""
        return self._end.transport.capabilities

    def guarantees(self) -> Guarantees:
        """Return what the transport promises, in the words of the documentation."""
        return self._end.transport.guarantees

    def stats(self) -> endpoint.Stats:
        """Return a snapshot of this process's counters and the depth of the channel."""
        end = self._end
        link = end.rx or end.tx
        sent, received = end.totals()
        return endpoint.Stats(
            sent=sent,
            received=received,
            dropped=end.dropped,
            undecodable=end.undecodable,
            late=0 if end.inbox is None else end.inbox.late,
            depth=link.depth() if link is not None else None,
            capacity=end.spec.capacity,
        )

    def fileno(self) -> int:
        """Return a descriptor that polls readable when ``recv(timeout=0)`` should be tried (a sender's: ``send``).

        Drain with ``recv(timeout=0)`` until ``ChannelEmpty`` before waiting on it again; :func:`ipcbus.wait` does.
        """
        return self._watched().fileno()

    def ready(self) -> bool:
        """Tell whether ``recv(timeout=0)`` (on a sender: ``send``) would not find the channel empty (full)."""
        return self._watched().ready() or (self._role != "sender" and bool(self._end.postponed))

    def __repr__(self) -> str:
        role = "" if self._role == "both" else f" {self._role}"
        return f"<ipcbus.Channel{role} {self.url} {self._end.spec.id[:8]}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Channel):
            return NotImplemented
        return self._end.spec.id == other._end.spec.id and self._role == other._role

    def __hash__(self) -> int:
        return hash((self._end.spec.id, self._role))

    def __copy__(self) -> Channel:
        # The copy module would rebuild what __reduce__ returns around the same handle, which is let go where it came twice.
        return Channel(self._end, self._role)

    def __deepcopy__(self, memo: object) -> Channel:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (*self._end.state(), self._role)

    def _reduce_shared(self) -> tuple[Any, ...]:
        """Reduce for a message: who receives it has the channel from a directory, even when this process is gone."""
        address = self._end.share()
        return self.__reduce__() if address is None else (_fetch, (address, self._end.spec.id, self._end.url, self._role))

    # ------------------------------------------------------------------ inside

    def _watched(self) -> SendLink | RecvLink:
        """Return the end whose readiness is this object's."""
        end = self._end
        return end.tx or end.open_sender() if self._role == "sender" else end.rx or end.open_receiver()

    def _watchers(self) -> set[endpoint.Watcher]:
        """Return who is told when this object's end is closed."""
        return self._end.watchers

    def _for_sending(self) -> endpoint.Endpoint:
        if self._role == "receiver":
            raise self._wrong_side()
        return self._end

    def _wrong_side(self) -> Unsupported:
        use = (
            "receive through the channel or its .receiver"
            if self._role == "sender"
            else "send through the channel or its .sender"
        )
        return Unsupported(f"{self!r} was handed out for the other side; {use}")

    def _limited(self, role: str) -> Channel:
        if self._role not in ("both", role):
            raise Unsupported(f"{self!r} cannot become a {role}: it was handed out for the other side only")
        return Channel(self._end, role)


def open_channel(url: str = "auto:", **options: Any) -> Channel:
    """Make a channel.

    Args:
        url: ``scheme:``, with an address where the transport has one, and options after ``?``. ``auto:`` is what
            ``IPCBUS_TRANSPORT`` or ``transport`` in ``ipcbus.toml`` says, else the best installed transport.
        **options: the fields of :class:`ChannelOptions` and of the transport's own options; they win over the URL's.

    Raises:
        ConfigError: the URL or an option is wrong; says which, and what is close.
        UnknownTransport: nobody provides the scheme.
        TransportUnavailable: what the transport needs is not installed; carries the pip command.
        Unsupported: the transport cannot do what an option asks.
        InsecureConfiguration: strangers could use it to run code here.
        ChannelBroken: the system refused what it takes, a descriptor, say.
    """
    plan = resolve(url, **options)
    spec = ChannelSpec(
        id=os.urandom(16).hex(),
        address=plan.url.address,
        capacity=plan.settings.capacity,
        receivers=plan.settings.receivers,
        max_message=plan.max_message,
        drops_old=plan.settings.overflow == "drop_old",
    )
    # Before the channel, so that a wrong serializer, an insecure wish or the want of a descriptor leaves nothing behind.
    endpoints.hook()
    codec = make_codec(plan.settings, private=plan.private, max_message=plan.max_message, where=str(plan.url))
    codec.answer_by(_reply_class)
    handle = plan.transport.create(spec, build(plan.transport.options, plan.own, str(plan.url)))
    if not isinstance(handle, Handle):
        raise ConfigError(f"transport {plan.transport.scheme!r}: its create() returned {handle!r}, not a Handle")
    where = str(URL(plan.transport.scheme, plan.url.address, {}))
    end = endpoint.Endpoint(handle, spec, plan.settings, codec, where, plan.transport)
    endpoints.adopt(end, home=True)
    return Channel(end)


def _arrive(
    handle: Handle,
    spec: ChannelSpec,
    settings: ChannelOptions,
    url: str,
    transport_path: str,
    private: bool,  # noqa: FBT001  a pickle's positional state
    meter: endpoint.Meter | None,
    role: str,
) -> Channel:
    """Rebuild a channel from a pickle."""
    endpoints.find(spec.id, role)
    return Channel(rebuild(handle, spec, settings, url, transport_path, private, meter), role)


def rebuild(
    handle: Handle,
    spec: ChannelSpec,
    settings: ChannelOptions,
    url: str,
    transport_path: str,
    private: bool,  # noqa: FBT001  as above
    meter: endpoint.Meter | None = None,
) -> endpoint.Endpoint:
    """Return this process's endpoint of a channel that came; the second object for a channel shares the first one's ends."""
    end = endpoints.find(spec.id)
    if end is not None:
        handle.release()
        return end
    try:
        module, _, name = transport_path.partition(":")
        transport: type[Transport] = getattr(importlib.import_module(module), name)
        codec = make_codec(settings, private=private, max_message=spec.max_message, where=url)
    except BaseException:
        handle.release()
        raise
    codec.answer_by(_reply_class)
    end = endpoint.Endpoint(handle, spec, settings, codec, url, transport)
    end.meter = meter
    return endpoints.adopt(end, home=False)


def _fetch(address: str, channel_id: str, url: str, role: str) -> Channel:
    """Rebuild a channel that came in a message."""
    from ipcbus.directory import client as directory

    end = endpoints.find(channel_id, role)
    if end is not None:
        return Channel(end, role)
    try:
        found = directory.get(address, bytes.fromhex(channel_id))
    except ChannelBroken as error:
        raise ChannelBroken(f"a channel ({url}) came in this message and cannot be had: {error}") from error
    with unpacking(found.fds):
        end = rebuild(*pickle.loads(found.content))
    end.shared.setdefault(address, directory.current(address))
    return Channel(end, role)


# What follows imports this, and is not needed before somebody asks.

_REQUESTS = "what requests take"
_asking: Any = None
"""``ipcbus.requests.asking``, once it is loaded: an import statement that finds all there still costs more than a call."""


def asking() -> Any:
    """Return the module ``ipcbus.requests.asking``; raises ``ChannelBroken`` where it cannot be loaded."""
    global _asking  # noqa: PLW0603  modules are loaded once for each process, and so is this
    if _asking is None:
        with loading(_REQUESTS):
            from ipcbus.requests import asking as loaded

        _asking = loaded
    return _asking


def _reply_class() -> type[ReplyTo]:
    with loading(_REQUESTS):
        from ipcbus.requests.reply import ReplyTo

    return ReplyTo
