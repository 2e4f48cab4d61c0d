"""Bytes that are sent without a frame being made of them first: the same arrives, or nothing was done."""

from contextlib import ExitStack

import pytest

import ipcbus
from ipcbus.errors import ChannelEmpty, EndOfChannel
from ipcbus_pipe import Pipe, _stream
from ipcbus_unix import Unix

from .rig import Ends, drain, in_thread

HEAD = b"\xb5\x01\0\x01"
SMALL = {Pipe: {"pipe_bytes": 4096}, Unix: {"socket_bytes": 16_384}}


@pytest.fixture(params=[Pipe, Unix], ids=["pipe", "unix"])
def transport(request):
    return request.param


@pytest.fixture
def make(transport):
    with ExitStack() as stack:
        yield lambda **options: Ends(stack, transport, **options)


def test_they_arrive_as_what_they_would_have_been_in_a_frame(make, transport):
    ends = make(capacity=100)
    sender, receiver = ends.both()
    send = sender.bytes_sender(HEAD, 1 << 20)
    sender.send([b"the first may take more"], 0)
    receiver.recv(0)
    most = (_stream.ATOMIC if transport is Pipe else ends.handle.inline) - len(HEAD)
    for number, size in enumerate([0, 1, 2, 60, 64, 1000, most - 1, most]):
        data = bytes([number]) * size
        assert send(data)
        sender.send([b"between"], 0)
        assert [receiver.recv(0), receiver.recv(0)] == [(HEAD + data,), (b"between",)]
    assert not send(bytes(most + 1))
    assert not sender.bytes_sender(HEAD, 10)(bytes(11))
    with pytest.raises(ChannelEmpty):
        receiver.recv(0)


def test_what_cannot_be_done_at_once_is_not_done(make):
    ends = make(capacity=3)
    sender, receiver = ends.both()
    send = sender.bytes_sender(HEAD, 100)
    assert not send(b"before it was ever looked for room")
    sender.send([b"0"], 0)
    assert [send(b"1"), send(b"2"), send(b"3")] == [True, True, False]
    assert [receiver.recv(0) for _ in range(3)] == [(b"0",), (HEAD + b"1",), (HEAD + b"2",)]
    assert not send(b"nor before it was looked again")
    sender.send([b"4"], 0)
    assert send(b"5")
    ends.handle.shut()
    assert not send(b"6")
    sender.close()
    assert not send(b"7")
    assert [receiver.recv(0), receiver.recv(0)] == [(b"4",), (HEAD + b"5",)]
    with pytest.raises(EndOfChannel):
        receiver.recv(0)


def test_where_there_is_no_room_for_bytes_nothing_is_sent_nor_counted(make, transport):
    sender, receiver = make(capacity=10_000, **SMALL[transport]).both()
    send = sender.bytes_sender(HEAD, 1 << 20)
    sender.send([b"0"], 0)
    sent = 0
    while send(bytes(1000)):
        sent += 1
    assert sent >= 3
    assert sender.depth() == 1 + sent
    assert len(drain(receiver)) == 1 + sent
    assert send(b"1")


def test_a_thread_in_the_middle_of_a_send_is_not_waited_for(make):
    sender = make().sender()
    send = sender.bytes_sender(HEAD, 100)
    sender.send([b"0"], 0)
    with sender._lock:
        assert in_thread(send, b"1")() is False
    assert send(b"1")


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_what_went_them_before_an_end_was_closed_and_came_again_counts(end):
    with ipcbus.open("auto:") as channel, ipcbus.open("inproc:") as other:
        for _ in range(3):
            channel.send(b"bytes", 0)
            assert channel.recv(0) == b"bytes"
        other.send(channel)
        getattr(channel, end).close()
        again = other.recv(0)
        again.send(b"bytes", 0)
        assert again.recv(0) == b"bytes"
        assert (again.stats().sent, again.stats().received) == (4, 4)
