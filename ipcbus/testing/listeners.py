"""What the processes of the checks of topics run; as in :mod:`ipcbus.testing.children`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.testing.children import PATIENCE

if TYPE_CHECKING:
    from ipcbus.testing.children import Line

END = "end"
"""What ends a listener."""


def publish_in_turn(line: Line, topics: list[ipcbus.Topic], count: int) -> None:
    """Publish numbers, each to the next of several topics, once told to."""
    line.say("ready")
    line.hear()
    for n in range(count):
        topics[n % len(topics)].publish(n, headers={"n": str(n)})


def publish_on_demand(line: Line, topic: ipcbus.Topic) -> None:
    """Publish whatever the check says, and say so, until it says None."""
    line.say("ready")
    while (value := line.hear()) is not None:
        topic.publish(value)
        line.say("published")


def publish_on(line: Line, topic: ipcbus.Topic, marks: Any, number: int) -> None:
    """Publish numbers without a pause until ``marks[1]`` is set; ``marks[0]`` says which publishing was begun last."""
    n = 0
    topic.publish((number, n))
    line.say("ready")
    while not marks[1]:
        n += 1
        marks[0] = n
        topic.publish((number, n))


def listen(line: Line, topic: ipcbus.Topic, capacity: int | None, least: int = 0) -> tuple[list[Any], int]:
    """Subscribe; once told to, receive until ``END`` or, behind so many, nothing; return that and how much was dropped."""
    with topic.subscribe(capacity=capacity) as sub:
        line.say("subscribed")
        line.hear()
        got: list[Any] = []
        try:
            while (value := sub.recv(timeout=PATIENCE if len(got) < least else 1)) != END:
                got.append(value)
        except ipcbus.ChannelEmpty:
            pass  # the end was dropped
        return got, sub.dropped


def keep_home(line: Line, config: dict[str, Any], address: str) -> None:
    """Be the home of a bus until told otherwise."""
    with ipcbus.Bus(config, address=address):
        line.say("home")
        line.hear(6 * PATIENCE)
