"""Messages on a byte stream: records, and a parser that takes many of them from one read. Sans-I/O.

A record is a little-endian ``u32`` head and that many bytes. The head's low 30 bits are the length, the upper two flags:

======  =======  ==================================================================================
MORE    SPECIAL  meaning
======  =======  ==================================================================================
0       0        a whole message, or the end of one whose first part came in a MORE record
1       0        the first part of a message; the message counts once a record without MORE ends it
0       1        length 0: forget the part that came; its sender gave up
1       1        length 8: the message is in a memory file that was passed beside the stream, by this number
======  =======  ==================================================================================

A message up to ``ATOMIC`` bytes is one record in one write, which the kernel does whole or not at all. A larger one is
a MORE record followed by an empty record, so that a sender that has to give up half way can still take it back.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.buffers import size

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from ipcbus.transport import Buffer, Frame

__all__ = [
    "ATOMIC",
    "HEAD",
    "Item",
    "Starts",
    "State",
    "cancelled",
    "large_record",
    "lone",
    "parse",
    "record",
    "streamed",
    "together",
    "unparse",
]

HEAD = 4
ATOMIC = 4096 - HEAD
"""Payload bytes of the largest record that one write hands over whole (PIPE_BUF, see pipe(7))."""

_MORE, _SPECIAL = 1 << 31, 1 << 30
_LENGTH = _SPECIAL - 1
_pack = struct.Struct("<I").pack
_unpack = struct.Struct("<I").unpack_from
_pack_large = struct.Struct("<IQ").pack
_unpack_large = struct.Struct("<Q").unpack_from
_COMMIT = _pack(0)
_CANCEL = _pack(_SPECIAL)

Item: TypeAlias = "tuple[bytes, ...] | int"
"""A frame, or the number of a memory file that holds one."""


record = _pack
"""Makes the head of a message of so many bytes that is written whole."""


class Starts(dict[int, bytes]):
    """How records of messages begin, by the size of what follows, each made once: up to ``ATOMIC`` they are few enough to keep.

    Args:
        head: what every one of the messages begins with.
    """

    def __init__(self, head: bytes = b"") -> None:
        super().__init__()
        self._head = head

    def __missing__(self, size: int) -> bytes:
        made = self[size] = record(len(self._head) + size) + self._head
        return made


def together(frames: Sequence[Frame]) -> list[bytes]:
    """Return records of the first messages, as many as one write hands over whole; of none, if the first is too large."""
    records: list[bytes] = []
    left = ATOMIC + HEAD
    for frame in frames:
        taken = size(frame)
        left -= HEAD + taken
        if left < 0:
            break
        records.append(b"".join((record(taken), *frame)))
    return records


def streamed(parts: Sequence[Buffer], size: int) -> list[Buffer]:
    """Return the buffers to write for a message that may have to be written in pieces."""
    return [_pack(_MORE | size), *parts, _COMMIT]


def cancelled(buffers: Sequence[Buffer]) -> bytes:
    """Return the same bytes so that there is no message, for as long as the last of them was not written.

    Args:
        buffers: what ``streamed`` returned.
    """
    # Commit and cancel differ in their last byte only, so even one that was begun can still become the other.
    return b"".join([*buffers[:-1], _CANCEL])


def large_record(number: int) -> bytes:
    """Return the record that puts memory file ``number`` in its place among the messages."""
    return _pack_large(_MORE | _SPECIAL | 8, number)


class State(NamedTuple):
    """Where the parser of one stream stands. Replaced as a whole, so that an interruption never leaves half a step."""

    items: deque[Item]
    """Messages that are complete and not yet delivered."""
    rest: bytes = b""
    """The start of a record whose end has not come."""
    part: bytes | None = None
    """The first part of a message whose end has not come."""
    block: int = -1
    """The number of the last block that went into this."""


def lone(block: bytes) -> bytes | None:
    """Return the message that a block holds if it is one and nothing else, and comes behind nothing that is unfinished."""
    size = len(block) - HEAD
    return block[HEAD:] if size >= 0 and _unpack(block)[0] == size else None


def parse(state: State, block: bytes, number: int, max_message: int) -> State:
    """Go on by one block.

    Args:
        state: where the parser stands; not changed.
        block: what was read next.
        number: the block's number.
        max_message: bytes; a longer message means that this is no such stream.

    Raises:
        ChannelBroken: the stream makes no sense.
    """
    items, rest, part, _ = state
    items = items.copy()
    add = items.append
    data = rest + block if rest else block
    at, end = 0, len(data)
    while end - at >= HEAD:
        (head,) = _unpack(data, at)
        begin = at + HEAD
        if head < _SPECIAL and part is None and (stop := begin + head) <= end:  # a whole message, as nearly all are
            add((data[begin:stop],))
            at = stop
            continue
        stop = begin + (head & _LENGTH)
        if stop > end:
            if head & _LENGTH > max_message:
                raise ChannelBroken(f"the pipe announces {head & _LENGTH} bytes; max_message is {max_message}")
            break
        part = _special(head, data[begin:stop], part, items)
        at = stop
    return State(items, data[at:], part, number)


def unparse(state: State) -> bytes:
    """Return a block that brings a new parser to the same state, for another receiver to go on from."""
    pieces = [_pack(len(item[0])) + item[0] if isinstance(item, tuple) else large_record(item) for item in state.items]
    if state.part is not None:
        pieces.append(_pack(_MORE | len(state.part)) + state.part)
    return b"".join([*pieces, state.rest])


def _special(head: int, body: bytes, part: bytes | None, items: deque[Item]) -> bytes | None:
    """Deal with a record that is more than a whole message; return the part that is open after it."""
    if part is None and head == _MORE | _SPECIAL | 8:
        items.append(_unpack_large(body)[0])
    elif part is None and head >= _MORE and not head & _SPECIAL:
        return body
    elif part is not None and head == 0:
        items.append((part,))
    elif part is None or head != _SPECIAL:
        raise ChannelBroken(f"the pipe carries a record head 0x{head:08x} that makes no sense here")
    return None
