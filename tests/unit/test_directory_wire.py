"""What goes over a directory's socket: whatever arrives, it is understood or refused, and no descriptor stays behind."""

import array
import os
import select
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ipcbus.directory import wire
from ipcbus.directory.wire import Datagram, Operation, Status
from ipcbus.errors import ChannelBroken

HEAD = struct.Struct("<BBHI")
KINDS = st.sampled_from([*Operation, *Status])
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def open_fds():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture(scope="module")
def sockets():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for sock in (ours, theirs):
            sock.settimeout(10)
        yield ours, theirs


@pytest.fixture
def null():
    """Descriptors to send, all for one file."""
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)


def put(sock, data, fds=()):
    """Send what no ``wire.send`` would."""
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def assert_refused(sockets, data, fds=(), match="no datagram"):
    ours, theirs = sockets
    put(ours, data, fds)
    before = open_fds()
    with pytest.raises(ValueError, match=match):
        wire.receive(theirs)
    assert open_fds() == before


@quick
@given(
    kind=KINDS,
    token=st.integers(0, 2**32 - 1),
    key=st.binary(max_size=wire.MAX_KEY),
    content=st.binary(max_size=300) | st.integers(wire.SPILL - 1, wire.SPILL + 2).map(bytes),
    count=st.sampled_from([0, 1, 2, wire.MAX_FDS]),
)
@example(Operation.PUT, 7, b"k" * wire.MAX_KEY, bytes(wire.SPILL), wire.MAX_FDS)
@example(Operation.PUT, 7, b"k" * wire.MAX_KEY, bytes(wire.SPILL + 1), wire.MAX_FDS)
def test_round_trip(sockets, null, kind, token, key, content, count):
    ours, theirs = sockets
    before = open_fds()
    wire.send(ours, Datagram(kind, token, key, content, [null] * count))
    assert open_fds() == before, "sending left something open"
    came = wire.receive(theirs)
    assert (came.kind, came.token, came.key, came.content, len(came.fds)) == (kind, token, key, content, count)
    for fd in came.fds:
        assert os.path.sameopenfile(fd, null)
        assert not os.get_inheritable(fd)
    came.close()
    came.close()
    assert open_fds() == before


@quick
@given(data=st.binary(min_size=1, max_size=100), count=st.integers(0, 5))
def test_garbage(sockets, null, data, count):
    ours, theirs = sockets
    put(ours, data, [null] * count)
    before = open_fds()
    try:
        came = wire.receive(theirs)
    except ValueError:
        pass
    else:
        assert data[1] & 0x7F == wire.VERSION
        came.close()
    assert open_fds() == before


@quick
@given(cut=st.integers(1, 19))
def test_truncated(sockets, null, cut):
    whole = HEAD.pack(Operation.GET, wire.VERSION, 12, 1) + b"k" * 12
    assert_refused(sockets, whole[:-cut], [null])


def test_another_version_is_named(sockets, null):
    assert_refused(sockets, HEAD.pack(0, 2, 0, 1), [null], match="version 2, and this ipcbus speaks 1")


def test_too_long_a_datagram(sockets, null):
    data = HEAD.pack(0, wire.VERSION, 0, 1) + bytes(wire.MAX_KEY + wire.SPILL + 1)
    assert_refused(sockets, data, [null], match="longer")


@pytest.mark.parametrize("count", [wire.MAX_FDS + 1, wire.MAX_FDS + 2, 253])
def test_too_many_descriptors(sockets, null, count):
    assert_refused(sockets, HEAD.pack(0, wire.VERSION, 0, 1), [null] * count, match="more than 64")


@pytest.mark.parametrize("data", [b"", b"!"], ids=["no file", "content and a file"])
def test_spilled_content_that_is_not_there(sockets, null, data):
    fds = [null] if data else []
    assert_refused(sockets, HEAD.pack(0, wire.VERSION | 0x80, 0, 1) + data, fds, match="missing")


def test_spilled_content_that_is_no_file(sockets):
    # Reading from any of these would wait for somebody, or fail in a way of its own.
    reader, writer = os.pipe()
    directory = os.open("/", os.O_RDONLY)
    try:
        for fd in (reader, directory):
            assert_refused(sockets, HEAD.pack(0, wire.VERSION | 0x80, 0, 1), [fd], match="no file")
    finally:
        for fd in (reader, writer, directory):
            os.close(fd)


def test_spilled_content_without_end(sockets):
    fd = os.memfd_create("sparse")
    try:
        os.ftruncate(fd, 1 << 40)
        assert_refused(sockets, HEAD.pack(0, wire.VERSION | 0x80, 0, 1), [fd], match="is the most")
    finally:
        os.close(fd)


def test_the_token_is_known_where_descriptors_could_not_come(sockets, null, scarce):
    ours, theirs = sockets
    wire.send(ours, Datagram(Status.OK, 77, content=b"c", fds=[null] * 8))
    taken = scarce(3)
    with pytest.raises(wire.Cut, match="ulimit") as caught:
        wire.receive(theirs)
    assert caught.value.token == 77
    taken += [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]  # as many as before


@pytest.mark.parametrize(
    "datagram",
    [
        Datagram(0, 0, fds=[0] * (wire.MAX_FDS + 1)),
        Datagram(0, 0, key=bytes(wire.MAX_KEY + 1)),
        Datagram(0, 0, content=bytes(wire.MAX_CONTENT + 1)),
    ],
    ids=["descriptors", "key", "content"],
)
def test_what_nobody_would_take_is_not_sent(sockets, datagram):
    ours, theirs = sockets
    with pytest.raises(ChannelBroken):
        wire.send(ours, datagram)
    assert not select.select([theirs], [], [], 0)[0]


def test_the_end():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        assert wire.receive(theirs) is None
        with pytest.raises(BrokenPipeError):
            wire.send(theirs, Datagram(0, 0))
