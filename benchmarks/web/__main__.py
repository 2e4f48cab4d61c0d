"""Rooms that talk, over front ends, a service and a transport: deliveries, latency, processor, memory, and kills.

    python benchmarks/web [load] [hold] [kill] [kill-front] [--transport unix:] [--peers] [--quick] [--json]

``load``: 400 clients in rooms of 50, 1,500 messages/s in, which is 75,000 deliveries/s; the same against one bare process in
the same run. ``hold``: 10,000 connections, and what they cost the front ends. ``kill``: kill -9 of the service at full load,
again and again. ``kill-front``: of one front end, whose clients come back while those of the others go on. Without a name, all
of them. ``--peers`` also loads what people use instead (extra ``bench``, redis-server).

The load comes from a program for Node with npm's ``ws``, which is installed once, in a cache of its own. Run it on a quiet
machine; figures of two processors that also run the generator are for comparing. Exit status 1: a target was missed; 2: it
cannot be run here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import peers
from stage import CannotRunError, Load, Server, cpu, memory

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Figure:
    """One line of the table."""

    what: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False

    @property
    def missed(self) -> bool:
        if self.target is None:
            return False
        return self.value < self.target if self.at_least else self.value > self.target

    def __str__(self) -> str:
        target = "" if self.target is None else f"{'≥' if self.at_least else '≤'} {self.target:g}"
        return f"  {self.what:<44} {self.value:>12,.4g} {self.unit:<12} {target:<8} {'MISSED' if self.missed else ''}".rstrip()


def say(figures: list[Figure], title: str, *lines: Figure) -> None:
    if not OPTIONS.json:
        print(title)
        for line in lines:
            print(line, flush=True)
    for line in lines:
        line.what = f"{title}: {line.what}"
    figures += lines


def is_service(name: str) -> bool:
    return name.startswith("chat")


def ours(transport: str) -> Server:
    front = dict(OPTIONS.front)
    plan = {"transport": transport, "fronts": OPTIONS.fronts, "service": OPTIONS.service, "path": OPTIONS.path, "front": front}
    return Server("ours.py", json.dumps(plan))


# ---------------------------------------------------------------------- load


def talk(server: Server, seconds: float) -> tuple[dict[str, Any], dict[str, float]]:
    """Have the rooms talk; return what the generator found, and microseconds of processor per delivery by process."""
    plan = {"clients": OPTIONS.clients, "room": OPTIONS.room, "rate": OPTIONS.rate, "seconds": seconds}
    with server, Load(server, **plan) as load:
        load.opened()
        pids = server.pids()
        load.say("load")
        load.until("load")
        before = cpu(pids)
        done = load.until("done", seconds + 60)
        after = cpu(pids)
    return done, {name: (after[name] - before[name]) / max(1, done["delivered"]) * 1e6 for name in pids}


def run_load(figures: list[Figure]) -> None:
    bare, cost = talk(Server("bare.py"), OPTIONS.seconds)
    floor = cost["bare"]
    say(figures, "load, one bare process", *described(bare), Figure("processor per delivery", floor, "µs"))
    for transport in OPTIONS.transport:
        done, costs = talk(ours(transport), OPTIONS.seconds)
        fronts = sum(cost for name, cost in costs.items() if name.startswith("front"))
        quick = transport.startswith(("unix", "shm"))
        say(
            figures,
            f"load, {transport}",
            *described(done, p99=10.0 if quick else None, share=100.0),
            Figure("processor per delivery, all processes", sum(costs.values()), "µs", 10.0),
            Figure("  of which the service", sum(cost for name, cost in costs.items() if is_service(name)), "µs"),
            Figure("  of which the front ends", fronts, "µs"),
            Figure("front ends, times the bare process", fronts / floor, "", 1.3),
        )
    for peer in peers.PATHS if OPTIONS.peers else ():
        if importlib.util.find_spec(peers.NEEDS[peer]) is None:
            print(f"load, {peer}: not installed (extra bench)", file=sys.stderr)
            continue
        dialect = "socketio" if peer == "socketio" else "json"
        done, costs = talk(Server("peers.py", peer, dialect=dialect), OPTIONS.seconds)
        total = sum(costs.values())
        say(figures, f"load, {peer} and Redis", *described(done), Figure("processor per delivery, all processes", total, "µs"))


def described(done: dict[str, Any], p99: float | None = None, share: float | None = None) -> list[Figure]:
    return [
        Figure("deliveries per second", done["delivered"] / done["seconds"], ""),
        Figure("delivered", 100.0 * done["delivered"] / done["expected"], "%", share, at_least=True),
        Figure("latency, median", done["p50"], "ms"),
        Figure("latency, 99 %", done["p99"], "ms", p99),
        Figure("longest silence of a client", done["silence"], "ms"),
    ]


# ---------------------------------------------------------------------- hold


def run_hold(figures: list[Figure]) -> None:
    count = OPTIONS.connections
    with ours(OPTIONS.transport[0]) as server:
        before = memory(server.pids())
        with Load(server, clients=count, room=OPTIONS.room, ramp=OPTIONS.ramp) as load:
            opened = load.opened(count / OPTIONS.ramp + 60)
            after = memory(server.pids())
    grown = {name: after[name] - before[name] for name in after}
    fronts = sum(size for name, size in grown.items() if name.startswith("front"))
    services = sum(size for name, size in grown.items() if is_service(name))
    say(
        figures,
        f"hold, {count:,} connections, {OPTIONS.transport[0]}",
        Figure("opened in", opened["seconds"], "s"),
        Figure("memory of the front ends, each connection", fronts / count / 1024, "KiB", 25.0),
        Figure("memory of the service, each connection", services / count / 1024, "KiB"),
    )


# ---------------------------------------------------------------------- kill


def killing(transport: str, name: str, before: Callable[[int], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Kill a process of the server at full load again and again; return what the generator found, and who is in the rooms.

    Args:
        transport: of the channels.
        name: of the process.
        before: called with its pid before each kill.
    """
    seconds = OPTIONS.kills * OPTIONS.pause + 1.0
    plan = {"clients": OPTIONS.clients, "room": OPTIONS.room, "rate": OPTIONS.rate, "seconds": seconds}
    with ours(transport) as server, Load(server, **plan) as load:
        load.opened()
        load.say("load")
        load.until("load")
        began = monotonic()
        for number in range(OPTIONS.kills):
            sleep(max(0.0, began + 0.5 + number * OPTIONS.pause - monotonic()))
            pid = running(server, name)
            before(pid)
            os.kill(pid, signal.SIGKILL)
        done = load.until("done", seconds + 60)
        load.say("census")
        return done, load.until("census")


