"""What the processes of the checks of the bus run; as in :mod:`ipcbus.testing.children`."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.testing.children import PATIENCE

if TYPE_CHECKING:
    from ipcbus.testing.children import Line


def answer_by_name(line: Line, address: str | None) -> None:
    """Connect to a bus, and send back doubled what comes by one name, by another, until it ends."""
    bus = ipcbus.Bus.connect(address)
    with bus.channel("questions") as questions, bus.channel("answers") as answers:
        line.say("connected")
        while True:
            try:
                value = questions.recv(timeout=PATIENCE)
            except ipcbus.EndOfChannel:
                return
            answers.send(value * 2, timeout=PATIENCE)


def send_own_channel(line: Line, address: str | None, jobs: ipcbus.Channel, url: str, settings: dict[str, Any]) -> None:
    """Make a channel, send it away through another with one message in it, and end."""
    if address is not None:
        ipcbus.Bus.connect(address)
    own = ipcbus.open(url, **settings)
    own.send("from who made it", timeout=PATIENCE)
    jobs.send({"nested": [own.sender, {"reply_to": own}]}, timeout=PATIENCE)
    line.say("sent")
    own.close()
    jobs.close()


def receive_role(line: Line, jobs: ipcbus.Channel) -> str:
    """Receive a channel in a message and try to receive from it."""
    line.say("ready")
    channel = jobs.recv(timeout=PATIENCE)
    try:
        channel.recv(timeout=0)
    except ipcbus.Unsupported:
        channel.send("sent", timeout=PATIENCE)
        return "limited"
    return "both"


def obey(line: Line) -> None:
    """Do with a bus what the check says, one verb at a time, and tell it what came of it: a value, or the error."""
    bus: ipcbus.Bus | None = None
    while True:
        verb, *args = line.hear(60.0)
        try:
            if verb == "end":
                if bus is not None:
                    bus.close()
                return
            if verb == "home":
                bus = ipcbus.Bus(*args[:1], address=args[1])
                line.say(bus.address)
            elif verb == "connect":
                bus = ipcbus.Bus.connect(*args)
                line.say(bus.address)
            elif verb == "take":
                (bus,) = args
                line.say(None)
            else:
                assert bus is not None
                channel = bus.channel(args[0])
                if verb == "send":
                    channel.send(args[1], timeout=PATIENCE)
                elif verb == "close":
                    channel.close()
                line.say(channel.recv(timeout=PATIENCE) if verb == "recv" else channel.url)
        except ipcbus.IpcbusError as error:
            line.say(error)


def make_orphan(line: Line, address: str) -> None:
    """Keep a bus, fork a child that goes on, and say its pid."""
    bus = ipcbus.Bus(address=address)
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    line.say(child)
    line.hear(60.0)
    bus.close()


def attach_until_it_fails(line: Line, address: str) -> None:
    """Open one name after another until the home is gone, whenever the check says so; say how it failed, and what took long."""
    while line.hear(60.0) == "go":
        longest, count, started = 0.0, 0, time.monotonic()
        try:
            bus = ipcbus.Bus.connect(address)
            while True:
                with bus.channel(f"x{count}") as channel:
                    channel.sender.ready()
                count += 1
                now = time.monotonic()
                longest, started = max(longest, now - started), now
        except ipcbus.IpcbusError as error:
            line.say((type(error).__name__, str(error), max(longest, time.monotonic() - started), count))


def share_over_and_over(line: Line, address: str, jobs: ipcbus.Channel, url: str) -> None:
    """Make channels, leave a message in each, and send them away in messages, without end."""
    ipcbus.Bus.connect(address)
    line.say("connected")
    while True:
        with ipcbus.open(url) as own:
            own.send("in it", timeout=PATIENCE)
            jobs.send([own], timeout=PATIENCE)


def answer_and_close(line: Line, jobs: ipcbus.Channel) -> None:  # noqa: ARG001  every such function gets the line
    """Answer each job through the channel that came with it, and close that."""
    for number, reply_to in jobs:
        with reply_to:
            reply_to.send(number, timeout=PATIENCE)


def bus_facts(line: Line, address: str) -> list[ipcbus.ChannelFacts]:  # noqa: ARG001  every function that a child runs gets the line
    """Return what is known of the channels of a bus."""
    return ipcbus.Bus.connect(address).channels()


def send_when_told(line: Line, channel: ipcbus.Channel) -> None:
    """Open nothing before the check says so."""
    line.say("ready")
    line.hear()
    channel.send("sent", timeout=PATIENCE)


def send_by_name(line: Line, address: str, name: str, values: list[Any]) -> None:
    """Send values to a channel of a bus, each when the check says so."""
    channel = ipcbus.Bus.connect(address).channel(name)
    for value in values:
        line.say("ready")
        line.hear()
        channel.send(value, timeout=PATIENCE)


def tap_until_end(line: Line, address: str, name: str, capacity: int = 1024) -> tuple[list[Any], int]:
    """Tap a channel until it is shut down; return the copies and how many were missed."""
    with ipcbus.Bus.connect(address).tap(name, capacity) as tap:
        line.say("tapping")
        return [message.body for message in tap], tap.missed
