"""The wire format: one message as buffers. Sans-I/O; ``docs/reference/wire-format.md`` is its description for others.

A frame is the concatenation of a four-byte head, the sections its flags announce (in the order of the flags' values),
the payload, and the out-of-band buffers. All integers are little-endian::

    0  magic  0xB5      1  version  1      2  flags      3  serializer id (0: named by the TYPE section)

    TYPE     0x01   u8 length, content type in ASCII
    HEADERS  0x02   u32 length, JSON object of text to text in UTF-8
    ROUTE    0x04   u64 correlation id, u16 length, reply address
    DEADLINE 0x08   f64 seconds since 1970 (UTC)
    BUFFERS  0x10   u32 count, u64 payload length, count times u64 buffer length
    CHECKSUM 0x20   u32 CRC-32 of head and sections before it, payload and buffers
    MAC      0x40   u64 sender, u64 counter, 32 bytes HMAC-SHA-256 of head and everything before it, payload and buffers

A transport may hand a frame on as one buffer or cut into several: head and sections are always in the first, and what
follows is divided by the BUFFERS section, wherever it was cut. Without one, all of it is the payload.
"""

from __future__ import annotations

import hmac
import json
import struct
import zlib
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ipcbus.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ipcbus.transport import Buffer, Frame

__all__ = [
    "JOIN_LIMIT",
    "MAGIC",
    "MAX_BUFFERS",
    "NO_HEADERS",
    "VERSION",
    "Headed",
    "Parsed",
    "Routed",
    "Sections",
    "encode",
    "finish",
    "head",
    "parse",
]

MAGIC = 0xB5
"""The first byte of every frame."""
VERSION = 1
"""The second."""

TYPE, HEADERS, ROUTE, DEADLINE, BUFFERS, CHECKSUM, MAC = (1 << bit for bit in range(7))
_KNOWN = 0x7F
JOIN_LIMIT = 16 * 1024
"""Payloads up to this many bytes are joined with their head: one copy is cheaper than one more buffer."""
MAX_BUFFERS = 65_536
"""Out-of-band buffers of one frame."""
MAC_SIZE = 48
_route = struct.Struct("<HBBQH")
_START = MAGIC | VERSION << 8
"""The first two bytes of every frame, as a number."""
_ROUTE_SIZE = _route.size
_unpack_route = _route.unpack_from
_unpack_seconds = struct.Struct("<d").unpack_from
_TIMED = ROUTE | DEADLINE

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
"""What a message without headers has."""


@dataclass(frozen=True, slots=True)
class Sections:
    """The optional sections of a frame, for encoding."""

    headers: Mapping[str, str] | None = None
    route: tuple[int, bytes] | None = None
    """Correlation id and reply address."""
    deadline: float | None = None
    checksum: bool = False
    key: bytes | None = None
    """Secret for the MAC."""
    stamp: tuple[int, int] = (0, 0)
    """Sender and counter covered by the MAC."""


@dataclass(slots=True)
class Parsed:
    """A frame taken apart. Payload and buffers are views into what was received."""

    serializer: int
    content_type: str
    payload: Buffer
    buffers: Sequence[Buffer] = ()
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    route: tuple[int, bytes] | None = None
    deadline: float | None = None
    stamp: tuple[int, int] | None = None
    """Sender and counter when the frame carried a MAC, which then was right."""


def head(serializer: int) -> bytes:
    """Return the four bytes that start a frame without sections."""
    return bytes((MAGIC, VERSION, 0, serializer))


