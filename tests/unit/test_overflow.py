"""Senders that drop: what they do about another sender that was stopped in the middle."""

import time

import pytest

import ipcbus
from ipcbus.errors import ChannelFull


class HeldUp:
    """A sending link whose lock is another process's, which was stopped."""

    def __init__(self):
        self.tried = 0

    def send(self, _frame, timeout):
        assert timeout == 0
        self.tried += 1
        raise ChannelFull("another sender has been at it all the time")

    def discard_oldest(self):
        return False  # there is room


@pytest.mark.parametrize(("timeout", "least", "most"), [(0, 0, 0.5), (0.2, 0.2, 1), (None, 1, 3)])
def test_it_gives_up(timeout, least, most):
    with ipcbus.open("inproc:", overflow="drop_old") as channel:
        link = channel._end.open_sender()
        channel._end.tx = held_up = HeldUp()
        started = time.monotonic()
        try:
            with pytest.raises(ChannelFull, match="at it all the time"):
                channel.send(1, timeout=timeout)
        finally:
            channel._end.tx = link
        assert least <= time.monotonic() - started < most
        assert held_up.tried > 1
        assert channel.stats().dropped == 0


def test_what_could_not_be_taken_out_is_not_counted_as_dropped(monkeypatch):
    with ipcbus.open("queue:", capacity=1, overflow="drop_old") as channel:
        channel.send("kept")
        ipcbus.wait([channel], 10)
        gate = type(channel._end.open_sender()._gate)
        check = gate.check

        def strike(self):
            """Send as a signal handler does that strikes amid the send that has found the channel full."""
            monkeypatch.setattr(gate, "check", check)
            with pytest.raises(ChannelFull, match="interrupts"):
                channel.send("refused")
            check(self)

        monkeypatch.setattr(gate, "check", strike)
        channel.send("newest")
        assert channel.recv(10) == "newest"
        assert (channel.stats().sent, channel.stats().dropped) == (2, 1)
