"""Pairs: what one end sends the other receives, whichever way it is asked for."""

import asyncio
import multiprocessing
import re
import socket

import pytest

import ipcbus

from .rig import PATIENCE


@pytest.fixture
def ends():
    here, there = ipcbus.pair("pipe:")
    with here, there:
        yield here, there


def test_both_ways(ends, child):
    here, there = ends
    here.send("question", PATIENCE, headers={"key": "value"})
    assert child.run("result = obj.recv(10); obj.send('answer'); obj.close()", there) == "question"
    assert ipcbus.wait([there, here], PATIENCE) == [here]
    assert here.ready()
    assert here.recv(0) == "answer"


def test_what_is_printed_tells_which_end_this_is(ends):
    here, there = ends
    assert repr(here) == f"<ipcbus.Duplex {here.outgoing!r} {here.incoming!r}>" != repr(there)
    assert repr(here.outgoing.aio) == f"{here.outgoing!r}.aio"


def test_what_cannot_be_waited_for_is_named(ends):
    worker = multiprocessing.Process()
    with pytest.raises(TypeError, match=r"Process.* has no descriptor to wait for; of a process, pass its sentinel"):
        ipcbus.wait([*ends, worker], 0)


def test_what_is_not_open_has_not_ended(ends):
    with socket.socket() as closed:
        pass
    for thing in (closed, 1_000_000, -1):  # the second could be a pid
        for things in ([thing], [*ends, thing]):
            with pytest.raises(ValueError, match=rf"{re.escape(repr(thing))} is no open descriptor.*pass its sentinel"):
                ipcbus.wait(things, 0)


def test_the_end_of_one_way_is_not_that_of_the_other(ends):
    here, there = ends
    for number in range(3):
        here.send(number)
    here.shutdown()
    assert list(there) == [0, 1, 2]
    there.send("still")
    assert here.recv(PATIENCE) == "still"


def test_asyncio(ends):
    here, there = ends

    async def talk():
        for number in range(3):
            await here.aio.send(number)
        assert await there.aio.recv(PATIENCE) == 0
        here.shutdown()
        return [number async for number in there.aio]

    assert asyncio.run(talk()) == [1, 2]


def test_an_address_is_one_channel_s():
    pytest.importorskip("zmq")
    with pytest.raises(ipcbus.Unsupported, match=r"ipcbus\.Duplex"):
        ipcbus.pair("zmq+tcp://127.0.0.1:1")
