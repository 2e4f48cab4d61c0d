"""Channels by name, and channels inside messages."""

from __future__ import annotations

import ipcbus
from ipcbus.testing import guests
from ipcbus.testing.children import PATIENCE
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import Subject, raises


@check(16, scope="process")
def check_named_channels(subject: Subject) -> None:
    """A process that runs already opens channels by name, those that are there and those that it is the first to ask for."""
    names = {name: {"url": subject.fresh_url(), **subject.settings()} for name in ("questions", "answers")}
    with ipcbus.Bus({"channels": names, "bus": {"strict": True}}) as bus:
        child = subject.start(guests.answer_by_name, bus.address)
        assert child.hear() == "connected"
        questions, answers = bus.channel("questions"), bus.channel("answers")
        raises(ipcbus.ChannelEmpty, answers.recv, timeout=0)
        assert bus.channel("questions") == questions, "one name, two channels"
        for value in (1, "a", [2]):
            questions.send(value, timeout=PATIENCE)
            assert answers.recv(timeout=PATIENCE) == value * 2
        raises(ipcbus.ConfigError, bus.channel, "answrs")
        questions.shutdown()
        child.result()
    raises(ipcbus.ChannelClosed, bus.channel, "questions")


@check(16, scope="process")
def check_channel_outlives_its_sender(subject: Subject) -> None:
    """A channel in a message, nested, works when the process that made and sent it has ended; its messages are still there."""
    jobs = subject.open()
    raises(ipcbus.ChannelEmpty, jobs.recv, timeout=0)
    with ipcbus.Bus() as bus:
        child = subject.start(guests.send_own_channel, bus.address, jobs, subject.fresh_url(), subject.settings())
        assert child.hear() == "sent"
        child.result()
        child.process.join(PATIENCE)
        sender, rest = jobs.recv(timeout=PATIENCE)["nested"]
        channel = rest["reply_to"]
        raises(ipcbus.Unsupported, sender.recv, timeout=0)
        if not subject.capabilities.crosses_hosts:  # with no receiver, those have nowhere to leave it
            assert channel.recv(timeout=PATIENCE) == "from who made it", "what was in the channel is gone"
        sender.send("later", timeout=PATIENCE)
        assert channel.recv(timeout=PATIENCE) == "later"
        channel.close()


@check(16, scope="process")
def check_role_in_message(subject: Subject) -> None:
    """An end that was limited to one role is limited where it arrives in a message."""
    jobs, channel = subject.open(), subject.open()
    raises(ipcbus.ChannelEmpty, channel.recv, timeout=0)
    child = subject.start(guests.receive_role, jobs)
    assert child.hear() == "ready"
    jobs.send(channel.sender, timeout=PATIENCE)
    assert child.result() == "limited"
    assert channel.recv(timeout=PATIENCE) == "sent"
