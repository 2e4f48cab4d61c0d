"""What is special to inproc: a bell that rings in vain does so once."""

import select

import ipcbus


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
