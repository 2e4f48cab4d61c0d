"""What the processes of the checks of the bus run; as in :mod:`ipcbus.testing.children`."""

from __future__ import annotations

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
