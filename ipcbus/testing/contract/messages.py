"""Rules 1 to 8: what arrives is what was sent, once, in order, or an error says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelEmpty, ContentRefused, DecodeError, EncodeError, MessageTooLarge, Unsupported
from ipcbus.testing import children
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import PATIENCE, Subject, pattern, raises

if TYPE_CHECKING:
    import ipcbus

SIZES = (0, 1, 64, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20)
"""Bytes: around what pipes, pages and fast paths treat differently."""
_PLENTY = 64 << 20
"""Bytes that a message of a check may have at most."""


def _send_all(channel: ipcbus.Channel, values: list[Any]) -> None:
    for value in values:
        channel.send(value, timeout=PATIENCE)


def _same(got: Any, sent: Any, what: str) -> None:
    if got != sent or type(got) is not type(sent):
        said = f"{type(got).__name__} of {len(got)}" if isinstance(got, (bytes, bytearray)) else repr(got)[:80]
        raise AssertionError(f"{what} arrived changed, as {said}")


@check(1, 3)
def check_fifo(subject: Subject) -> None:
    """Messages of one sender arrive once each, in order, also where its threads take turns."""
    channel = subject.open(capacity=16)
    for n in range(8):
        channel.send(2 * n, timeout=PATIENCE)
        subject.thread(channel.send, 2 * n + 1, timeout=PATIENCE).result()
    turns = [channel.recv(timeout=PATIENCE) for _ in range(16)]
    assert turns == list(range(16)), f"what two threads sent by turns, each after the other, arrived as {turns}"
    sending = subject.thread(_send_all, channel, list(range(1000)))
    got = [channel.recv(timeout=PATIENCE) for _ in range(1000)]
    sending.result()
    wrong = next((i for i, value in enumerate(got) if value != i), None)
    assert wrong is None, f"message {wrong} of 1000 arrived as {got[wrong or 0]}"
    raises(ChannelEmpty, channel.recv, timeout=0)


@check(1, 2)
def check_every_value_travels(subject: Subject) -> None:
    """No value is special: every byte, sign and small size arrives."""
    channel = subject.open(capacity=8)
    values: list[Any] = [*range(-130, 131), 0.0, -1.5, True, "\0", "é", *(bytes([i]) for i in range(256))]
    values += [b"\n" * n for n in range(1, 70)]
    sending = subject.thread(_send_all, channel, values)
    for value in values:
        _same(channel.recv(timeout=PATIENCE), value, f"{value!r}")
    sending.result()


@check(2, largest=2 << 20)
def check_whole_messages(subject: Subject) -> None:
    """Messages around every size that something treats specially arrive whole, raw and pickled."""
    channel = subject.open(capacity=4)
    raw = [pattern(size, seed) for seed, size in enumerate(SIZES)]
    pickled = [{"n": seed, "buffers": [bytearray(part), part[:100]]} for seed, part in enumerate(raw)]
    sending = subject.thread(_send_all, channel, [*raw, *pickled, *raw])
    for value in [*raw, *pickled, *raw]:
        _same(channel.recv(timeout=PATIENCE), value, "a message")
    sending.result()
    raises(ChannelEmpty, channel.recv, timeout=0)


@check(2, largest=21 << 20)
def check_large_message(subject: Subject) -> None:
    """A message of 20 MiB arrives whole, and so do the small ones around it."""
    channel = subject.open(capacity=8)
    values: list[Any] = ["before", pattern(20 << 20, 7), "after"]
    sending = subject.thread(_send_all, channel, values)
    for value in values:
        _same(channel.recv(timeout=3 * PATIENCE), value, f"a message of {len(value)} items")
    sending.result()


@check(2, largest=5 << 20)
def check_many_buffers(subject: Subject) -> None:
    """Messages of many out-of-band buffers, empty ones among them, arrive whole, and stay as they are."""
    channel = subject.open()
    values = [[children.Buffers([pattern(size, n + size) for size in (0, 5000, 4096, 1, 70_000)] * 5)] for n in range(3)]
    values.append([children.Buffers([pattern(4096, n) for n in range(1100)])])  # Linux writes 1024 in one call
    values += [[children.Buffers([pattern(5000, n)])] for n in range(3)]  # what one read brings is kept elsewhere, maybe
    sending = subject.thread(_send_all, channel, values)
    got = [channel.recv(timeout=PATIENCE) for _ in values]
    sending.result()
    for arrived, value in zip(got, values, strict=True):  # not before all are there: each has its memory for itself
        _same(arrived, value, f"a message of {len(value[0].parts)} buffers")


@check(4, largest=3 << 20)
def check_snapshot(subject: Subject) -> None:
    """What arrives is what was passed to send, though the caller changes it right after the call."""
    channel = subject.open(capacity=4)
    for size in (10, 5_000, 50_000, 2 << 20):
        data, things = bytearray(pattern(size, 1)), [1, [2, 3]]
        expected = ({"data": bytes(data)}, [1, [2, 3]])

        def send_and_change(data: bytearray = data, things: list[Any] = things) -> None:
            channel.send(({"data": children.Buffers([data])}, things), timeout=PATIENCE)
            data[:] = bytes(len(data))
            try:
                data.clear()
            except BufferError as error:
                raise AssertionError("send() has returned, and the caller's buffer is still in use") from error
            things[1].append(4)

        sending = subject.thread(send_and_change)
        if size < 60_000:
            sending.result()  # the change comes before the receiver looks, where the channel can hold it meanwhile
        first, second = channel.recv(timeout=PATIENCE)
        sending.result()
        got = ({"data": b"".join(map(bytes, first["data"].parts))}, second)
        assert got == expected, f"a message of {size} bytes arrived with what the caller changed after send() had returned"


@check(5)
def check_empty_messages(subject: Subject) -> None:
    """Nothing is a message like any other: None and every empty value arrive, once each."""
    channel = subject.open()
    values: list[Any] = [None, b"", "", [], {}, 0, False, (), b"", None]
    for value in values:
        channel.send(value, timeout=PATIENCE)
    for value in values:
        _same(channel.recv(timeout=PATIENCE), value, f"{value!r}")
    raises(ChannelEmpty, channel.recv, timeout=0.05)


@check(6)
def check_encode_error(subject: Subject) -> None:
    """What cannot be encoded raises in send, names the culprit, and uses up no room."""
    channel = subject.open(capacity=1)
    for _ in range(3):
        error = raises(EncodeError, channel.send, {"job": [1, lambda: None]}, timeout=0)
        paths = [culprit.path for culprit in error.culprits]
        assert len(paths) == 1, f"one part cannot travel, the error names {paths}"
        assert "job" in paths[0], f"the error does not say where the part is that cannot travel: {paths}"
        assert "[1]" in paths[0], f"the error does not say where the part is that cannot travel: {paths}"
        assert paths[0] in str(error), f"the error's text does not name the culprit {paths}: {error}"
    channel.send("good", timeout=1)
    assert channel.recv(timeout=PATIENCE) == "good", "something else than the one good message arrived"
    raises(EncodeError, channel.send, children.Unpicklable(), timeout=0)
    channel.send("again", timeout=1)
    assert channel.recv(timeout=PATIENCE) == "again", "something else than the second good message arrived"
    raises(ChannelEmpty, channel.recv, timeout=0)
    assert channel.stats().sent == 2, f"2 messages were sent, stats() counts {channel.stats().sent}"


@check(7)
def check_decode_error(subject: Subject) -> None:
    """What cannot be rebuilt raises in recv and is consumed; the next message arrives, and room is made."""
    channel = subject.open(capacity=2)
    for n in range(3):
        channel.send(children.Poison(n), timeout=PATIENCE)
        channel.send(n, timeout=PATIENCE)
        error = raises(DecodeError, channel.recv, timeout=PATIENCE)
        assert error.size > 0, "the error does not say how large the message was"
        assert channel.recv(timeout=PATIENCE) == n, "the message after the poisoned one did not arrive"
    assert channel.stats().undecodable == 3, f"3 messages were undecodable, stats() counts {channel.stats().undecodable}"


@check(7)
def check_content_refused(subject: Subject) -> None:
    """A content type that the receiver does not accept is consumed and never decoded."""
    children.register_text()
    channel = subject.open(serializer="raw", accept=(children.Text.name,))
    channel.send(b"unwanted", timeout=PATIENCE)
    channel.send(b"unwanted too", timeout=PATIENCE)
    for _ in range(2):
        error = raises(ContentRefused, channel.recv, timeout=PATIENCE)
        assert "octet-stream" in error.content_type, f"the error names content type {error.content_type!r}"
    raises(ChannelEmpty, channel.recv, timeout=0)


@check(8, largest=20_000)
def check_too_large(subject: Subject) -> None:
    """A message over max_message raises in send, sends nothing and uses up no room."""
    channel = subject.open(capacity=1, max_message=20_000)
    for size in (20_001, 1 << 20):
        error = raises(MessageTooLarge, channel.send, pattern(size, 1), timeout=0)
        assert error.size > error.limit == 20_000, f"the error says size {error.size}, limit {error.limit}"
    for size in (19_000, 1, 10_000):
        channel.send(pattern(size, 2), timeout=1)
        _same(channel.recv(timeout=PATIENCE), pattern(size, 2), f"the message of {size} bytes after one too large")
    raises(ChannelEmpty, channel.recv, timeout=0)


@check(8, 20, applies=lambda can: can.max_message is not None and can.max_message <= _PLENTY)
def check_most_that_is_carried(subject: Subject) -> None:
    """What the medium can just carry arrives whole; what it cannot raises in send, and no channel is made for more."""
    most = subject.capabilities.max_message
    assert most is not None  # or the check would not apply
    channel = subject.open(capacity=1)
    error = raises(MessageTooLarge, channel.send, pattern(most + 1, 1), timeout=0)
    assert error.limit == most, f"the transport carries {most} bytes, and the error says that {error.limit} are the limit"
    message = pattern(2 * most + 1 - error.size, 2)  # what was put around the one above takes some of them
    receiving = subject.thread(channel.recv, timeout=PATIENCE)
    channel.send(message, timeout=PATIENCE)
    _same(receiving.result(), message, f"a message of {most} bytes, which the transport says it carries,")
    raises(Unsupported, subject.open, max_message=most + 1)


@check(2)
def check_headers(subject: Subject) -> None:
    """Headers travel beside the body."""
    channel = subject.open()
    channel.send([1, 2], timeout=PATIENCE, headers={"trace": "é-1", "empty": ""})
    channel.send([3], timeout=PATIENCE)
    message = channel.recv_message(timeout=PATIENCE)
    assert (message.body, dict(message.headers)) == ([1, 2], {"trace": "é-1", "empty": ""}), f"arrived as {message}"
    message = channel.recv_message(timeout=PATIENCE)
    assert (message.body, dict(message.headers)) == ([3], {}), f"arrived as {message}"