def encode(
    serializer: int,
    content_type: str,
    payload: Buffer,
    buffers: Sequence[Buffer] = (),
    sections: Sections | None = None,
) -> list[Buffer]:
    """Make a frame.

    Args:
        serializer: 1 to 255, or 0 to name the content type in the frame.
        content_type: written when ``serializer`` is 0.
        payload: the serializer's main output.
        buffers: what the serializer left out of band.
        sections: headers and the like.

    Returns:
        The frame's buffers: the first holds head and sections, and the payload too where that is small.

    Raises:
        ValueError: a section cannot hold what it is given (``UnicodeEncodeError`` is one too).
        TypeError: a header is not a text.
    """
    flags = 0
    body = bytearray()
    if serializer == 0:
        flags |= TYPE
        body += _counted("<B", content_type.encode("ascii"), "content type")
    if sections is not None:
        if sections.headers:
            flags |= HEADERS
            body += _counted("<I", _write_headers(sections.headers), "headers")
        if sections.route is not None:
            flags |= ROUTE
            correlation, address = sections.route
            body += struct.pack("<Q", correlation) + _counted("<H", address, "reply address")
        if sections.deadline is not None:
            flags |= DEADLINE
            body += struct.pack("<d", sections.deadline)
    if buffers:
        flags |= BUFFERS
        body += _table(payload, buffers)
    tail: list[Buffer] = [payload, *buffers]
    if sections is not None and (sections.checksum or sections.key is not None):
        flags |= (CHECKSUM if sections.checksum else 0) | (MAC if sections.key is not None else 0)
        start = bytes((MAGIC, VERSION, flags, serializer)) + body
        if sections.checksum:
            body += struct.pack("<I", _crc([start, *tail]))
        if sections.key is not None:
            stamp = struct.pack("<QQ", *sections.stamp)
            start = bytes((MAGIC, VERSION, flags, serializer)) + body + stamp
            body += stamp + _mac(sections.key, [start, *tail])
    return _parts(bytes((MAGIC, VERSION, flags, serializer)) + body, payload, buffers)


def finish(start: bytes, payload: Buffer, buffers: Sequence[Buffer]) -> list[Buffer]:
    """Make a frame of its start, which ``head``, ``Headed`` or ``Routed`` wrote; returns and raises what ``encode`` does."""
    if buffers:
        start = b"".join((start[:2], bytes((start[2] | BUFFERS,)), start[3:], _table(payload, buffers)))
    return _parts(start, payload, buffers)


class Headed:
    """Headers that go with many messages, written once.

    Args:
        headers: texts to texts; not to be changed any more.

    Raises:
        ValueError: they do not fit in a frame, or are no Unicode.
        TypeError: one is not a text.
    """

    __slots__ = ("_section", "headers", "starts")

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._section = _counted("<I", _write_headers(headers), "headers")
        self.starts: dict[int, bytes] = {}
        """By serializer: how a frame with nothing but these and a payload starts."""

    def start(self, serializer: int) -> bytes:
        """Return how a frame of a serializer starts, for the payload to follow."""
        made = self.starts[serializer] = bytes((MAGIC, VERSION, HEADERS, serializer)) + self._section
        return made


class Routed:
    """The route that goes with many messages, but for their numbers, written once.

    Args:
        address: what says where an answer goes, or what kind of an answer this is.

    Attributes:
        size: bytes that it takes at most.

    Raises:
        ValueError: it does not fit in a frame.
    """

    __slots__ = ("_pack", "_pack_timed", "_tail", "address", "size")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self._tail = _counted("<H", address, "reply address")
        self._pack = struct.Struct(f"<HBBQ{len(self._tail)}s").pack
        timed = struct.Struct(f"<HBBQ{len(self._tail)}sd")
        self._pack_timed = timed.pack
        self.size = timed.size

    def start(self, serializer: int, number: int, deadline: float | None) -> bytes:
        """Return how a frame with nothing but this route, perhaps a deadline, and a payload starts, for that to follow."""
        if deadline is None:
            return self._pack(_START, ROUTE, serializer, number, self._tail)
        return self._pack_timed(_START, _TIMED, serializer, number, self._tail, deadline)


