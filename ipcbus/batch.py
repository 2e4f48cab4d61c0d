"""Many messages in one call: ``Channel.send_many`` and ``Channel.recv_many``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelClosed, ChannelEmpty, ChannelError, ChannelFull, EndOfChannel
from ipcbus.plumbing.clock import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ipcbus.channel import Channel
    from ipcbus.codec import Codec
    from ipcbus.endpoint import Endpoint
    from ipcbus.transport import Frame

__all__ = ["recv_many", "send_many"]

_MOST = 16
"""Messages that are encoded before the first of them is handed over: with more, the receiver would wait for them."""
_ENOUGH = 64 * 1024
"""Bytes after which no further one is."""


def send_many(channel: Channel, end: Endpoint, objects: Iterable[Any], timeout: float | None) -> int:
    """Send objects; see ``Channel.send_many``."""
    deadline, sent = Deadline(timeout), 0
    # What has yet to be thought of must not hold up what was: only of what is there already do several go together.
    if not end.patient:
        ways = _or_drop(end, objects, deadline)
    elif isinstance(objects, (list, tuple)):
        ways = _together(end, objects, deadline)
    else:
        ways = _one_by_one(channel, objects, deadline)
    try:
        for done in ways:
            sent += done
    except ChannelFull:
        if not sent:
            raise
    return sent


def _one_by_one(channel: Channel, objects: Iterable[Any], deadline: Deadline) -> Iterator[int]:
    for obj in objects:
        channel.send(obj, deadline.remaining())
        yield 1


def _or_drop(end: Endpoint, objects: Iterable[Any], deadline: Deadline) -> Iterator[int]:
    """Send objects under an overflow policy other than ``block``; yield 1 for each, 0 for one that was dropped."""
    for obj in objects:
        done = _send_bytes(end, (obj,), 0)
        if not done:
            done = int(end.send_or_drop(end.codec.encode(obj), deadline.remaining()))
            end.sent += done
        yield done


def _together(end: Endpoint, objects: Sequence[Any], deadline: Deadline) -> Iterator[int]:
    """Send objects, as many at a time as the transport likes; yield how many, each time."""
    objects, at = tuple(objects), 0
    link = end.tx or end.open_sender()
    while at < len(objects):
        if short := _send_bytes(end, objects, at):
            at += short
            yield short
            continue
        frames, problem = _encode(end.codec, objects[at : at + _MOST])
        at += len(frames)
        while frames:
            try:
                done = link.send_many(frames, deadline.remaining())
            except ChannelError:
                for frame in frames:
                    end.codec.unsent(frame)
                raise
            del frames[:done]
            end.sent += done
            yield done
        if problem is not None:
            raise problem


def _send_bytes(end: Endpoint, objects: Sequence[Any], first: int) -> int:
    """Send the bytes that come next the short way, if there is one; return how many of them found room at once."""
    send, at = end.send_bytes, first
    if send is not None:
        while at < len(objects) and type(objects[at]) is bytes and send(objects[at]):
            at += 1
    return at - first


def _encode(codec: Codec, objects: Iterable[Any]) -> tuple[list[Frame], Exception | None]:
    """Return frames of the first objects, and what is the matter with the one behind them, if that is why there are no more."""
    frames: list[Frame] = []
    size = 0
    for obj in objects:
        try:
            frame = codec.encode(obj)
        except Exception as error:  # noqa: BLE001  raised by who called, when what comes before it was sent
            return frames, error
        frames.append(frame)
        size += len(frame[0])
        if len(frame) > 1 or size > _ENOUGH:
            break
    return frames, None


def recv_many(channel: Channel, end: Endpoint, limit: int, timeout: float | None) -> list[Any]:
    """Receive objects; see ``Channel.recv_many``."""
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    others = range(limit - 1)  # what is no whole number is a TypeError before anything was received
    got = [channel.recv(timeout)]
    rx = end.rx
    try:
        # To find out once that nothing is left costs more than to ask, and less than to ask before each message.
        if limit == 1 or rx is None or not rx.ready():
            return got
        for _ in others:
            got.append(channel.recv(0))  # noqa: PERF401  what came before an error is kept
    except (ChannelEmpty, EndOfChannel, ChannelClosed):
        pass  # nothing more, or what the next call will say again
    except Exception as error:  # noqa: BLE001  whatever it is, what was received before must not be lost with it
        end.postpone(error)
    return got
