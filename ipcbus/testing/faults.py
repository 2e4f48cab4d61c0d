"""Kill trials: processes send and receive, one of them is killed at a random instant, and the rest is counted.

Senders write down what ``send`` accepted, and receivers what arrived, in shared memory, which outlives both. From that
follows what was lost, came twice, out of order or torn, and who was stuck. The same trial runs over a bare
``multiprocessing.Queue``, to compare with.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ipcbus.errors import ChannelBroken, ChannelEmpty, ChannelFull, PeerDied
from ipcbus.testing.children import Line, pattern
from ipcbus.testing.subject import Child, Subject

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BareQueue", "Report", "Trial", "kills", "run_trials", "table"]

KILLS = "IPCBUS_KILLS"
"""The environment variable that says how many trials are wanted of each kind."""


def kills(usual: int = 5) -> int:
    """Return how many processes to kill in one test: what the environment asks for, or a number that is soon done."""
    return int(os.environ.get(KILLS, usual))


SIZES = (64, 8_192, 200_000)
"""Bytes of the messages, in turn."""
LIMIT = 20_000
"""Messages of one sender; more are not sent."""
CALL = 0.5
"""Seconds each call is given."""
_POLL = 0.05
"""Seconds a receiver waits before it looks whether it is to finish."""
STUCK = 1.0
"""Seconds a call may overrun what it was given, before it counts as stuck."""
_RUN = (0.002, 0.06)
"""Seconds after which the victim is killed, at random between these."""
_AFTER = 0.03
"""Seconds the others go on after the kill, before they are asked to finish."""


class BareQueue:
    """A ``multiprocessing.Queue`` that can be tried like a channel."""

    def __init__(self, capacity: int) -> None:
        self._queue: Any = multiprocessing.get_context("forkserver").Queue(capacity)

    def send(self, obj: Any, timeout: float) -> None:
        """Put."""
        try:
            self._queue.put(obj, timeout=timeout)
        except queue.Full as error:
            raise ChannelFull("full") from error

    def recv(self, timeout: float) -> Any:
        """Get."""
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty as error:
            raise ChannelEmpty("empty") from error

    def close(self) -> None:
        """Close."""
        self._queue.close()


class _Marks:
    """What the processes of one trial write down."""

    def __init__(self, senders: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.accepted = context.RawArray("q", senders)
        self.last = context.RawArray("q", [-1] * senders)
        self.arrived = context.RawArray("B", senders * LIMIT)
        self.torn = context.RawValue("q", 0)
        self.reordered = context.RawValue("q", 0)
        self.phase = context.RawValue("q", 0)
        """0: go on, 1: senders finish, 2: receivers finish when there is nothing more."""


@dataclass
class Trial:
    """What became of one trial. All counts are of messages."""

    seed: int
    stuck: list[str] = field(default_factory=list)
    """Survivors that did not come back from a call in time."""
    accepted: int = 0
    """Of all senders."""
    received: int = 0
    lost: int = 0
    """Accepted of surviving senders and never received."""
    lost_of_victim: int = 0
    """Accepted of the sender that was killed and never received."""
    duplicated: int = 0
    reordered: int = 0
    torn: int = 0
    unexpected: int = 0
    """Received and never accepted of a survivor, beyond the one whose send was not over."""
    overrun: float = 0.0
    """Seconds by which the slowest call overran its timeout."""
    errors: Counter[str] = field(default_factory=Counter)
    """What survivors were told, by class."""
    succeeded: bool = True
    """Whether a successor of a killed receiver received."""


@dataclass
class Report:
    """Trials of one kind."""

    name: str
    victim: str
    trials: list[Trial]

    def total(self, count: str) -> int:
        """Return the sum of a count over all trials."""
        return sum(int(getattr(trial, count)) for trial in self.trials)

    @property
    def stuck(self) -> list[Trial]:
        """Trials in which a survivor was stuck."""
        return [trial for trial in self.trials if trial.stuck]

    @property
    def errors(self) -> Counter[str]:
        """What survivors were told, over all trials."""
        return sum((trial.errors for trial in self.trials), Counter())

    def row(self) -> tuple[str, ...]:
        """Return the report as the texts of a table's row."""
        worst = max((trial.overrun for trial in self.trials), default=0.0)
        counts = (self.total(name) for name in ("accepted", "lost", "lost_of_victim", "duplicated", "reordered", "torn"))
        told = ", ".join(f"{name} {count}" for name, count in sorted(self.errors.items())) or "nothing"
        return (
            self.name,
            self.victim,
            str(len(self.trials)),
            str(len(self.stuck)),
            *map(str, counts),
            f"{worst * 1000:.0f}",
            told,
        )


