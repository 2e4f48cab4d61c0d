"""What a request costs: a round trip through ``Channel.request``, beside what people use today.

    python benchmarks/requests.py [--rounds 7] [--messages 3000] [--only pipe] [--json FILE]

One process asks, another answers with what it got, a small dict. Peers in the same run: two bare channels of the same
transport (one there, one back), a pair of ``multiprocessing.Pipe``, a call of a ``multiprocessing.managers`` proxy, and two
``multiprocessing.Manager().Queue()``. Every figure is the median of interleaved rounds, each in processes of its own.
Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import statistics
import sys
import time
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipcbus

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE = {"id": 12345, "name": "sensor-7", "value": 21.5, "tags": ["a", "b"]}
WITHIN = 1.5
"""Times the round trip of two bare channels that a request may take."""
PATIENCE = 30.0


def by_request(scheme: str) -> tuple[Callable[[], Callable[[Any], Any]], Callable[[], None]]:
    questions = ipcbus.open(f"{scheme}:")
    return (lambda: lambda obj: questions.request(obj, PATIENCE)), lambda: questions.serve(lambda message: message.body)


def by_channels(scheme: str) -> tuple[Callable[[], Callable[[Any], Any]], Callable[[], None]]:
    there, back = ipcbus.open(f"{scheme}:"), ipcbus.open(f"{scheme}:")

    def ask(obj: Any) -> Any:
        there.send(obj)
        return back.recv(PATIENCE)

    def answer() -> None:
        while True:
            back.send(there.recv())

    return (lambda: ask), answer


def by_pipes(_: str) -> tuple[Callable[[], Callable[[Any], Any]], Callable[[], None]]:
    here, other = mp.Pipe()

    def ask(obj: Any) -> Any:
        here.send(obj)
        return here.recv()

    def answer() -> None:
        while True:
            other.send(other.recv())

    return (lambda: ask), answer


class Echo:
    def echo(self, obj: Any) -> Any:
        return obj


class Manager(BaseManager):
    pass


Manager.register("Echo", Echo)


def by_proxy(_: str) -> tuple[Callable[[], Callable[[Any], Any]], Callable[[], None]]:
    def connect() -> Callable[[Any], Any]:
        manager = Manager()
        manager.start()
        proxy: Any = manager.Echo()  # type: ignore[attr-defined]  # made by register
        proxy.manager = manager
        return proxy.echo  # type: ignore[no-any-return]  # a method of the proxy

    return connect, lambda: None


def by_manager_queues(_: str) -> tuple[Callable[[], Callable[[Any], Any]], Callable[[], None]]:
    manager = mp.Manager()
    there, back = manager.Queue(), manager.Queue()

    def ask(obj: Any) -> Any:
        there.put(obj)
        return back.get()

    def answer() -> None:
        keep = manager
        while keep:
            back.put(there.get())

    return (lambda: ask), answer


def round_trip(make: Callable[[str], Any], scheme: str, count: int) -> float:
    """Return seconds for one round trip."""
    connect, answer = make(scheme)
    context = mp.get_context("fork")
    reading, writing = context.Pipe(duplex=False)

    def ask() -> None:
        call = connect()
        for _ in range(50):
            assert call(MESSAGE) == MESSAGE
        start = time.perf_counter()
        for _ in range(count):
            call(MESSAGE)
        writing.send((time.perf_counter() - start) / count)

    asking, answering = context.Process(target=ask), context.Process(target=answer)
    answering.start()
    asking.start()
    try:
        if not reading.poll(120):
            sys.exit(f"no result within 120 s: {make.__name__} {scheme}")
        return float(reading.recv())
    finally:
        asking.join(10)
        answering.kill()
        answering.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--messages", type=int, default=3000)
    parser.add_argument("--only", help="one transport's scheme")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-targets", action="store_true", help="print ratios and exit 0 whatever they are")
    arguments = parser.parse_args()
    print(
        f"ipcbus {ipcbus.__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}, "
        f"{os.cpu_count()} cores; medians of {arguments.rounds} interleaved rounds of {arguments.messages} round trips\n"
    )
    schemes = [
        name
        for name in ipcbus.transports
        if arguments.only in (None, name)
        and (can := ipcbus.transports.get(name).capabilities).crosses_processes
        and not can.addressable
    ]
    ways: list[tuple[str, Callable[[str], Any], str]] = []
    for scheme in schemes:
        ways += [(f"{scheme}: request", by_request, scheme), (f"{scheme}: two channels", by_channels, scheme)]
    ways += [("two Pipe hops", by_pipes, ""), ("Manager proxy", by_proxy, ""), ("Manager().Queue()", by_manager_queues, "")]
    times: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    for _ in range(arguments.rounds):
        for name, make, scheme in ways:
            times[name].append(round_trip(make, scheme, arguments.messages))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, taken in times.items():
        print(f"{name:22} {medians[name] * 1e6:8.1f} us   {min(taken) * 1e6:.1f}-{max(taken) * 1e6:.1f}")
    print()
    ok = True
    for scheme in schemes:
        pairs = zip(times[f"{scheme}: request"], times[f"{scheme}: two channels"], strict=True)
        ratio = statistics.median(mine / bare for mine, bare in pairs)
        met = ratio <= WITHIN
        ok &= met
        print(f"{scheme}: request / two channels {ratio:5.2f}   {'≤' if met else 'MISSED ≤'} {WITHIN}")
        if scheme == "pipe":
            proxied = zip(times["Manager proxy"], times["pipe: request"], strict=True)
            faster = statistics.median(theirs / mine for theirs, mine in proxied)
            ok &= faster > 1
            print(f"pipe: Manager proxy / request {faster:5.2f}   {'>' if faster > 1 else 'MISSED >'} 1")
    if arguments.json:
        arguments.json.write_text(json.dumps(times, indent=2))
    return 0 if ok or arguments.no_targets else 1


if __name__ == "__main__":
    sys.exit(main())
