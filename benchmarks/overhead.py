"""What a Channel costs over its own bare primitive: one sender process, one receiver process, small messages.

    python benchmarks/overhead.py [--rounds 7] [--messages 60000] [--only pipe] [--json FILE]

Every figure is the median of interleaved rounds, each in processes of its own: bare, channel, bare, channel ... so that
a drift of the machine's speed touches both alike. The receiver takes the time from the first message to the last. The
ratio is the median of the rounds' ratios; the targets are those the project promises to keep. Exit status 1 when one
is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipcbus

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGES: dict[str, Any] = {
    "64 bytes": bytes(range(64)),
    "small dict": {"id": 12345, "name": "sensor-7", "value": 21.5, "tags": ["a", "b"]},
}


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    transport: str
    message: str
    bare: str
    bare_rate: float
    rate: float
    ratio: float
    spread: tuple[float, float]
    target: float

    @property
    def ok(self) -> bool:
        return self.ratio >= self.target


@dataclass(frozen=True)
class Case:
    """A channel and the primitive it is held against: each a function that makes a sending and a receiving callable."""

    transport: str
    bare: str
    target: float
    make_bare: Callable[[], tuple[Callable[[], Callable[[Any], None]], Callable[[], Callable[[], Any]]]]

    def make_channel(self) -> tuple[Callable[[], Callable[[Any], None]], Callable[[], Callable[[], Any]]]:
        channel = ipcbus.open(f"{self.transport}:")
        return (lambda: channel.send), (lambda: channel.recv)


def bare_pipe() -> Any:
    reading, writing = mp.Pipe(duplex=False)
    return (lambda: writing.send), (lambda: reading.recv)


def bare_queue() -> Any:
    queue = mp.Queue(1024)
    return (lambda: queue.put), (lambda: queue.get)


def bare_zmq() -> Any:
    import zmq

    path = f"ipc://{tempfile.mkdtemp(prefix='bench-')}/s"

    def sender() -> Callable[[Any], None]:
        socket = zmq.Context.instance().socket(zmq.PUSH)
        socket.connect(path)
        return lambda obj: socket.send_pyobj(obj, protocol=5)

    def receiver() -> Callable[[], Any]:
        socket = zmq.Context.instance().socket(zmq.PULL)
        socket.bind(path)
        return socket.recv_pyobj

    return sender, receiver


CASES = [
    Case("pipe", "multiprocessing.Pipe", 1.5, bare_pipe),
    Case("unix", "multiprocessing.Queue", 2.0, bare_queue),
    Case("queue", "multiprocessing.Queue", 0.8, bare_queue),
    Case("zmq", "pyzmq send_pyobj", 0.8, bare_zmq),
]


def one_way(make: Callable[[], Any], message: Any, count: int) -> float:
    """Return messages per second from one process to another."""
    context = mp.get_context("fork")
    sender, receiver = make()
    reading, writing = context.Pipe(duplex=False)

    def receive() -> None:
        recv = receiver()
        recv()
        start = time.perf_counter()
        for _ in range(count):
            recv()
        writing.send(time.perf_counter() - start)

    def send() -> None:
        put = sender()
        for _ in range(count + 1):
            put(message)
        done.wait(60)

    done = context.Event()
    processes = [context.Process(target=receive), context.Process(target=send)]
    for process in processes:
        process.start()
    if not reading.poll(120):
        sys.exit(f"no result within 120 s: {make}")
    seconds = reading.recv()
    done.set()
    for process in processes:
        process.join(10)
    return float(count / seconds)


def measure(case: Case, name: str, rounds: int, count: int) -> Row:
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(one_way(case.make_bare, MESSAGES[name], count))
        ours.append(one_way(case.make_channel, MESSAGES[name], count))
    ratios = sorted(mine / theirs for mine, theirs in zip(ours, bare, strict=True))
    return Row(
        transport=f"{case.transport}:",
        message=name,
        bare=case.bare,
        bare_rate=statistics.median(bare),
        rate=statistics.median(ours),
        ratio=statistics.median(ratios),
        spread=(ratios[0], ratios[-1]),
        target=case.target,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--only", help="one transport's scheme")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-targets", action="store_true", help="print ratios and exit 0 whatever they are")
    arguments = parser.parse_args()
    print(
        f"ipcbus {ipcbus.__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}, "
        f"{os.cpu_count()} cores; medians of {arguments.rounds} interleaved rounds of {arguments.messages} messages\n"
    )
    titles = ("channel", "message", "messages/s", "bare primitive", "messages/s")
    print("{:8} {:11} {:>11} {:>22} {:>11}  ratio  spread     target".format(*titles))
    rows = []
    for case in CASES:
        if arguments.only not in (None, case.transport):
            continue
        for name in MESSAGES:
            row = measure(case, name, arguments.rounds, arguments.messages)
            rows.append(row)
            print(
                f"{row.transport:8} {row.message:11} {row.rate:11,.0f} {row.bare:>22} {row.bare_rate:11,.0f} {row.ratio:6.2f}"
                f"  {row.spread[0]:4.2f}-{row.spread[1]:4.2f}  {'≥' if row.ok else 'MISSED ≥'} {row.target}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    return 0 if arguments.no_targets or all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
