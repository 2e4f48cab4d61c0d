"""What is special to inproc: a bell that rings in vain does so once, and one that cannot be had says so."""

import select

import pytest

import ipcbus
from ipcbus.errors import ChannelBroken


def test_a_bell_that_rang_and_was_not_noted_is_silent_again():
    """An interruption came between; who waits would look again and again without a sleep, for as long as nothing comes."""
    with ipcbus.open("inproc:") as channel:
        link = channel._end.open_receiver()
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        assert not link.ready()
        link._bell.set()
        assert poll.poll(0)
        assert not link.ready()
        assert not poll.poll(0)


def test_an_end_that_cannot_have_a_bell_says_so(no_descriptors):
    with ipcbus.open("inproc:", capacity=1) as channel:
        with no_descriptors(), pytest.raises(ChannelBroken, match="ulimit"):
            channel.recv(timeout=0.01)
        channel.send(1)
        with no_descriptors(), pytest.raises(ChannelBroken, match="nothing was sent"):
            channel.send(2, timeout=0.01)
        assert channel.recv(timeout=0) == 1
        channel.send(2)
        assert channel.recv(timeout=0) == 2


def test_a_receive_that_is_interrupted_has_told_who_waits_for_room():
    """Where it had the message already: nobody would tell the sender again."""
    with ipcbus.open("inproc:", capacity=1) as channel:
        link = channel._end.open_receiver()
        frames = link._store.frames

        class Interrupted(type(frames)):
            def popleft(self):
                super().popleft()
                raise KeyboardInterrupt

        link._store.frames = Interrupted(frames)
        channel.send(1)
        poll = select.poll()
        poll.register(channel.sender.fileno(), select.POLLIN)
        assert not channel.sender.ready()
        assert not poll.poll(0)
        with pytest.raises(KeyboardInterrupt):
            channel.recv(timeout=0)
        assert poll.poll(0)
        channel.send(2, timeout=0)