def unroute(first: bytes) -> tuple[int, int, bytes, float | None, bytes] | None:
    """Take apart what ``Routed`` started; None when it did not, and ``parse`` is to say what this is.

    Returns:
        Serializer, correlation id, address, deadline, payload.
    """
    try:
        start, flags, serializer, number, size = _unpack_route(first)
    except struct.error:
        return None  # too short
    if start != _START or not serializer:
        return None
    at = _ROUTE_SIZE + size
    if flags == ROUTE:
        if at > len(first):
            return None
        return serializer, number, first[_ROUTE_SIZE:at], None, first[at:]
    if flags != _TIMED or at + 8 > len(first):
        return None
    return serializer, number, first[_ROUTE_SIZE:at], _unpack_seconds(first, at)[0], first[at + 8 :]


def parse(frame: Frame, max_message: int, key: bytes | None = None) -> Parsed:
    """Take a frame apart without decoding its payload.

    Args:
        frame: what a link received.
        max_message: bytes; a frame that claims more is refused.
        key: the secret for the MAC. With one, a frame without a right MAC is refused; without, a MAC is not checked.

    Raises:
        DecodeError: this is not a frame, is of another version, or was damaged or forged.
    """
    first = frame[0] if frame else b""
    if len(first) < 4:
        raise _bad(frame, f"{len(first)} bytes are too few for a frame")
    magic, version, flags, serializer = first[0], first[1], first[2], first[3]
    if magic != MAGIC:
        raise _bad(frame, f"starts with byte 0x{magic:02x} where an ipcbus frame starts with 0x{MAGIC:02x}")
    if version != VERSION:
        raise _bad(frame, f"is of wire format version {version}; this ipcbus speaks version {VERSION}")
    if not flags and key is None and serializer:
        # The common case, kept short: no sections, the payload is the rest.
        return Parsed(serializer, "", _joined(_rest(first, 4, frame)))
    if flags & ~_KNOWN:
        raise _bad(frame, f"has unknown flags 0x{flags & ~_KNOWN:02x}")
    try:
        return _parse_sections(frame, memoryview(first), flags, serializer, max_message, key)
    except _Forged as error:
        raise _bad(frame, str(error)) from None
    except (struct.error, ValueError, RecursionError) as error:
        raise _bad(frame, f"is cut short or damaged ({error})") from error


class _Forged(Exception):
    """Whole, but not from who shares the key."""


def _parse_sections(
    frame: Frame, first: memoryview, flags: int, serializer: int, max_message: int, key: bytes | None
) -> Parsed:
    parsed = Parsed(serializer, "", b"")
    at = 4
    if flags & TYPE:
        (size,) = struct.unpack_from("<B", first, at)
        parsed.content_type, at = str(_take(first, at + 1, size), "ascii"), at + 1 + size
        if not parsed.content_type.isprintable():
            raise ValueError("its content type has control characters")  # which errors would bring to logs and terminals
    if bool(parsed.content_type) is bool(serializer):
        raise ValueError("a frame has either a serializer id or a content type")
    headers: memoryview | None = None
    if flags & HEADERS:
        (size,) = struct.unpack_from("<I", first, at)
        headers, at = _take(first, at + 4, size), at + 4 + size
    if flags & ROUTE:
        correlation, size = struct.unpack_from("<QH", first, at)
        parsed.route, at = (correlation, bytes(_take(first, at + 10, size))), at + 10 + size
    if flags & DEADLINE:
        (parsed.deadline,) = struct.unpack_from("<d", first, at)
        at += 8
    lengths: tuple[int, ...] | None = None
    if flags & BUFFERS:
        (count,) = struct.unpack_from("<I", first, at)
        if count > MAX_BUFFERS:
            raise ValueError(f"{count} buffers; at most {MAX_BUFFERS} are allowed")
        lengths = struct.unpack_from(f"<{count + 1}Q", first, at + 4)
        if sum(lengths) > max_message:
            raise ValueError(f"claims {sum(lengths)} bytes; max_message is {max_message}")
        at += 4 + 8 * (count + 1)
    crc_at = at
    if flags & CHECKSUM:
        at += 4
    mac_at = at
    if flags & MAC:
        at += MAC_SIZE
    if at > len(first):
        raise ValueError("the sections end behind the frame")
    tail = _rest(first, at, frame)
    if key is not None:
        if not flags & MAC:
            raise _Forged("has no MAC, and this channel has a key")
        wanted = _mac(key, [first[: mac_at + 16], *tail])
        if not hmac.compare_digest(wanted, first[mac_at + 16 : mac_at + MAC_SIZE]):
            raise _Forged("has a wrong MAC: it was damaged, forged, or sent with another key")
        parsed.stamp = struct.unpack_from("<QQ", first, mac_at)
    if flags & CHECKSUM:
        (crc,) = struct.unpack_from("<I", first, crc_at)
        if crc != _crc([first[:crc_at], *tail]):
            raise ValueError("its checksum is wrong")
    if headers is not None:
        parsed.headers = _read_headers(headers)  # behind the MAC: a stranger's JSON is not even parsed
    if lengths is None:
        parsed.payload = _joined(tail)
    else:
        parsed.payload, *parsed.buffers = _cut(tail, lengths)
    return parsed


