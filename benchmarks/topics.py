"""What publishing costs over handing the same frame to the same subscribers by bare sends, which encode nothing.

    python benchmarks/topics.py [--subscribers 50] [--rounds 9] [--messages 100] [--only pipe]

Publisher and subscribers are one process, so that nobody competes for the processor; between the timed parts the
subscribers receive. Bare and published rounds alternate, and the ratio is the median of the rounds' ratios. Exit status 1
when the target is missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import ipcbus
from ipcbus.bus import route

TARGET = 1.3
"""Times the bare sends that one publish may cost."""
MESSAGE = {"id": 12345, "name": "sensor-7", "value": 21.5, "tags": ["a", "b"]}
TRANSPORTS = ("shm", "unix", "pipe", "queue", "zmq")


def bare(fan: Any, messages: int) -> float:
    """Return the seconds per message of sending one frame to everybody, again and again."""
    ((codec, sends),) = fan
    frame = codec.encode(MESSAGE, {"topic": "prices.eu.dax"})
    functions = [send for send, _ in sends]
    started = perf_counter()
    for _ in range(messages):
        for send in functions:
            send(frame, 0)
    return (perf_counter() - started) / messages


def published(topic: ipcbus.Topic, messages: int) -> float:
    """Return the seconds per message of publishing."""
    publish = topic.publish
    started = perf_counter()
    for _ in range(messages):
        publish(MESSAGE)
    return (perf_counter() - started) / messages


def measure(transport: str, subscribers: int, rounds: int, messages: int) -> tuple[float, float, float]:
    """Return the medians of the seconds bare, the seconds published, and the ratio."""
    with ipcbus.Bus({"topics": {"*": f"{transport}:"}}) as bus, ExitStack() as stack:
        subs = [stack.enter_context(bus.topic("prices.>").subscribe(capacity=2 * messages)) for _ in range(subscribers)]
        topic = bus.topic("prices.eu.dax")
        assert topic.subscribers() == subscribers
        fan = route.find(bus.address, topic.name)._fan
        rows = []
        for turn in range(rounds + 1):
            times = [0.0, 0.0]
            for number in (0, 1) if turn % 2 else (1, 0):
                times[number] = published(topic, messages) if number else bare(fan, messages)
                for sub in subs:
                    for _ in range(messages):
                        sub.recv(timeout=10)
            if turn:  # the first opens connections
                rows.append((times[0], times[1], times[1] / times[0]))
        assert not any(sub.dropped for sub in subs)
    for thread in route.partings():
        thread.join()
    first, second, third = (statistics.median(column) for column in zip(*rows, strict=True))
    return first, second, third


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--only", choices=TRANSPORTS)
    said = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65_536), hard))
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, {said.subscribers} subscribers, µs per message")
    print(f"{'transport':<10} {'bare sends':>10} {'publish':>10} {'ratio':>6} {'target':>6}")
    missed = False
    for transport in [said.only] if said.only else TRANSPORTS:
        plain, whole, ratio = measure(transport, said.subscribers, said.rounds, said.messages)
        print(f"{transport:<10} {plain * 1e6:>10.1f} {whole * 1e6:>10.1f} {ratio:>6.2f} {TARGET:>6.2f}")
        missed |= ratio > TARGET
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
