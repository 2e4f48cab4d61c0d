"""Prints every target that the project promises to keep beside what is measured: ``python benchmarks/targets.py``.

A target is a ratio of two cases that are measured in turn, round by round; the figure is the median of the rounds' ratios.
Targets of a transport that is not installed, and of peers that are not, are named and left out. Exit status 1 when one is
missed. Give the machine to it alone: what runs beside it takes part.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import topics

from ipcbus.bench.case import Case
from ipcbus.bench.crew import carrier_of
from ipcbus.bench.figures import ratio
from ipcbus.bench.foreign import PEERS
from ipcbus.bench.machine import describe, sentence
from ipcbus.bench.messages import Message
from ipcbus.bench.run import Effort, run
from ipcbus.errors import TransportUnavailable, UnknownTransport

if TYPE_CHECKING:
    from ipcbus.bench.figures import Result

BYTES, DICT, MIB, ARRAY = Message("bytes", 64), Message("dict", 64), Message("bytes", 1 << 20), Message("array", 64 << 20)
QUEUE, PIPE, ZMQ, ZMQ_BYTES = "multiprocessing.Queue", "multiprocessing.Pipe", "pyzmq send_pyobj", "pyzmq send"


@dataclass(frozen=True)
class Target:
    """A ratio to keep.

    ``least`` is how many times faster the first case must be than the second; ``most`` how many times its time at most.
    """

    ours: Case
    theirs: Case
    least: float = 0.0
    most: float | None = None

    @property
    def words(self) -> str:
        kept = self.ours
        crowd = f", {kept.senders} senders" if kept.senders > 1 else ""
        return f"{kept.scenario}{crowd}, {kept.message.label}"

    @property
    def against(self) -> str:
        if self.theirs.carrier == self.ours.carrier:
            return "one sender" if self.ours.senders > 1 else "two channels"
        return self.theirs.name

    def holds(self, faster: float) -> bool:
        return faster >= self.least if self.most is None else 1 / faster <= self.most

    def say(self, faster: float) -> tuple[str, str]:
        """Return the figure and the target, in words."""
        if self.most is None:
            return f"{faster:.2f}x as fast", f"≥ {self.least:g}x"
        return f"{1 / faster:.2f}x the time", f"≤ {self.most:g}x"


def one_way(carrier: str, message: Message, peer: str, least: float) -> Target:
    scenario = "arrays" if message.kind == "array" else "one-way"
    return Target(Case(scenario, carrier, message), Case(scenario, peer, message), least)


def fan_in(carrier: str) -> Target:
    return Target(Case("fan-in", carrier, BYTES, senders=8), Case("fan-in", carrier, BYTES), least=0.5)


def request(carrier: str) -> Target:
    return Target(Case("request", carrier, DICT), Case("round-trip", carrier, DICT), most=1.5)


def copies(carrier: str) -> Target:
    return Target(Case("arrays", carrier, ARRAY), Case("arrays", "memcpy", ARRAY), most=4.0)


TARGETS = (
    one_way("pipe:", BYTES, PIPE, 2.0),
    one_way("pipe:", DICT, PIPE, 1.5),
    one_way("queue:", BYTES, QUEUE, 0.8),
    one_way("queue:", DICT, QUEUE, 0.8),
    one_way("zmq:", BYTES, ZMQ, 0.8),
    one_way("zmq:", DICT, ZMQ, 0.8),
    one_way("unix:", BYTES, QUEUE, 2.0),
    one_way("unix:", DICT, QUEUE, 2.0),
    one_way("unix:", ARRAY, QUEUE, 5.0),
    copies("unix:"),
    fan_in("unix:"),
    one_way("shm:", BYTES, QUEUE, 10.0),
    one_way("shm:", BYTES, ZMQ_BYTES, 2.5),
    one_way("shm:", BYTES, "faster-fifo", 8.0),
    one_way("shm:", BYTES, "iceoryx2", 6.0),
    one_way("shm:", DICT, QUEUE, 2.5),
    one_way("shm:", MIB, QUEUE, 10.0),
    one_way("shm:", MIB, "iceoryx2", 1.0),
    one_way("shm:", ARRAY, QUEUE, 5.0),
    copies("shm:"),
    fan_in("shm:"),
    Target(Case("round-trip", "shm:", BYTES), Case("round-trip", PIPE, BYTES), most=0.2),
    Target(Case("round-trip", "shm:", BYTES), Case("round-trip", "iceoryx2", BYTES), most=1.0),
    request("pipe:"),
    request("queue:"),
    request("unix:"),
    request("zmq:"),
    request("shm:"),
    Target(Case("request", "pipe:", DICT), Case("request", "Manager proxy", DICT), least=1.0),
    Target(Case("request", "shm:", DICT), Case("request", "Manager proxy", DICT), least=3.0),
)
"""All that is measured between processes; what topics promise is in ``topics.py``."""


def absent(case: Case) -> str | None:
    """Say why a case cannot be measured here, None if it can."""
    peer = PEERS.get(case.carrier)
    if peer is not None:
        return peer.missing()
    try:
        carrier_of(case)
    except (UnknownTransport, TransportUnavailable) as error:
        return str(error)
    return None


def groups(targets: list[Target]) -> list[list[Target]]:
    """Arrange targets so that what is compared is measured shortly after each other."""
    found: dict[tuple[object, ...], list[Target]] = {}
    for target in targets:
        found.setdefault((target.theirs.scenario, target.ours.scenario, target.ours.message, target.ours.senders), []).append(
            target
        )
    return list(found.values())


def check(targets: list[Target], effort: Effort, *, print_rows: bool = True) -> tuple[list[dict[str, object]], bool]:
    """Measure and print targets; return their figures, and whether all hold."""
    rows: list[dict[str, object]] = []
    kept = True
    for group in groups(targets):
        cases = list(dict.fromkeys(case for target in group for case in (target.ours, target.theirs)))
        results: dict[Case, Result] = {result.case: result for result in run(cases, effort)}
        for target in group:
            faster = ratio(results[target.ours], results[target.theirs])
            problem = results[target.ours].problem or results[target.theirs].problem
            holds = faster is not None and target.holds(faster)
            kept &= holds
            figure, wanted = target.say(faster) if faster is not None else (problem or "?", target.say(1)[1])
            row = {"what": target.words, "channel": target.ours.name, "against": target.against, "figure": figure}
            rows.append({**row, "target": wanted, "holds": holds, "faster": faster})
            if print_rows:
                print(line(target.ours.name, target.words, target.against, figure, wanted, holds=holds), flush=True)
    return rows, kept


def line(channel: str, words: str, against: str, figure: str, wanted: str, *, holds: bool) -> str:
    return f"{channel:7} {words:32} {against:22} {figure:>16}  {wanted:>7}  {'ok' if holds else 'MISSED'}"


def check_topics(effort: Effort, only: str | None) -> tuple[list[dict[str, object]], bool]:
    """Measure and print what a topic may cost over bare sends."""
    rows: list[dict[str, object]] = []
    kept = True
    for transport in topics.TRANSPORTS:
        if only is not None and only not in f"{transport}: topics":
            continue
        _, _, factor = topics.measure(
            transport, subscribers=50, rounds=max(effort.rounds, 1), messages=100 if effort.rounds > 1 else 5
        )
        holds = factor <= topics.TARGET
        kept &= holds
        row = {"what": "publish to 50 subscribers", "channel": f"{transport}:", "against": "bare sends"}
        figure, wanted = f"{factor:.2f}x the time", f"≤ {topics.TARGET:g}x"
        rows.append({**row, "figure": figure, "target": wanted, "holds": holds, "faster": 1 / factor})
        print(line(f"{transport}:", "publish to 50 subscribers", "bare sends", figure, wanted, holds=holds), flush=True)
    return rows, kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="what one round of a case should take")
    parser.add_argument("--only", metavar="TEXT", help="only targets whose line has this in it, such as 'unix:' or 'request'")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="one short round, and exit 0 whatever the ratios are")
    said = parser.parse_args()
    effort = Effort(1, 0.01) if said.smoke else Effort(said.rounds, said.seconds)
    chosen = [t for t in TARGETS if said.only is None or said.only in f"{t.ours.name} {t.words} {t.against}"]
    if said.smoke:
        chosen = [smaller(target) for target in chosen]
    machine = describe(dict.fromkeys(case.carrier for target in chosen for case in (target.ours, target.theirs)))
    print(f"{sentence(machine)}\nmedians of {effort.rounds} rounds in turn, {effort.seconds:g} s each\n")
    missing = {reason: target for target in chosen if (reason := absent(target.ours) or absent(target.theirs))}
    rows, kept = check([target for target in chosen if not (absent(target.ours) or absent(target.theirs))], effort)
    more, fine = check_topics(effort, said.only)
    for reason in missing:
        number = sum(reason in (absent(target.ours), absent(target.theirs)) for target in chosen)
        print(f"not measured, {number} targets: {reason}")
    if said.json:
        said.json.write_text(json.dumps({"machine": machine, "targets": rows + more}, indent=2))
    failed = [row for row in rows if row["faster"] is None]
    return 1 if failed or not (said.smoke or (kept and fine)) else 0


def smaller(target: Target) -> Target:
    """Return a target with arrays of a megabyte instead of sixty-four."""
    if target.ours.message != ARRAY:
        return target
    small = Message("array", 1 << 20)
    return replace(target, ours=replace(target.ours, message=small), theirs=replace(target.theirs, message=small))


if __name__ == "__main__":
    sys.exit(main())