def run_kill(figures: list[Figure]) -> None:
    for transport in OPTIONS.transport:
        done, census = killing(transport, "chat", lambda _: None)
        missing = max(0, done["expected"] - done["delivered"])
        say(
            figures,
            f"kill -9 of the service, {OPTIONS.kills} times, {transport}",
            Figure("client sockets lost", done["lost"], "", 0),
            Figure("longest silence of a client", done["silence"], "ms", 250.0),
            Figure("deliveries lost", 100.0 * missing / done["expected"], "%", 0.2),
            full(census),
        )


def run_kill_front(figures: list[Figure]) -> None:
    for transport in OPTIONS.transport:
        theirs: list[int] = []
        done, census = killing(transport, "front-1", lambda pid, note=theirs.append: note(connections(pid)))
        say(
            figures,
            f"kill -9 of a front end, {OPTIONS.kills} times, {transport}",
            Figure("connections of the front ends that were killed", sum(theirs), ""),
            Figure("client sockets lost of other front ends", max(0, done["lost"] - sum(theirs)), "", 0),
            Figure("clients that kept theirs", done["calm"], "", 1, at_least=True),
            Figure("deliveries among those", done["due"], "", 1, at_least=True),
            Figure("  of which lost", done["missed"], "", 0),
            Figure("  of which came twice", done["twice"], "", 0),
            full(census),
        )


def full(census: dict[str, Any]) -> Figure:
    share = 100.0 * census["full"] / census["rooms"]
    return Figure("rooms with all their members afterwards", share, "%", 100.0, at_least=True)


def connections(pid: int) -> int:
    """Return how many connections of clients a front end has: descriptors of established TCP sockets."""
    established = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "01"}
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            kind, _, inode = str(entry.readlink()).partition("[")
        except FileNotFoundError:
            continue  # closed meanwhile
        count += kind == "socket:" and inode.rstrip("]") in established
    return count


def running(server: Server, name: str) -> int:
    """Return a process of the server, as soon as there is one again."""
    deadline = monotonic() + 10
    while (pid := server.pids().get(name)) is None:
        if monotonic() > deadline:
            raise CannotRunError(f"{name}, which was killed, did not come back")
        sleep(0.01)
    return pid


# ---------------------------------------------------------------------- command line


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="load|hold|kill|kill-front", help="default: all of them")
    parser.add_argument("--transport", action="append", help="URL of the channels; may be given again (default: unix:)")
    parser.add_argument("--fronts", type=int, default=2, help="front ends (default: %(default)s)")
    parser.add_argument("--front", action="append", default=[], type=_pair, metavar="KEY=VALUE", help="anything of [front]")
    parser.add_argument("--service", default="rooms:Rooms", help="what is loaded (default: %(default)s)")
    parser.add_argument("--path", default="/chat")
    parser.add_argument("--clients", type=int, default=400)
    parser.add_argument("--room", type=int, default=50, help="clients in a room (default: %(default)s)")
    parser.add_argument(
        "--rate", type=int, default=1500, help="messages a second, of all clients together (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--connections", type=int, default=10_000, help="for hold (default: %(default)s)")
    parser.add_argument("--ramp", type=int, default=1000, help="connections opened a second, for hold (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=2.5, help="seconds from kill to kill (default: %(default)s)")
    parser.add_argument("--peers", action="store_true", help="load what people use instead, too")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs; the figures mean nothing")
    parser.add_argument("--no-targets", action="store_true", help="exit with 0 whatever the figures are")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    said = parser.parse_args()
    if unknown := set(said.what) - set(RUNS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    said.transport = said.transport or ["unix:"]
    if said.quick:
        small = {"clients": 100, "rate": 200, "seconds": 1.0, "connections": 250, "kills": 2, "ramp": 500}
        vars(said).update(small)
    if said.clients % said.room or said.connections % said.room:
        parser.error("--clients and --connections must be whole rooms")
    return said


RUNS = {"load": run_load, "hold": run_hold, "kill": run_kill, "kill-front": run_kill_front}
OPTIONS = argparse.Namespace()
"""What was said on the command line."""


def main() -> int:
    vars(OPTIONS).update(vars(options()))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine = f"Python {platform.python_version()}, {os.cpu_count()} processors, {OPTIONS.fronts} front ends"
    if not OPTIONS.json:
        print(machine)
    figures: list[Figure] = []
    try:
        for what in OPTIONS.what or RUNS:
            RUNS[what](figures)
    except CannotRunError as error:
        print(f"the benchmark cannot go on: {error}", file=sys.stderr)
        return 2
    missed = [figure.what for figure in figures if figure.missed]
    if OPTIONS.json:
        print(json.dumps({"machine": machine, "figures": [asdict(figure) for figure in figures], "missed": missed}))
    return int(bool(missed) and not OPTIONS.no_targets)


if __name__ == "__main__":
    sys.exit(main())