def _write_headers(headers: Any) -> bytes:
    if not hasattr(headers, "items"):
        raise TypeError(f"headers are a dict of texts, not {headers!r}")
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"headers are texts, not {key!r}: {value!r}")
    return json.dumps(dict(headers), ensure_ascii=False).encode()


def _read_headers(text: memoryview) -> Mapping[str, str]:
    headers = json.loads(str(text, "utf-8"))
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ValueError("headers are not an object of texts")
    return MappingProxyType(headers)


def _table(payload: Buffer, buffers: Sequence[Buffer]) -> bytes:
    """Return the last section but those that check."""
    if len(buffers) > MAX_BUFFERS:
        raise ValueError(f"{len(buffers)} out-of-band buffers; a frame holds {MAX_BUFFERS}")
    return struct.pack(f"<I{len(buffers) + 1}Q", len(buffers), _size(payload), *map(_size, buffers))


def _parts(start: bytes, payload: Buffer, buffers: Sequence[Buffer]) -> list[Buffer]:
    if _size(payload) <= JOIN_LIMIT:
        return [start + payload, *buffers]
    return [start, payload, *buffers]


def _counted(size: str, data: bytes, what: str) -> bytes:
    try:
        return struct.pack(size, len(data)) + data
    except struct.error:
        raise ValueError(f"{what} of {len(data)} bytes is longer than a frame can hold") from None


def _take(view: memoryview, at: int, size: int) -> memoryview:
    piece = view[at : at + size]
    if len(piece) != size:
        raise ValueError("a section ends behind the frame")
    return piece


def _rest(first: Buffer, at: int, frame: Frame) -> list[Buffer]:
    """Return the buffers behind the sections; an empty remainder of the first is no buffer if others follow."""
    rest = memoryview(first)[at:]
    return [rest, *frame[1:]] if len(rest) or len(frame) == 1 else list(frame[1:])


def _joined(tail: list[Buffer]) -> Buffer:
    return tail[0] if len(tail) == 1 else b"".join(tail)


def _cut(tail: list[Buffer], lengths: Sequence[int]) -> list[Buffer]:
    if len(tail) == len(lengths) - 1 and not lengths[0]:
        tail = [b"", *tail]
    if [_size(piece) for piece in tail] == list(lengths):
        return tail
    joined = memoryview(_joined(tail))
    if len(joined) != sum(lengths):
        raise ValueError(f"{len(joined)} bytes where its table says {sum(lengths)}")
    pieces: list[Buffer] = []
    at = 0
    for length in lengths:
        pieces.append(joined[at : at + length])
        at += length
    return pieces


def _size(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def _crc(parts: Sequence[Buffer]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _mac(key: bytes, parts: Sequence[Buffer]) -> bytes:
    mac = hmac.new(key, digestmod="sha256")
    for part in parts:
        mac.update(part)
    return mac.digest()


def _bad(frame: Frame, why: str) -> DecodeError:
    start = bytes(memoryview(frame[0])[:64]) if frame else b""
    size = sum(_size(part) for part in frame)
    return DecodeError(f"what arrived {why}; it was dropped", size=size, head=start)
