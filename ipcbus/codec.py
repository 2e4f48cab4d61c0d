"""The codec of one channel: picks the serializer, builds the frame, and decides what may be decoded."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
from time import time
from typing import TYPE_CHECKING, Any

from ipcbus import frame as wire
from ipcbus.errors import (
    ChannelBroken,
    ConfigError,
    ContentRefused,
    DecodeError,
    EncodeError,
    InsecureConfiguration,
    MessageTooLarge,
    SerializerUnavailable,
    UnknownSerializer,
)
from ipcbus.message import Message
from ipcbus.plumbing.handlers import raised_by_handler
from ipcbus.plumbing.unsent import undo
from ipcbus.serializers.base import Serializer, serializers
from ipcbus.serializers.raw import Raw

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ipcbus.requests.reply import ReplyTo
    from ipcbus.serializers.base import Pack
    from ipcbus.transport import Buffer, Frame

    _Choice = tuple[Pack | None, Serializer]
    """How a type is encoded: what makes its frames, unless each needs more than a start and what follows; and by whom."""

__all__ = ["AUTO", "COPIED", "Codec"]

AUTO = "auto"
"""The serializer that picks one by what is sent."""

_FALLBACKS = ("msgpack", "json")
"""What ``auto`` uses, in this order, where pickle is not safe."""
_PICKLES = ("pickle", "cloudpickle")
_MAX_TYPES = 4096
"""Types remembered; programs that make classes without end must not fill memory with them."""
COPIED = 1024
"""A payload of fewer bytes is copied out of its frame, which is cheaper than to look into it."""
_FOREIGN = 32
"""The first wire id that is not ours, which two serializers may have chosen without knowing of each other."""
_WINDOW = 1 << 16
"""Messages by which one of a sender with a key may be late without being taken for a replay: a thread that loses the
processor between counting and sending is overtaken by thousands."""
_WINDOW_BITS = (1 << _WINDOW) - 1


class Codec:
    """Objects to frames and frames to objects, for one channel in one process.

    Args:
        serializer: a registered name, or ``"auto"``: bytes travel raw, protobuf messages as protobuf, everything else
            by the channel's default, which is pickle where only this user can send and msgpack or json elsewhere.
        accept: names of the serializers that may decode; None accepts every installed one on a private channel, and
            every *safe* one elsewhere.
        private: whether only processes of this user on this machine can send.
        max_message: bytes.
        key: secret shared by both ends; frames then carry a MAC, and are refused without a right one.
        checksum: whether frames carry a CRC-32.

    Raises:
        UnknownSerializer: nobody provides a name.
        SerializerUnavailable: it needs something that is not installed.
        InsecureConfiguration: an unsafe serializer was asked for on a channel that strangers can reach, without a key.
    """

    def __init__(
        self,
        serializer: str,
        accept: Sequence[str] | None,
        *,
        private: bool,
        max_message: int,
        key: bytes | None = None,
        checksum: bool = False,
    ) -> None:
        self.max_message = max_message
        self._half = max_message // 2
        """Bytes of the longest start, and of the longest payload behind it, that need not be added up."""
        self.private = private
        self._trusted = private or key is not None
        self._key = key
        self._checksum = checksum
        self._plain = key is None and not checksum
        self._auto = serializer == AUTO
        self._made: dict[str, Serializer] = {}
        self._decoders: dict[int | str, Serializer] = {}
        self.loaders: dict[bytes, Callable[[Buffer], Any]] = {}
        """By the head of a frame without sections: how its payload is decoded, once this was allowed."""
        self.alone: dict[int, Callable[[Buffer], Any]] = {}
        """The same by the serializer's number, for frames with a route."""
        self.packs: dict[type, Pack] = {}
        """By type: how a frame without sections is made, once this was chosen."""
        self._by_type: dict[type, _Choice] = {}
        self._accept = None if accept is None else frozenset(accept)
        for name in self._accept or ():
            self._permit(self._make(name))
        self._default = self._make(self._pick_default() if self._auto else serializer)
        self._permit(self._default)
        if self._auto and self._accepts("raw"):
            self._remember(bytes, self._make("raw"))
        raw = self._default if self._default.name == "raw" else self._made.get("raw") if self._auto else None
        self.bytes_head = wire.head(raw.id) if raw is not None and self._plain else b""
        """The head of a frame of bytes, where they travel as they are and nothing is added; else nothing."""
        self._answer: Callable[[int, bytes], ReplyTo | None] = _nobody
        self._find_answer: Callable[[], Callable[[int, bytes], ReplyTo]] | None = None
        self.after_fork()

    def use(self, serializer: Serializer) -> None:
        """Have something decoded by another serializer than the installed one of its name, from the first message on."""
        self._made[serializer.name] = serializer

    def answer_by(self, find: Callable[[], Callable[[int, bytes], ReplyTo]] | None) -> None:
        """Have requests bring what answers them.

        Args:
            find: called with the first of them, or before; returns what makes that from a request's number and the address
                of who asked. With None, requests are messages like others.
        """
        # A stranger does not make this process connect to anything.
        self._find_answer = find if self._trusted else None
        self._answer = _nobody if self._find_answer is None else self._answer_first

    def prepare_answers(self) -> None:
        """Have there what answers requests; raises what finding it raises, which the first request would be lost by."""
        if (find := self._find_answer) is not None:  # another thread may do the same
            self._answer, self._find_answer = find(), None

    def _answer_first(self, number: int, address: bytes) -> ReplyTo | None:
        self.prepare_answers()
        return self._answer(number, address)

    @property
    def trusted(self) -> bool:
        """Whether what arrives can only come from this user, or from who has the key."""
        return self._trusted

    def after_fork(self) -> None:
        """Become another sender: two processes with one identity would each look like a replay of the other."""
        self._sender_id = int.from_bytes(os.urandom(8), "little")
        self._counter = itertools.count(1)
        self._seen: dict[int, tuple[int, int]] = {}
        self._seen_lock = threading.RLock()  # which a signal handler that receives may have

    @property
    def accepted_head(self) -> bytes:
        """The head of a frame that is decoded to the bytes behind it, and to nothing else; nothing where there is none."""
        if not self._plain or not self._accepts(Raw.name) or type(self._make(Raw.name)) is not Raw:
            return b""
        return wire.head(Raw.id)

    @property
    def default(self) -> str:
        """The name of the serializer that ordinary objects travel by."""
        return self._default.name

    def encode(self, obj: Any, headers: Mapping[str, str] | None = None) -> Frame:
        """Make a frame of an object.

        Raises:
            EncodeError: it or a header cannot travel; says which parts and what to do.
            MessageTooLarge: the frame would be larger than ``max_message``.
        """
        pack, serializer = self._by_type.get(type(obj)) or self._choose(type(obj))
        if headers is None and pack is not None:
            return pack(obj)
        return self._encode(obj, serializer, wire.Sections(headers=headers))

    def encode_headed(self, obj: Any, headed: wire.Headed) -> Frame:
        """Make the frame that ``encode`` makes with these headers, sooner; raises what that raises."""
        pack, serializer = self._by_type.get(type(obj)) or self._choose(type(obj))
        if pack is not None:
            start = headed.starts.get(serializer.id) or headed.start(serializer.id)
            if len(start) <= self._half:
                return pack(obj, start)
        return self._encode(obj, serializer, wire.Sections(headers=headed.headers))

    def encode_routed(
        self, obj: Any, route: wire.Routed, number: int, timeout: float | None = None, headers: Mapping[str, str] | None = None
    ) -> Frame:
        """Make a frame of a request or a reply; raises what ``encode`` raises.

        Args:
            obj: what it says.
            route: the address.
            number: correlation id.
            timeout: seconds after which it is of no use any more; what travels is the moment.
            headers: texts.
        """
        deadline = None if timeout is None else time() + timeout  # the wall clock, because another process reads it
        pack, serializer = self._by_type.get(type(obj)) or self._choose(type(obj))
        if headers is None and pack is not None and route.size <= self._half:
            return pack(obj, route.start(serializer.id, number, deadline))
        return self._encode(obj, serializer, wire.Sections(headers=headers, route=(number, route.address), deadline=deadline))

    def _encode(self, obj: Any, serializer: Serializer, wanted: wire.Sections) -> Frame:
        try:
            payload, buffers = serializer.dumps(obj)
        except Exception as error:  # noqa: BLE001  serializers raise what they like, and what is made of it says so
            raise self._explain(serializer, obj, error)  # noqa: B904  as above
        sections = wire.Sections(
            headers=wanted.headers,
            route=wanted.route,
            deadline=wanted.deadline,
            checksum=self._checksum,
            key=self._key,
            stamp=(self._sender_id, next(self._counter)) if self._key is not None else (0, 0),
        )
        return self._made_of(wire.encode, serializer.id, serializer.content_type, payload, buffers, sections)

    def _finish(self, start: bytes, payload: Buffer, buffers: Sequence[Buffer]) -> Frame:
        return self._made_of(wire.finish, start, payload, buffers)

    def _made_of(self, make: Callable[..., Frame], *pieces: Any) -> Frame:
        try:
            parts = make(*pieces)
            size = sum(memoryview(part).nbytes for part in parts)
        except (TypeError, ValueError, BufferError) as error:  # BufferError: of a view that is not contiguous
            raise EncodeError(f"the message cannot travel: {error}; nothing was sent") from error
        if size > self.max_message:
            self.unsent(parts)
            raise self._too_large(size)
        return parts

    def unsent(self, frame: Frame) -> None:
        """Undo what was done for a frame that is not sent: left descriptors for its receiver, say, which would stay open."""
        undo(lambda token: any(type(part) is bytes and token in part for part in frame))

    def decode(self, frame: Frame) -> Any:
        """Rebuild the object of a frame.

        Raises:
            DecodeError: damaged, of another version, or not to be rebuilt here.
            ContentRefused: of a content type this receiver does not accept.
        """
        if len(frame) == 1 and type(first := frame[0]) is bytes and (loads := self.loaders.get(first[:4])) is not None:
            # The common frame, without sections, of a kind that came before; the long way would do the same.
            try:
                return loads(first[4:] if len(first) < COPIED else memoryview(first)[4:])
            except Exception as error:  # noqa: BLE001  rebuilding may raise anything, and what is made of it says so
                raise self.undecodable(first[3], first[4:], error)  # noqa: B904  as above
        message = self.decode_message(frame)
        if message.reply_to is not None:
            message.reply_to.refuse("it was received with recv(), which cannot answer; receive with recv_message() or serve()")
        return message.body

    def decode_message(self, frame: Frame) -> Message:
        """Rebuild the object of a frame with its envelope; raises what ``decode`` raises."""
        quick = wire.unroute(first) if len(frame) == 1 and type(first := frame[0]) is bytes else None
        if quick is not None and (loads := self.alone.get(quick[0])) is not None:
            # The common request, of a kind that came before; the long way would do the same.
            number, correlation, address, deadline, payload = quick
            reply_to = self._answer(correlation, address)
            try:
                body = loads(payload)
            except Exception as error:  # noqa: BLE001  as above
                problem = self.undecodable(number, payload, error)
                _refuse(reply_to, problem)
                raise problem  # noqa: B904  as above
            return Message(body, wire.NO_HEADERS, self._decoders[number].content_type, len(first), deadline, reply_to)
        opened = self.open(frame)
        reply_to = None if opened.route is None else self._answer(*opened.route)
        try:
            body = self.load(opened)
        except Exception as error:
            _refuse(reply_to, error)
            raise
        size = sum(memoryview(part).nbytes for part in frame)
        kind = self._decoders[opened.serializer or opened.content_type].content_type
        return Message(body, opened.headers, kind, size, opened.deadline, reply_to)

    def open(self, frame: Frame) -> wire.Parsed:
        """Take a frame apart, and check that it is no forgery, without decoding its payload; raises ``DecodeError``."""
        parsed = wire.parse(frame, self.max_message, self._key)
        if parsed.stamp is not None:
            self._refuse_replay(*parsed.stamp)
        return parsed

    def load(self, parsed: wire.Parsed) -> Any:
        """Rebuild the object of a frame that was taken apart; raises what ``decode`` raises."""
        key = parsed.serializer or parsed.content_type
        serializer = self._decoders.get(key) or self._decoder(parsed.serializer, parsed.content_type)
        try:
            return serializer.loads(parsed.payload, parsed.buffers)
        except Exception as error:  # noqa: BLE001  as above
            raise self._undecodable(serializer, parsed.payload, error)  # noqa: B904  as above

    def _choose(self, kind: type) -> _Choice:
        serializer = self._default
        if self._auto and "google.protobuf.message" in sys.modules and self._accepts("protobuf"):
            message = sys.modules["google.protobuf.message"].Message
            if issubclass(kind, message):
                serializer = self._make("protobuf")
        return self._remember(kind, serializer)

    def _remember(self, kind: type, serializer: Serializer) -> _Choice:
        pack: Pack | None = None
        if self._plain and serializer.id:
            explain = functools.partial(self._explain, serializer)
            limit = min(wire.JOIN_LIMIT - 4, self._half)
            pack = serializer.packer(wire.head(serializer.id), limit, self._finish, explain)
        if len(self._by_type) < _MAX_TYPES:
            self._by_type[kind] = pack, serializer
            if pack is not None:
                self.packs[kind] = pack
        return pack, serializer

    def _accepts(self, name: str) -> bool:
        return self._accept is None or name in self._accept

    def _pick_default(self) -> str:
        if self._trusted and self._accepts("pickle"):
            return "pickle"
        for name in _FALLBACKS:
            if self._accepts(name):
                try:
                    serializers.get(name)
                except (SerializerUnavailable, UnknownSerializer):
                    continue
                return name
        return next(iter(sorted(self._accept or ())), "json")

    def _make(self, name: str) -> Serializer:
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = serializers.get(name)(private=self.private)
        return made

    def _permit(self, serializer: Serializer) -> None:
        if not serializer.safe and not self._trusted:
            raise InsecureConfiguration(
                f"{serializer.name!r} would let whoever reaches this channel run code here. Other users or machines can "
                "reach it: use serializer='msgpack', 'json' or 'protobuf', or give both ends key_file=PATH"
            )

    def _decoder(self, number: int, content_type: str) -> Serializer:
        """Find who decodes this, if this receiver accepts it."""
        serializer = self._find(number, content_type)
        said = content_type or (serializer.content_type if serializer else f"serializer id {number}")
        if serializer is None:
            raise ContentRefused(f"no installed serializer decodes {said}; the message was dropped", said)
        if not self._accepts(serializer.name):
            accepted = ", ".join(sorted(self._accept or ()))
            raise ContentRefused(f"{said} is not accepted here (accept={accepted}); the message was dropped", said)
        if not serializer.safe and not self._trusted:
            raise ContentRefused(f"{said} is never decoded from strangers; the message was dropped", said)
        self._decoders[number or content_type] = serializer
        if number and self._plain:
            self.loaders[wire.head(number)] = self.alone[number] = serializer.loads_alone
        return serializer

    def _find(self, number: int, content_type: str) -> Serializer | None:
        # Those in use come first, so that an ordinary message does not make every installed serializer load.
        claims: list[str] = []
        lack: ChannelBroken | None = None
        for name in dict.fromkeys((*self._made, *serializers)):
            try:
                kind = serializers.get(name)
            except (SerializerUnavailable, ConfigError):
                continue  # what cannot be loaded cannot decode; asked for by name, it says why
            except ChannelBroken as error:
                lack = error
                continue
            if kind.id == number if number else kind.content_type == content_type:
                if number < _FOREIGN or name in self._made:
                    return self._make(name)
                claims.append(name)
        if len(claims) > 1:
            raise ContentRefused(
                f"serializer id {number} is that of {' and '.join(claims)} here; name in accept= the one that is meant, or "
                "give one of them another id; the message was dropped",
                f"serializer id {number}",
            )
        if lack is not None and not claims:
            raise DecodeError(f"what decodes this message cannot be loaded now: {lack}; the message was dropped") from lack
        return self._make(claims[0]) if claims else None

    def _refuse_replay(self, sender: int, counter: int) -> None:
        # Threads that share a sending end overtake each other between counting and sending, so what is a little late is
        # no replay: a window of the latest counters is kept as bits, as in RFC 4303, section 3.4.3.
        with self._seen_lock:
            # No call from here on: a signal handler that receives comes before or after this.
            highest, bits = self._seen[sender] if sender in self._seen else (0, 0)  # noqa: SIM401  as said above
            if counter > highest:
                ahead = counter - highest
                self._seen[sender] = counter, (bits << ahead | 1) & _WINDOW_BITS if ahead < _WINDOW else 1
                return
            late = highest - counter
            if late >= _WINDOW or bits >> late & 1:
                raise DecodeError("what arrived was sent before (a replay); it was dropped")
            self._seen[sender] = highest, bits | 1 << late

    def _explain(self, serializer: Serializer, obj: Any, error: Exception) -> Exception:
        if isinstance(error, EncodeError) or raised_by_handler(error):
            return error
        from ipcbus.remedies import say

        if serializer.name != "pickle":
            from ipcbus.serializers.parts import find_refused

            culprit = find_refused(obj, serializer.name, serializer.dumps, error)
            where = "" if culprit.path == "obj" else f"{culprit.path}: "
            made = EncodeError(f"{where}{culprit.reason}; nothing was sent", [culprit])
        else:
            from ipcbus.explain import explain
            from ipcbus.serializers.reducers import DispatchTable

            found = explain(obj, reducers=DispatchTable(private=self.private).known())
            text = str(found) if found.culprits else f"{type(obj).__qualname__} cannot be pickled: {say(error)}"
            made = EncodeError(text, found.culprits)
        made.__cause__ = error
        return made

    def _too_large(self, size: int) -> MessageTooLarge:
        return MessageTooLarge(
            f"the message takes {size} bytes, max_message is {self.max_message}; nothing was sent", size, self.max_message
        )

    def undecodable(self, number: int, payload: Buffer, error: Exception) -> Exception:
        """Return what to raise of a payload, of a kind that came before, and of what decoding it raised."""
        return self._undecodable(self._decoders[number], payload, error)

    def _undecodable(self, serializer: Serializer, payload: Buffer, error: Exception) -> Exception:
        if isinstance(error, DecodeError) or raised_by_handler(error):
            return error
        from ipcbus.remedies import rebuilding, say

        view = memoryview(payload)
        remedy = rebuilding(say(error)) if serializer.name in _PICKLES else ""
        made = DecodeError(
            f"{serializer.content_type} of {view.nbytes} bytes cannot be rebuilt in this process: {say(error)}; "
            f"the message was dropped{remedy and ' -> ' + remedy}",
            serializer.content_type,
            view.nbytes,
            bytes(view[:64]),
        )
        made.__cause__ = error
        return made


def _nobody(_number: int, _address: bytes) -> None:
    """Answer no request."""


def _refuse(reply_to: ReplyTo | None, error: Exception) -> None:
    """Tell who asked, if anybody did, that it cannot be rebuilt here."""
    if reply_to is not None:
        reply_to.refuse(f"it cannot be rebuilt by the process that received it: {error}")
