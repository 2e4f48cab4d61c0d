"""Crews: the processes of one measurement, and how they are led from phase to phase.

Who leads tells everybody how many messages the next phase has; so all end each phase by themselves, nobody is interrupted
in a call, and a sender lives as long as what it has sent is on its way. Phases grow until one takes long enough, and that
one alone counts.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from multiprocessing.connection import wait
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ipcbus.bench.carriers import Carrier, Ends, Talk, room_for
from ipcbus.bench.case import Case, Outcome, Sample
from ipcbus.bench.channels import ChannelCarrier
from ipcbus.bench.figures import quantile
from ipcbus.bench.foreign import PEERS
from ipcbus.bench.messages import same
from ipcbus.bench.pace import Pace
from ipcbus.errors import IpcbusError
from ipcbus.remedies import say

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess
    from pathlib import Path
    from typing import Self

__all__ = ["carrier_of", "measure"]

_FORK = multiprocessing.get_context("fork")
_ENDING = 5.0
"""Seconds for processes to end that have nothing more to do."""
_MOST_TRIPS = 1_000_000
"""Round trips whose times are kept one by one."""


def carrier_of(case: Case) -> Carrier:
    """Return what a case measures; raises what opening a channel by a URL raises."""
    return PEERS.get(case.carrier) or ChannelCarrier(case.carrier, case.serializer)


def measure(case: Case, seconds: float, place: Path) -> Outcome:
    """Measure a case once, in processes forked for it.

    Args:
        case: what.
        seconds: how long the part that counts should take.
        place: an empty directory for what has a name.
    """
    try:
        carrier = carrier_of(case)
        obj = case.message.make()
        size = _encoded_size(obj, case)
        room = room_for(obj, size, case.senders, case.receivers, place)
        with _Leader(seconds) as leader:
            if case.scenario == "request" and isinstance(carrier, ChannelCarrier):
                _start_talk(leader, carrier.ask(room), case)
            elif case.trips:
                _start_talk(leader, carrier.talk(room), case)
            else:
                _start_stream(leader, carrier.connect(room), case, _end(carrier, obj) if case.receivers > 1 else None)
            return Outcome(leader.lead(case, size))
    except Exception as error:  # noqa: BLE001  peers raise what they like, and whatever it is is the outcome
        return Outcome(problem=_brief(error))


def _end(carrier: Carrier, obj: Any) -> Any:
    end = carrier.end(obj)
    if type(obj) is type(end) and obj == end:
        raise _Failed(f"the message must not be empty: receivers that compete take {end!r} for the end")
    return end


class _Failed(Exception):
    """A process of the crew failed, and the text says how."""


def _brief(error: BaseException) -> str:
    return str(error) if isinstance(error, IpcbusError | _Failed) else say(error)


def _encoded_size(obj: Any, case: Case) -> int:
    if case.message.size is not None and case.message.size > 1 << 16:
        return case.message.size  # what surrounds it does not matter
    if isinstance(obj, bytes):
        return len(obj)
    try:
        return len(pickle.dumps(obj, 5))
    except Exception:  # noqa: BLE001  a channel may carry what pickle cannot, and this is only to know about how large it is
        return case.message.size or 1024


# ---------------------------------------------------------------------- the processes that work


def _work(conn: Connection, prepare: Callable[[], Callable[[int], Any]], senior: list[Connection]) -> None:
    """Be one process of a crew: prepare, and do each phase as it is told, until the end of the connection."""
    for other in senior:
        other.close()  # or nobody would see the end of those
    try:
        work = prepare()
        conn.send(("ready", None))
        while (count := conn.recv()) is not None:
            conn.send(("done", work(count)))
    except EOFError:
        pass  # who led is gone
    except BaseException as error:  # noqa: BLE001  whatever it is, the leader has to know
        if not isinstance(error, IpcbusError | _Failed):
            traceback.print_exc(file=sys.stderr)
        conn.send(("failed", _brief(error)))
        os._exit(1)  # a carrier that failed may wait for ever for what it has not delivered


def _sending(ends: Ends, case: Case, end: Any) -> Callable[[], Callable[[int], Any]]:
    markers = case.receivers if case.receivers > 1 else 0

    def prepare() -> Callable[[int], Any]:
        obj, send = case.message.make(), ends.sender()

        def work(count: int) -> None:
            for _ in range(count):
                send(obj)
            for _ in range(markers):
                send(end)

        return work

    return prepare


def _receiving(ends: Ends, case: Case, end: Any) -> Callable[[], Callable[[int], Any]]:
    def prepare() -> Callable[[int], Any]:
        expected, recv, senders = case.message.make(), ends.receiver(), case.senders
        checked, last_one = False, type(end)

        def check(got: Any) -> None:
            nonlocal checked
            checked = True
            # A function that makes something else each time leaves nothing to compare with.
            if not same(got, expected) and same(case.message.make(), expected):
                raise _Failed(f"something else arrived than was sent: {got!r:.80}")

        def work(count: int) -> tuple[int, float, float]:
            count *= senders
            got = recv()
            started = perf_counter()
            for _ in range(count - 1):
                got = recv()
            ended = perf_counter()
            if not checked:
                check(got)
            return count, started, ended

        def work_to_the_end(_count: int) -> tuple[int, float, float]:
            received, started, got = 0, 0.0, None
            while True:
                last, got = got, recv()
                if type(got) is last_one and got == end:
                    break
                received += 1
                if received == 1:
                    started = perf_counter()
            ended = perf_counter()
            if received and not checked:
                check(last)
            return received, started or ended, ended

        return work if case.receivers == 1 else work_to_the_end

    return prepare


def _asking(talk: Talk, case: Case) -> Callable[[], Callable[[int], Any]]:
    def prepare() -> Callable[[int], Any]:
        obj, ask = case.message.make(), talk.asker()
        checked = False

        def work(count: int) -> tuple[int, float, float, float, float]:
            nonlocal checked
            times = []
            started = before = perf_counter()
            for _ in range(count):
                got = ask(obj)
                now = perf_counter()
                times.append(now - before)
                before = now
            if not checked:
                checked = True
                if not same(got, obj):
                    raise _Failed(f"something else came back than was sent: {got!r:.80}")
            times.sort()
            return count, started, before, quantile(times, 0.5), quantile(times, 0.99)

        return work

    return prepare


# ---------------------------------------------------------------------- the process that leads


def _start_stream(leader: _Leader, ends: Ends, case: Case, end: Any) -> None:
    leader.start([("receiver", _receiving(ends, case, end))] * case.receivers)
    leader.start([("sender", _sending(ends, case, end))] * case.senders)


def _start_talk(leader: _Leader, talk: Talk, case: Case) -> None:
    leader.start([("answerer", talk.answerer)])
    leader.start([("asker", _asking(talk, case))])


class _Leader:
    """Starts the processes of a crew, and tells them when to do how much."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._crew: list[tuple[str, ForkProcess, Connection]] = []

    def start(self, members: list[tuple[str, Callable[[], Callable[[int], Any]]]]) -> None:
        """Start processes, and wait until they are ready."""
        for role, prepare in members:
            here, there = _FORK.Pipe()
            senior = [here, *(conn for _, _, conn in self._crew)]
            process = _FORK.Process(target=_work, args=(there, prepare, senior))
            process.start()
            there.close()
            self._crew.append((role, process, here))
        self._gather(len(members))

    def lead(self, case: Case, size: int) -> Sample:
        """Go through the phases, and return what the last one gave."""
        pace = Pace(self._seconds, _MOST_TRIPS if case.trips else None)
        while True:
            count, began = pace.count, perf_counter()
            told = [answer for answer in self._phase(count) if answer is not None]
            if not pace.counts(perf_counter() - began):
                continue
            if case.trips:
                ((_, _, _, median, slow),) = told
                return Sample(median, count, slow, size)
            received = sum(number for number, _, _ in told)
            seconds = max(ended for _, _, ended in told) - min(started for number, started, _ in told if number)
            return Sample(seconds / (received - 1), received - 1, None, size)

    def _phase(self, count: int) -> list[Any]:
        for _, _, conn in self._crew:
            conn.send(count)
        return self._gather(len(self._crew))

    def _gather(self, newest: int) -> list[Any]:
        """Wait for an answer of each of the newest members; raises ``_Failed`` when anybody fails or dies."""
        members: dict[Any, tuple[str, ForkProcess]] = {conn: (role, process) for role, process, conn in self._crew}
        waiting = {conn for _, _, conn in self._crew[-newest:]}
        answers = []
        while waiting:
            # An end of anybody's connection is the end of its process, and says so sooner than the process's own.
            ready: list[Any] = wait(members)
            for conn in ready:
                role, process = members[conn]
                try:
                    word, said = conn.recv()
                except (EOFError, OSError):
                    process.join(_ENDING)
                    raise _Failed(f"the {role} {_death(process.exitcode)}") from None
                if word == "failed":
                    raise _Failed(f"the {role} failed: {said}")
                waiting.discard(conn)
                answers.append(said)
        return answers

    def _say_end(self) -> None:
        for _, _, conn in self._crew:
            try:
                conn.send(None)
            except OSError:
                continue  # it has ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """End the processes; those that do not end by themselves are killed, and all at once when one has failed."""
        if kind is None:
            self._say_end()
        for _, process, conn in self._crew:
            process.join(_ENDING if kind is None else 0)
            if process.is_alive():
                process.kill()
                process.join()
            conn.close()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