def table(reports: list[Report]) -> str:
    """Return reports as a plain text table."""
    head = (
        "transport",
        "killed",
        "trials",
        "stuck",
        "accepted",
        "lost",
        "victim's",
        "twice",
        "order",
        "torn",
        "late ms",
        "told",
    )
    rows = [head, *(report.row() for report in reports)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def run_trials(
    url: str | Callable[[], Any],
    victim: Literal["sender", "receiver"],
    count: int,
    *,
    senders: int = 2,
    receivers: int = 1,
    capacity: int = 16,
    seed: int = 0,
) -> Report:
    """Run trials.

    Args:
        url: the channel URL, or :class:`BareQueue`.
        victim: whom to kill. Of a killed receiver that was the only one, a successor is started.
        count: how many trials.
        senders: sending processes.
        receivers: receiving processes; more than one asks for a transport with ``many_receivers``.
        capacity: of the channel.
        seed: of the first trial; each has the next one.
    """
    trials = [_trial(url, victim, senders, receivers, capacity, seed + n) for n in range(count)]
    name = (
        "multiprocessing.Queue"
        if isinstance(url, type)
        else url
        if isinstance(url, str)
        else Subject(url).transport.scheme + ":"
    )
    return Report(name, victim, trials)


def _trial(url: str | Callable[[], Any], victim: str, senders: int, receivers: int, capacity: int, seed: int) -> Trial:
    moments = random.Random(seed)  # noqa: S311  instants, not secrets
    marks, trial = _Marks(senders), Trial(seed)
    with Subject(url, "forkserver") as subject:
        channel: Any
        if isinstance(url, type):
            channel = BareQueue(capacity)
        else:
            channel = subject.open(capacity=capacity, receivers="many" if receivers > 1 else "one")
        takers = [subject.start(receive, channel, marks, receivers == 1) for _ in range(receivers)]
        givers = [subject.start(send, channel, number, marks) for number in range(senders)]
        for child in (*takers, *givers):
            child.hear()
        killed = (givers if victim == "sender" else takers).pop(0)
        time.sleep(moments.uniform(*_RUN))  # the random instant
        killed.kill()
        before = sum(marks.arrived)
        if victim == "receiver" and receivers == 1:
            successor = subject.start(receive, channel, marks, True)  # noqa: FBT003  as above
            successor.hear()
            takers.append(successor)
        time.sleep(_AFTER)
        until = time.monotonic() + CALL + STUCK
        while sum(marks.arrived) <= before and time.monotonic() < until:
            time.sleep(_AFTER)  # on a busy machine it takes longer until something arrives
        marks.phase.value = 1
        _finish(trial, givers, "sender")
        marks.phase.value = 2
        _finish(trial, takers, "receiver")
        if victim == "receiver":
            trial.succeeded = sum(marks.arrived) > before
        channel.close()
    _count(trial, marks, senders, 0 if victim == "sender" else None)
    return trial


def _finish(trial: Trial, processes: list[Child], role: str) -> None:
    until = time.monotonic() + CALL + STUCK
    for process in processes:
        try:
            errors, overrun = process.result(max(0.1, until - time.monotonic()))
        except AssertionError as error:
            trial.stuck.append(f"{role}: {error}")
            process.kill()
            continue
        trial.errors.update(errors)
        trial.overrun = max(trial.overrun, overrun)
        if overrun > STUCK:
            trial.stuck.append(f"{role}: a call overran its timeout of {CALL} s by {overrun:.1f} s")


def _count(trial: Trial, marks: _Marks, senders: int, victim: int | None) -> None:
    trial.torn, trial.reordered = marks.torn.value, marks.reordered.value
    for number in range(senders):
        arrived = marks.arrived[number * LIMIT : (number + 1) * LIMIT]
        accepted = marks.accepted[number]
        trial.accepted += accepted
        trial.received += sum(1 for times in arrived if times)
        trial.duplicated += sum(1 for times in arrived if times > 1)
        # The message after the last accepted one may have been sent by a call that was not over when it was killed.
        trial.unexpected += sum(1 for times in arrived[accepted + 1 :] if times)
        lost = sum(1 for times in arrived[:accepted] if not times)
        if number == victim:
            trial.lost_of_victim += lost
        else:
            trial.lost += lost


def send(line: Line, channel: Any, number: int, marks: _Marks) -> tuple[Counter[str], float]:
    """Send numbered messages until told to stop; write down what was accepted; return errors and the worst overrun."""
    errors: Counter[str] = Counter()
    overrun, n = 0.0, 0
    line.say("ready")
    while not marks.phase.value and n < LIMIT:
        started = time.monotonic()
        try:
            channel.send((number, n, pattern(SIZES[n % 3], n)), timeout=CALL)
            n += 1
            marks.accepted[number] = n
        except (ChannelFull, PeerDied) as error:
            errors[type(error).__name__] += 1  # nothing was sent: tried again, though not at full speed
            time.sleep(_AFTER / 10)
        except ChannelBroken as error:
            errors[type(error).__name__] += 1
            break
        finally:
            overrun = max(overrun, time.monotonic() - started - CALL)
    channel.close()
    return errors, overrun


def receive(line: Line, channel: Any, marks: _Marks, alone: bool) -> tuple[Counter[str], float]:  # noqa: FBT001  goes through a pickle
    """Receive until nothing more will come; write down what arrived; return errors (none) and the worst overrun."""
    overrun = 0.0
    line.say("ready")
    while True:
        over = marks.phase.value == 2  # looked at before receiving: what was sent before is found by it
        started = time.monotonic()
        try:
            number, n, data = channel.recv(timeout=_POLL)
        except ChannelEmpty:
            if over:
                break
            continue
        finally:
            overrun = max(overrun, time.monotonic() - started - _POLL)
        marks.arrived[number * LIMIT + n] += 1
        if data != pattern(SIZES[n % 3], n):
            marks.torn.value += 1
        if alone:
            if n <= marks.last[number]:
                marks.reordered.value += 1
            marks.last[number] = n
    channel.close()
    return Counter(), overrun
