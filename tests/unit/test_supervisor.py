from __future__ import annotations

import asyncio
import errno
import math
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import ipcbus
from ipcbus import GaveUp, Occurrence, Program, StartFailed, Supervisor
from ipcbus.plumbing.fds import close_all
from ipcbus.supervisor.keeper import Keeper
from ipcbus.supervisor.life import Life
from ipcbus.supervisor.wish import Wish
from ipcbus.testing import leaks

from .rig import Amid
from .rig import until as eventually

# Python 3.12 and later warn of forking with threads, and a supervisor is one.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

PATIENCE = 20.0
PROGRAMS = Path(__file__).parent / "programs"
METHODS = ("fork", "spawn", "forkserver")
each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def channel() -> Iterator[ipcbus.Channel]:
    with ipcbus.open("pipe:") as channel:
        yield channel


def gone(pid: int, seconds: float = PATIENCE) -> bool:
    """Wait until a process has ended; also one that is no child of this process."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def happened(supervisor: Supervisor, what: str) -> list[str]:
    return [entry.name for entry in supervisor.history if entry.what == what]


def until(supervisor: Supervisor, name: str, what: str) -> Occurrence:
    """Receive events until one is this."""
    while True:
        occurrence = supervisor.events.recv(PATIENCE)
        if (occurrence.name, occurrence.what) == (name, what):
            return occurrence


# ---------------------------------------------------------------------- all together


@each_method
def test_groups_are_started_together_and_stopped_last_first(programs: Any, channel: ipcbus.Channel, method: Any) -> None:
    groups = [
        [Program("a", programs.serve, (channel.sender,))],
        [Program(name, programs.serve, (channel.sender,)) for name in "bc"],
    ]
    with Supervisor(groups, start_method=method) as supervisor:
        assert sorted(happened(supervisor, "ready")) == ["a", "b", "c"]
        told = {channel.recv(PATIENCE) for _ in range(3)}
        assert {(name, pid) for name, _, pid in told} == set(supervisor.pids.items())
        assert not supervisor.wait(0)
    assert supervisor.wait()
    assert sorted(happened(supervisor, "stopped")[:2]) == ["b", "c"]
    assert happened(supervisor, "stopped")[2] == "a"
    assert supervisor.pids == {}
    supervisor.stop()


def test_programs_in_a_plain_list_are_stopped_one_after_the_other(programs: Any) -> None:
    with Supervisor([Program(name, programs.stay) for name in "abcd"]) as supervisor:
        assert sorted(supervisor.pids) == ["a", "b", "c", "d"]
    assert happened(supervisor, "stopped") == ["d", "c", "b", "a"]
    assert {(entry.exitcode, entry.signal) for entry in supervisor.history if entry.what == "stopped"} == {(-15, "SIGTERM")}


@each_method
def test_a_killed_process_is_started_again_with_the_same_arguments(programs: Any, channel: ipcbus.Channel, method: Any) -> None:
    both = [Program(name, programs.serve, (channel.sender,)) for name in "ab"]
    with Supervisor(both, start_method=method) as supervisor:
        told = {name: pid for name, _, pid in (channel.recv(PATIENCE) for _ in range(2))}
        os.kill(told["a"], signal.SIGKILL)
        name, incarnation, pid = channel.recv(PATIENCE)
        assert (name, incarnation) == ("a", 1)
        assert supervisor.pids == {"a": pid, "b": told["b"]}
        death = until(supervisor, "a", "died")
        assert (death.pid, death.exitcode, death.signal) == (told["a"], -9, "SIGKILL")
        assert death.detail == "was killed by SIGKILL"


def test_a_moment_without_descriptors_is_survived(programs: Any, no_descriptors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipcbus.supervisor.keeper._SHORTAGE", PATIENCE)  # this one may stand still meanwhile
    with Supervisor([Program("a", programs.stay)], start_method="fork") as supervisor:
        until(supervisor, "a", "ready")
        with no_descriptors():
            os.kill(supervisor.pids["a"], signal.SIGKILL)
            over = threading.Event()
            for _ in range(int(PATIENCE * 100)):
                if supervisor.history[-1].what == "died":
                    break
                over.wait(0.01)  # what is received from needs a descriptor
        until(supervisor, "a", "ready")
        assert supervisor.failure is None


def test_a_process_that_cannot_be_watched_is_started_again(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    open_pidfd, unwatched = os.pidfd_open, []

    def refuse_once(pid: int) -> int:
        if not unwatched:
            unwatched.append(pid)
            raise OSError(errno.EMFILE, "Too many open files")
        return open_pidfd(pid)

    monkeypatch.setattr(os, "pidfd_open", refuse_once)
    monkeypatch.setattr("ipcbus.supervisor.keeper._SHORTAGE", PATIENCE)
    with Supervisor([Program("a", programs.stay)], start_method="fork") as supervisor:
        assert supervisor.pids["a"] not in unwatched
        assert gone(unwatched[0])


def test_waiting_for_processes_needs_no_descriptor(no_descriptors: Any) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with no_descriptors():
        assert ipcbus.wait([reading], PATIENCE) == [reading]
    os.close(reading)


def test_a_signal_without_a_name_is_told_by_its_number(programs: Any) -> None:
    with Supervisor([Program("a", programs.stay)]) as supervisor:
        os.kill(supervisor.pids["a"], signal.SIGRTMIN + 1)
        assert until(supervisor, "a", "died").signal == f"signal {signal.SIGRTMIN + 1}"


def test_a_death_is_noticed_although_something_it_started_lives_on(programs: Any, channel: ipcbus.Channel) -> None:
    with Supervisor([Program("a", programs.leaves_a_process, (channel.sender,))], start_method="fork") as supervisor:
        first, left = channel.recv(PATIENCE)
        os.kill(first, signal.SIGKILL)
        second, another = channel.recv(PATIENCE)
        assert second == supervisor.pids["a"]
    for pid in (left, another):
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)


def test_a_forked_process_has_none_of_its_parents_handlers(programs: Any, channel: ipcbus.Channel) -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        with Supervisor([Program("a", programs.tells_handlers, (channel.sender, numbers))], start_method="fork") as supervisor:
            assert channel.recv(PATIENCE) == []
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert happened(supervisor, "stopped") == ["a"]


def test_a_supervisor_that_has_stopped_holds_nothing(programs: Any) -> None:
    before = leaks.snapshot()
    supervisor = Supervisor([Program("a", programs.stay)]).start()
    supervisor.stop()
    assert leaks.compare(before) == []
    assert [entry.what for entry in supervisor.events] == ["started", "ready", "stopped"]
    supervisor.events.close()
    supervisor.request_stop()
    assert leaks.compare(before) == []


# ---------------------------------------------------------------------- giving up


@each_method
@pytest.mark.parametrize("place", [0, 1])
def test_dying_too_often_stops_everything(programs: Any, channel: ipcbus.Channel, method: Any, place: int) -> None:
    groups = [[Program("steady", programs.stay)]]
    groups.insert(place, [Program("weak", programs.weak, (channel.receiver,))])
    with Supervisor(groups, start_method=method, period=600, ready_timeout=PATIENCE) as supervisor:
        pid = supervisor.pids["steady"]
        channel.send("go")
        for _ in range(6):  # each has its time: how long six starts take is the machine's affair
            until(supervisor, "weak", "died")
        with pytest.raises(GaveUp, match="that is death number 6 within 600 seconds") as error:
            supervisor.wait(PATIENCE)
        assert error.value.name == "weak"
        assert str(error.value).startswith("weak ended with exit code 1; it said: RuntimeError: the disk is full; ")
        assert supervisor.failure == str(error.value)
        assert happened(supervisor, "started").count("weak") == 6  # and five deaths were mended
        assert happened(supervisor, "stopped") == ["steady"]
        assert until(supervisor, "supervisor", "gave up").detail == supervisor.failure
    assert gone(pid, 0)


def test_who_prepares_for_ever_is_late_all_the_same(programs: Any) -> None:
    supervisor = Supervisor([Program("a", programs.only_prepares, (0,))], start_method="fork", ready_timeout=0.5)
    alarm = threading.Timer(PATIENCE / 2, supervisor.request_stop)
    alarm.start()
    with pytest.raises(StartFailed, match=r"a was not ready within 0\.5 seconds"):
        supervisor.start()
    alarm.cancel()


def test_so_is_one_that_has_taken_the_place_of_another(programs: Any) -> None:
    def hurry(occurrence: Occurrence) -> None:
        heir = keeper.roster.heirs.get("a")
        if occurrence.what == "stopped" and heir is not None:  # it is told to take over next
            keeper._ready_timeout = heir._ready_timeout = 0.5

    program = Program("a", programs.only_prepares, (1,))
    supervisor = Supervisor([program], start_method="fork", ready_timeout=PATIENCE, on_event=hurry)
    keeper = supervisor._keeper
    with supervisor:
        supervisor.request_replace("a")
        assert until(supervisor, "a", "stopped").exitcode == -signal.SIGTERM
        assert until(supervisor, "a", "late").detail == "was not ready within 0.5 seconds"


def test_what_cannot_start_is_started_again_after_a_pause_that_grows(
    programs: Any, channel: ipcbus.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with Supervisor([Program("weak", programs.weak, (channel.receiver,))], start_method="fork", period=600) as supervisor:
        channel.send("go")
        with pytest.raises(GaveUp):
            supervisor.wait(PATIENCE)
    again = [message.split(" is started again")[1] for message in caplog.messages if "is started again" in message]
    # The first time it was ready, and has to be back at once.
    assert again == [
        f"{pause}; it said: RuntimeError: the disk is full" for pause in ("", *(f" in 0.{n} seconds" for n in (1, 2, 4, 8)))
    ]


def test_however_many_deaths_are_mended_the_pause_grows(
    programs: Any, channel: ipcbus.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    """Processes were started as fast as the machine can, for ever."""
    program = Program("weak", programs.weak, (channel.receiver,))
    with Supervisor([program], start_method="fork", intensity=10**9) as supervisor:
        channel.send("go")
        while happened(supervisor, "started").count("weak") < 4:
            supervisor.events.recv(PATIENCE)
    pauses = [message.split(" again")[1].split(";")[0] for message in caplog.messages if "is started again" in message]
    assert pauses[:3] == ["", " in 0.1 seconds", " in 0.2 seconds"]


def test_so_does_that_of_one_that_cannot_say_that_it_is_ready(
    programs: Any, channel: ipcbus.Channel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipcbus.supervisor.child._PROVEN", PATIENCE)  # it may stand still before it fails
    program = Program("a", programs.fail, (channel.sender,), handshake=False)
    with Supervisor([program], start_method="fork", intensity=10**9):
        for _ in range(4):
            channel.recv(PATIENCE)
    pauses = [message.split(" again")[1] for message in caplog.messages if "is started again" in message]
    assert pauses[:3] == [" in 0.1 seconds", " in 0.2 seconds", " in 0.4 seconds"]


@each_method
def test_how_one_ended_is_told_to_no_other_thread(programs: Any, method: Any) -> None:
    with Supervisor([Program("a", programs.stay)], start_method=method):
        assert multiprocessing.active_children() == []  # whoever starts a process asks how all of these have ended


@pytest.mark.parametrize("wanted", ["restart", "replace", "stop", "start"])
def test_nobody_has_to_wait_for_the_end_of_a_pause(
    programs: Any, channel: ipcbus.Channel, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setattr("ipcbus.supervisor.keeper._AGAIN", 600.0)
    program = Program("a", programs.recovers, (channel.receiver,))
    with Supervisor([program], start_method="fork", intensity=2, period=1e6) as supervisor:
        channel.send("go")
        until(supervisor, "a", "died")
        until(supervisor, "a", "died")
        assert not supervisor.wait(0)
        if wanted == "stop":
            supervisor.stop("a")
            assert supervisor.wait(PATIENCE)
        elif wanted == "start":
            with pytest.raises(ValueError, match="a program called 'a' runs"):
                supervisor.start(program)
            until(supervisor, "a", "ready")
        else:
            getattr(supervisor, wanted)("a")
            assert happened(supervisor, "started") == ["a"] * 3
            assert happened(supervisor, "ready") == ["a"] * 2


def test_leaving_the_context_tells_that_it_gave_up(programs: Any) -> None:
    why = "a was killed by SIGKILL; that is death number 1 within 10 seconds and 0 are mended"
    supervisor = Supervisor([Program("a", programs.stay)], intensity=0).start()
    os.kill(supervisor.pids["a"], signal.SIGKILL)
    until(supervisor, "supervisor", "gave up")
    with pytest.raises(GaveUp, match=why):
        supervisor.__exit__(None, None, None)


def test_it_is_told_once(programs: Any) -> None:
    with Supervisor([Program("a", programs.stay)], intensity=0) as supervisor:
        os.kill(supervisor.pids["a"], signal.SIGKILL)
        with pytest.raises(GaveUp):
            supervisor.wait(PATIENCE)


def test_deaths_long_ago_are_forgiven(programs: Any, channel: ipcbus.Channel) -> None:
    with Supervisor([Program("a", programs.serve, (channel.sender,))], intensity=1, period=0.001) as supervisor:
        for _ in range(4):
            os.kill(channel.recv(PATIENCE)[2], signal.SIGKILL)
        assert channel.recv(PATIENCE)[:2] == ("a", 4)
        assert supervisor.failure is None


def test_one_that_was_started_is_stopped_by_a_with_statement_all_the_same(programs: Any) -> None:
    supervisor = Supervisor([Program("a", programs.stay)], ready_timeout=PATIENCE)
    with supervisor.start() as same:
        assert same is supervisor
        assert list(supervisor.pids) == ["a"]
    assert supervisor.pids == {}
    with pytest.raises(StartFailed, match="make another"), supervisor:
        pass


@each_method
@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("raises", "bad ended with exit code 1 before everything was ready; it said: RuntimeError: the disk is full"),
        ("exits", "bad ended with exit code 1 before everything was ready; it said: no such device"),
        ("babbles", "bad ended with exit code 1 before everything was ready; it said: RuntimeError: xxx"),
        ("returns", "bad ended with exit code 0 before"),
        ("never_ready", "bad was not ready within 0.5 seconds"),
    ],
)
def test_what_does_not_become_ready_fails_the_start(
    programs: Any, channel: ipcbus.Channel, method: Any, target: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The bad one is the first whose time is up, however long the good one takes on a busy machine.
    both = [Program("bad", getattr(programs, target)), Program("good", programs.serve, (channel.sender,))]
    supervisor = Supervisor(both, start_method=method, ready_timeout=0.5 if target == "never_ready" else 30)
    with pytest.raises(StartFailed, match=why) as error:
        supervisor.start()
    assert error.value.name == "bad"
    assert supervisor.pids == {}
    assert caplog.messages == []  # who has started it is told, and that is enough
    with pytest.raises(GaveUp):
        supervisor.wait(0)
    with pytest.raises(StartFailed, match="make another"):
        supervisor.start()


def test_what_cannot_be_sent_to_a_process_fails_the_start(programs: Any) -> None:
    with pytest.raises(StartFailed, match=r"pickle|local object"):
        Supervisor([Program("bad", programs.serve, (lambda: None,))], start_method="spawn").start()


@each_method
@pytest.mark.parametrize("target", ["stubborn", "stuck"])
def test_what_does_not_stop_is_killed(programs: Any, method: Any, target: str) -> None:
    with Supervisor([Program("a", getattr(programs, target))], start_method=method, stop_timeout=0.3) as supervisor:
        pid = supervisor.pids["a"]
    assert happened(supervisor, "killed") == ["a"]
    assert supervisor.history[-1].signal == "SIGKILL"
    assert gone(pid, 0)


def test_what_makes_no_sense_is_refused_at_once(programs: Any) -> None:
    with pytest.raises(ValueError, match="unique: a, a"):
        Supervisor([[Program("a", programs.returns)], [Program("a", programs.returns)]])
    with pytest.raises(ValueError, match="start_method must be"):
        Supervisor(start_method="thread")  # type: ignore[arg-type]  # this is what is to be refused
    with pytest.raises(ValueError, match="a: restart must be 'always'"):
        Program("a", programs.returns, restart="sometimes")  # type: ignore[arg-type]  # the same
    with pytest.raises(ValueError, match=r"a: .*sleep.* is a coroutine function; .*asyncio\.run"):
        Program("a", asyncio.sleep, (1,), handshake=False)
    for name in ("intensity", "period", "ready_timeout", "stop_timeout"):
        for number in (-1, math.nan):
            with pytest.raises(ValueError, match=f"{name} must be a number from 0 on, not {number}"):
                Supervisor(**{name: number})


def test_what_is_no_function_or_are_no_arguments_is_refused_at_once(programs: Any, channel: ipcbus.Channel) -> None:
    with pytest.raises(TypeError, match=r"a: target must be a function, not None; name it, and do not call it"):
        Program("a", None)  # type: ignore[arg-type]  # this is what is to be refused
    channel.send("not for it")
    with pytest.raises(TypeError, match=r"a: args must be a tuple, not <ipcbus\.Channel.*>; one argument is written \(x,\)"):
        Program("a", programs.returns, channel)  # type: ignore[arg-type]  # the same
    assert channel.recv(PATIENCE) == "not for it"


@pytest.mark.parametrize("timeout", [1e10, math.inf])
def test_a_wait_may_be_longer_than_the_system_can_wait(timeout: float) -> None:
    with Supervisor([Program("a", int, handshake=False, restart="never")], start_method="fork") as supervisor:
        assert supervisor.wait(timeout)


# ---------------------------------------------------------------------- plain functions, and who is started again


@each_method
def test_a_plain_function_is_ready_once_it_runs(programs: Any, channel: ipcbus.Channel, method: Any) -> None:
    with Supervisor([Program("a", programs.plain, (channel.sender,), handshake=False)], start_method=method) as supervisor:
        assert happened(supervisor, "ready") == ["a"]
        assert channel.recv(PATIENCE) == supervisor.pids["a"]


@each_method
def test_a_process_is_shown_by_the_name_of_its_program(programs: Any, method: Any) -> None:
    several = [Program("kitchen", programs.stay), Program("a-rather-long-name", programs.stay)]
    with Supervisor(several, start_method=method) as supervisor:
        shown = {name: Path(f"/proc/{pid}/comm").read_text().strip() for name, pid in supervisor.pids.items()}
    assert shown == {"kitchen": "kitchen", "a-rather-long-name": "a-rather-long-n"}


@each_method
@pytest.mark.parametrize(
    ("target", "restart", "happenings"),
    [
        ("succeed", "never", ["started", "ready", "done"]),
        ("succeed", "on-failure", ["started", "ready", "done"]),
        ("fail", "never", ["started", "ready", "died"]),
    ],
)
def test_what_has_ended_for_good(
    programs: Any, channel: ipcbus.Channel, method: Any, target: str, restart: Any, happenings: list[str]
) -> None:
    program = Program("a", getattr(programs, target), (channel.sender,), handshake=False, restart=restart)
    with Supervisor([program], start_method=method) as supervisor:
        pid = channel.recv(PATIENCE)
        assert supervisor.wait(PATIENCE)
        assert [(entry.what, entry.pid) for entry in supervisor.history] == [(what, pid) for what in happenings]
        assert supervisor.history[-1].exitcode == (0 if target == "succeed" else 3)
        assert supervisor.pids == {}
        supervisor.stop("a")  # it has ended


def test_that_one_was_ready_is_told_also_if_it_is_heard_only_when_it_has_ended(
    programs: Any, channel: ipcbus.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_only(things: list[Any], timeout: float | None) -> list[Any]:
        return ipcbus.wait([thing for thing in things if not isinstance(thing, Connection)], timeout)

    monkeypatch.setattr("ipcbus.supervisor.keeper.wait", ends_only)
    program = Program("a", programs.succeed, (channel.sender,), handshake=False, restart="never")
    with Supervisor([program], start_method="fork") as supervisor:
        assert supervisor.wait(PATIENCE)
    assert [entry.what for entry in supervisor.history] == ["started", "ready", "done"]


def test_a_failure_is_mended_and_a_success_is_not(programs: Any, channel: ipcbus.Channel, tmp_path: Path) -> None:
    arguments = (channel.sender, str(tmp_path / "failed"))
    program = Program("a", programs.fail_once, arguments, handshake=False, restart="on-failure")
    with Supervisor([program]) as supervisor:
        assert channel.recv(PATIENCE) != channel.recv(PATIENCE)
        assert supervisor.wait(PATIENCE)
    assert [entry.what for entry in supervisor.history] == ["started", "ready", "died", "started", "ready", "done"]


def test_success_is_no_reason_to_rest_for_what_runs_always(programs: Any, channel: ipcbus.Channel) -> None:
    program = Program("a", programs.succeed, (channel.sender,), handshake=False)
    with (
        Supervisor([program], intensity=2, period=600) as supervisor,
        pytest.raises(GaveUp, match=r"a ended with exit code 0; .* number 3 "),
    ):
        supervisor.wait(PATIENCE)
    assert len({channel.recv(PATIENCE) for _ in range(3)}) == 3


# ---------------------------------------------------------------------- one more, one less


@each_method
def test_one_more_and_one_less(programs: Any, channel: ipcbus.Channel, method: Any) -> None:
    with Supervisor(start_method=method) as supervisor:
        assert supervisor.wait(0)  # nothing runs
        for name in "abc":
            supervisor.start(Program(name, programs.stay))
        assert not supervisor.wait(0)
        pids = supervisor.pids
        with pytest.raises(ValueError, match=f"'b' runs .pid {pids['b']}."):
            supervisor.start(Program("b", programs.stay))
        supervisor.stop("b")
        assert gone(pids["b"], 0)
        supervisor.stop("b")
        with pytest.raises(LookupError, match="no program is called 'd'; known are: a, b, c"):
            supervisor.stop("d")
        supervisor.start(Program("b", programs.serve, (channel.sender,)))
        assert channel.recv(PATIENCE) == ("b", 0, supervisor.pids["b"])
    assert happened(supervisor, "stopped") == ["b", "b", "c", "a"]
    assert happened(supervisor, "died") == []
    with pytest.raises(StartFailed, match="the supervisor has stopped"):
        supervisor.start(Program("e", programs.stay))
    supervisor.stop("a")


class Slow(threading.Event):
    """Lets another thread be the first after it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def set(self) -> None:
        super().set()
        self.seen.wait(PATIENCE)


def test_who_has_waited_for_the_start_is_told_that_nothing_runs() -> None:
    supervisor = Supervisor(start_method="fork")
    started = supervisor._keeper.started = Slow()
    try:
        with supervisor:
            idle = supervisor.wait(0)
            started.seen.set()
        assert idle
    finally:
        started.seen.set()


def test_who_has_stopped_the_last_one_is_told_that_nothing_runs(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Supervisor([Program("a", programs.stay)], start_method="fork") as supervisor:
        seen = threading.Event()
        grant = supervisor._keeper._wishing.grant

        def slowly(name: str, **how: bool) -> None:
            grant(name, **how)
            seen.wait(PATIENCE)

        monkeypatch.setattr(supervisor._keeper._wishing, "grant", slowly)
        try:
            supervisor.stop("a")
            assert supervisor.wait(0)
        finally:
            seen.set()


def test_before_the_start_there_is_nothing_to_add_to(programs: Any) -> None:
    with pytest.raises(StartFailed, match="start the supervisor first"):
        Supervisor().start(Program("a", programs.stay))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("raises", "b ended with exit code 1 before it was ready; it said: RuntimeError: the disk is full"),
        ("never_ready", "within 0.5 s"),
    ],
)
def test_one_more_that_fails_leaves_the_others_alone(programs: Any, target: str, why: str) -> None:
    with Supervisor([Program("a", programs.stay)], ready_timeout=PATIENCE, start_method="spawn") as supervisor:
        before = supervisor.pids
        supervisor._keeper._ready_timeout = 0.5 if target == "never_ready" else PATIENCE
        with pytest.raises(StartFailed, match=why) as error:
            supervisor.start(Program("b", getattr(programs, target)))
        assert error.value.name == "b"
        with pytest.raises(StartFailed, match=r"c cannot be started: .*(pickle|local object)"):
            supervisor.start(Program("c", programs.stay, (lambda: None,)))
        assert supervisor.pids == before
        assert supervisor.failure is None


def test_one_more_is_stopped_before_it_is_ready(programs: Any) -> None:
    with Supervisor() as supervisor:
        caught: list[Exception] = []

        def begin() -> None:
            try:
                supervisor.start(Program("a", programs.never_ready))
            except StartFailed as error:
                caught.append(error)

        thread = threading.Thread(target=begin)
        thread.start()
        until(supervisor, "a", "started")
        supervisor.stop("a")
        thread.join(PATIENCE)
        assert str(caught[0]) == "a was stopped before it was ready"


def test_whoever_hears_that_one_more_was_started_may_stop_it(programs: Any) -> None:
    begun = threading.Event()
    stopped: list[Future[None]] = []

    def told(occurrence: Occurrence) -> None:
        if occurrence.what == "started":
            stopped.append(pool.submit(stop))
            begun.wait(PATIENCE)

    def stop() -> None:
        try:
            supervisor._check_known("a")
        finally:
            begun.set()
        supervisor.stop("a")

    supervisor = Supervisor(start_method="fork", on_event=told)
    with ThreadPoolExecutor(1) as pool, supervisor:
        with pytest.raises(StartFailed, match="a was stopped before it was ready"):
            supervisor.start(Program("a", programs.never_ready))
        stopped[0].result(PATIENCE)


def test_its_own_thread_cannot_wait_for_itself(programs: Any) -> None:
    """It used to do so for ever, and with it whoever waited for the start."""
    caught: list[Exception] = []

    def told(occurrence: Occurrence) -> None:
        if occurrence.what == "ready" and not caught:
            for call in (supervisor.restart, supervisor.replace, supervisor.stop):
                with pytest.raises(
                    ipcbus.Unsupported, match=r"thread, which cannot wait for itself: have request_restart"
                ) as info:
                    call("a")
                caught.append(info.value)
            with pytest.raises(ipcbus.Unsupported):
                supervisor.wait()
            supervisor.request_restart("a")

    supervisor = Supervisor([Program("a", programs.stay)], start_method="fork", on_event=told)
    with supervisor:
        until(supervisor, "a", "stopped")
        until(supervisor, "a", "ready")
        assert len(caught) == 3


def test_a_forked_child_cannot_wait_for_its_parents(programs: Any, channel: ipcbus.Channel) -> None:
    def tell(supervisor: Supervisor) -> None:
        for call in (lambda: supervisor.restart("a"), supervisor.wait):
            with pytest.raises(ipcbus.Unsupported) as info:
                call()
            channel.send(str(info.value))
        supervisor.stop()

    with Supervisor([Program("a", programs.stay)], start_method="fork") as supervisor:
        process = multiprocessing.get_context("fork").Process(target=tell, args=(supervisor,))
        process.start()
        try:
            for _ in range(2):
                said = channel.recv(PATIENCE)
                assert said == f"this supervisor is that of process {os.getpid()}, which has forked this one: use it there"
            process.join(PATIENCE)
        finally:
            process.kill()
            process.join()
        assert happened(supervisor, "stopped") == []


def test_an_interruption_while_it_starts_leaves_nothing_running(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Keeper.start

    def interrupted(keeper: Keeper, context: Any) -> threading.Thread:
        thread = start(keeper, context)
        signal.raise_signal(signal.SIGINT)
        return thread

    monkeypatch.setattr(Keeper, "start", interrupted)
    supervisor = Supervisor([Program("a", programs.stay)], start_method="fork")
    with pytest.raises(KeyboardInterrupt):
        supervisor.start()
    assert supervisor.wait(0)
    assert supervisor.pids == {}


def test_a_stop_while_it_starts_lets_no_further_one_begin(programs: Any) -> None:
    def stop(occurrence: Occurrence) -> None:
        if occurrence.what == "started":
            supervisor.request_stop()

    wanted = [Program(name, programs.stay) for name in ("a", "b", "c")]
    supervisor = Supervisor(wanted, start_method="fork", on_event=stop)
    with supervisor:
        assert supervisor.wait(PATIENCE)
    assert happened(supervisor, "started") == happened(supervisor, "stopped") == ["a"]


def test_without_a_thread_there_is_none(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    supervisor = Supervisor([Program("a", programs.stay)], start_method="fork")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StartFailed, match=r"no thread to work in: can't start new thread; see 'ulimit -u'"):
            supervisor.start()
    assert supervisor.wait(0)


def test_threads_start_and_stop_while_processes_die(programs: Any) -> None:
    wrong: list[Exception] = []
    over = threading.Event()

    def work(supervisor: Supervisor, name: str) -> None:
        while not over.is_set():
            try:
                supervisor.start(Program(name, programs.stay))
            except StartFailed as error:
                if "was killed by SIGKILL before it was ready" not in str(error):
                    wrong.append(error)
            supervisor.stop(name)

    def note(occurrence: Occurrence) -> None:
        if (occurrence.name, occurrence.what) == ("steady", "ready"):
            ready.put(occurrence.pid or 0)

    ready: SimpleQueue[int] = SimpleQueue()  # events may drop some while the threads work and this one does not
    steady = Program("steady", programs.stay)
    with Supervisor([steady], start_method="fork", intensity=10**6, on_event=note) as supervisor:
        threads = [threading.Thread(target=work, args=(supervisor, name)) for name in "abc"]
        for thread in threads:
            thread.start()
        killed = set()
        while len(killed) < 30:
            pid = ready.get(timeout=PATIENCE)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
            for name, pid in supervisor.pids.items():
                if name != "steady" and len(killed) % 3 == 0:
                    kill_if_there(pid)
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        ready.get(timeout=PATIENCE)
        assert list(supervisor.pids) == ["steady"]


def kill_if_there(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # the thread that started it was faster


def test_a_storm_of_sigterm_at_the_processes(programs: Any, channel: ipcbus.Channel) -> None:
    program = Program("a", programs.serve, (channel.sender,))
    with Supervisor([program], start_method="fork", intensity=10**6) as supervisor:
        last = 0
        while last < 20:
            _, last, pid = channel.recv(PATIENCE)
            for _ in range(20):
                kill_if_there(pid, signal.SIGTERM)
        assert {entry.signal for entry in supervisor.history if entry.what == "died"} == {"SIGTERM"}


@each_method
def test_a_supervisor_in_a_supervised_process(programs: Any, channel: ipcbus.Channel, method: Any) -> None:
    with Supervisor([Program("outer", programs.nests, (channel.sender, method))], start_method=method) as supervisor:
        first = channel.recv(PATIENCE)
        os.kill(supervisor.pids["outer"], signal.SIGKILL)
        assert gone(first, 2)
        second = channel.recv(PATIENCE)
    assert gone(second, 2)


# ---------------------------------------------------------------------- programs of their own

SCRIPT = """
import os, signal, sys
sys.path.insert(0, {path!r})
import ipcbus, supervised
from ipcbus import Program, Supervisor
if __name__ == "__main__":
    groups = [[Program(name, getattr(supervised, name)) for name in ("stay", "stubborn", "stuck")], []]
    supervisor = Supervisor(groups, start_method={method!r}, ready_timeout=60, stop_timeout=0.3)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.request_stop())
    supervisor.start()
    helper = os.fork()  # has what multiprocessing and the supervisor keep open
    if helper == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(1)
        signal.pause()
    print(helper, *supervisor.pids.values(), flush=True)
    {then}
"""


Script = Callable[[str, str], tuple[subprocess.Popen[str], list[int]]]


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """Run a program with a supervisor, and return it with the pids of its processes."""
    helpers = []

    def start(method: str, then: str) -> tuple[subprocess.Popen[str], list[int]]:
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.format(path=str(PROGRAMS), method=method, then=then))
        process = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        helper, *pids = (int(word) for word in process.stdout.readline().split())
        helpers.append(helper)
        assert len(pids) == 3
        return process, pids

    yield start
    for helper in helpers:
        os.kill(helper, signal.SIGKILL)
        assert gone(helper)


@each_method
def test_no_process_outlives_a_killed_supervisor_by_two_seconds(script: Script, method: str) -> None:
    process, pids = script(method, "supervisor.wait()")
    with process:
        process.kill()
        until = time.monotonic() + 2
        assert all(gone(pid, max(0, until - time.monotonic())) for pid in pids)


@each_method
def test_a_program_that_ends_without_stopping_leaves_nothing_behind(script: Script, method: str) -> None:
    process, pids = script(method, "pass")
    with process:
        assert process.wait(PATIENCE) == 0
        assert all(gone(pid, 0) for pid in pids)


@each_method
def test_a_storm_of_sigterm_at_the_supervisor(script: Script, method: str) -> None:
    process, pids = script(method, "supervisor.wait(); supervisor.stop(); os._exit(5)")
    with process:
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            select.select([], [], [], 0.0005)
        assert process.returncode == 5
        assert all(gone(pid, 0) for pid in pids)


def test_processes_do_not_outlive_their_fork_server(script: Script) -> None:
    then = (
        "from multiprocessing import forkserver; os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL); "
        "died = [supervisor.events.recv(20) for _ in range(9)]; print('ok', flush=True); supervisor.wait()"
    )
    process, pids = script("forkserver", then)
    with process:
        assert all(gone(pid) for pid in pids)
        assert process.stdout is not None
        assert process.stdout.readline() == "ok\n"
        process.kill()


FORKSERVER = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from ipcbus import Program, Supervisor
from ipcbus.supervisor.forkserver import begin

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

def deaf(pid="self"):
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    mask = int(line.split()[1], 16)
    return [number.name for number in SIGNALS if mask & 1 << number - 1]

def pause(told):
    assert "wave" in sys.modules  # was preloaded
    before = deaf()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if not pid:
        signal.pause()
    told.send((before, deaf(pid)))
    os.kill(pid, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.pause()

if __name__ == "__main__":
    if sys.argv[1] == "begin":
        begin(["wave"])
    else:
        multiprocessing.set_forkserver_preload(["wave"])
        Supervisor([Program("a", signal.pause, handshake=False)], start_method="forkserver").start()
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    for number in SIGNALS:
        os.kill(server, number)
    context = multiprocessing.get_context("forkserver")
    heard, told = context.Pipe()
    process = context.Process(target=pause, args=(told,))
    process.start()
    print(*heard.recv())
    process.terminate()
    process.join(20)
    print(process.exitcode, deaf(server))
"""


@pytest.mark.parametrize("way", ["begin", "a supervisor"])
def test_a_fork_server_is_kept_from_signals_to_the_group_and_what_it_makes_is_not(way: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FORKSERVER)
    command = [sys.executable, "program.py", way]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.splitlines() == ["[] ['SIGTERM']", "-15 ['SIGINT', 'SIGTERM', 'SIGHUP']"]


UNHEARD = """
import os, signal, sys
sys.path.insert(0, {path!r})
import supervised
from ipcbus import ChannelEmpty, Program, Supervisor

if __name__ == "__main__":
    supervisor = Supervisor([Program("a", supervised.stay)], start_method="fork")
    signal.signal(signal.SIGTERM, lambda *_: supervisor.request_stop())
    with supervisor:
        print(*(supervisor.events.recv(20).what for _ in range(2)))
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})  # as if this thread had no processor
        for pid in os.getpid(), supervisor.pids["a"]:
            os.kill(pid, signal.SIGTERM)
        try:
            print(supervisor.events.recv(0.5).what)
        except ChannelEmpty:
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {{signal.SIGTERM}})
        print(*(occurrence.what for occurrence in supervisor.events))
"""


def test_a_signal_to_the_group_is_one_though_the_main_thread_takes_it_late(tmp_path: Path) -> None:
    """The process that it had ended was started again, as one that has died, and then stopped."""
    (tmp_path / "program.py").write_text(UNHEARD.format(path=str(PROGRAMS)))
    said = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=True)
    assert said.stdout.splitlines() == ["started ready", "died"]


# ---------------------------------------------------------------------- told, restarted, stuck


@each_method
def test_a_process_is_told_things_and_restarted_on_request(method: Any, programs: Any, channel: ipcbus.Channel) -> None:
    seen: list[Occurrence] = []
    program = Program("talker", programs.converse, (channel.sender,))
    with Supervisor([program], start_method=method, intensity=0, on_event=seen.append) as supervisor:
        first = supervisor.pids["talker"]
        assert supervisor.tell("talker", b"hello")
        assert channel.recv(PATIENCE) == (first, 0, b"hello")
        supervisor.restart("talker")
        assert gone(first)
        assert supervisor.tell("talker", b"again")
        assert channel.recv(PATIENCE) == (supervisor.pids["talker"], 1, b"again")
        assert not supervisor.tell("nobody", b"x")
        with pytest.raises(ValueError, match="4000 bytes"):
            supervisor.tell("talker", bytes(4001))
        with pytest.raises(LookupError, match="talker"):
            supervisor.restart("nobody")
        assert supervisor.failure is None  # intensity=0: one death would have been too many
    assert [entry.what for entry in seen] == ["started", "ready", "stopped", "started", "ready", "stopped"]
    assert seen == supervisor.history
    assert not supervisor.tell("talker", b"x")
    with pytest.raises(StartFailed, match="has stopped"):
        supervisor.restart("talker")


def test_a_process_is_told_things_by_one_with_many_descriptors(
    programs: Any, channel: ipcbus.Channel, few: Callable[[int], None]
) -> None:
    few(1400)
    held = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(1100)]  # select() knows 1024
    try:
        with Supervisor([Program("talker", programs.converse, (channel.sender,))], start_method="fork") as supervisor:
            assert supervisor.tell("talker", b"hello")
            assert channel.recv(PATIENCE)[2] == b"hello"
    finally:
        close_all(held)


@pytest.mark.timeout(20)
def test_a_signal_handler_tells_something_amid_a_tell(
    programs: Any, channel: ipcbus.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Supervisor([Program("talker", programs.converse, (channel.sender,))], start_method="fork") as supervisor:
        roster = supervisor._keeper.roster
        monkeypatch.setattr(roster, "_lock", Amid(roster, "_lock", lambda: supervisor.tell("talker", b"handler")))
        assert supervisor.tell("talker", b"other")
        assert [channel.recv(PATIENCE)[2] for _ in range(2)] == [b"handler", b"other"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("name", ["idler", None])
def test_a_signal_handler_stops_amid_a_wish(
    programs: Any, monkeypatch: pytest.MonkeyPatch, name: str | None, noted: bool
) -> None:
    class Interrupted(deque[Wish]):
        """Has a signal handler run where the first wish is put into it: behind that, or before it."""

        def append(self, wish: Wish) -> None:
            monkeypatch.setattr(keeper, "_wishes", wishes)
            if noted:
                wishes.append(wish)
            before = signal.signal(signal.SIGUSR1, lambda *_: supervisor.stop(name))
            signal.raise_signal(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, before)
            if not noted:
                wishes.append(wish)

    with Supervisor([Program("idler", programs.stay)], start_method="fork") as supervisor:
        keeper = supervisor._keeper
        wishes = keeper._wishes
        monkeypatch.setattr(keeper, "_wishes", Interrupted())
        supervisor.stop("idler")
        assert not supervisor.pids
        assert not wishes


def test_a_storm_of_requests_to_restart_is_one_or_two_restarts(programs: Any, channel: ipcbus.Channel) -> None:
    def hold(occurrence: Occurrence) -> None:
        if occurrence.what == "stopped":
            over.wait(PATIENCE)  # on a busy machine it could be restarted between any two of them

    over = threading.Event()
    program = Program("talker", programs.converse, (channel.sender,))
    with Supervisor([program], start_method="fork", on_event=hold) as supervisor:
        for _ in range(200):
            supervisor.request_restart("talker")
        over.set()
        supervisor.restart("talker")
        assert 1 <= happened(supervisor, "stopped").count("talker") <= 3
        supervisor.request_restart("talker")
        supervisor.stop("talker")  # which wins
        assert "talker" not in supervisor.pids
        with pytest.raises(StartFailed, match="does not run"):
            supervisor.restart("talker")


def test_a_process_without_a_heartbeat_is_killed_and_started_again(programs: Any) -> None:
    program = Program("still", programs.stay, heartbeat=0.6)
    with Supervisor([program], start_method="fork") as supervisor:
        first = until(supervisor, "still", "ready").pid
        occurrence = until(supervisor, "still", "stuck")
        assert occurrence.pid == first
        assert "no heartbeat for 0.6 seconds" in occurrence.detail
        assert until(supervisor, "still", "ready").pid != first


def test_each_heartbeat_gives_a_process_as_long_again(programs: Any, channel: ipcbus.Channel) -> None:
    program = Program("talker", programs.converse, (channel.sender,), heartbeat=PATIENCE)
    with Supervisor([program], start_method="fork") as supervisor:
        child = supervisor._keeper.roster.running["talker"]
        for _ in range(3):
            before = child.deadline
            eventually(lambda before=before: child.deadline is not before)
        assert 0 < (child.deadline.remaining() or 0) <= PATIENCE


@pytest.mark.parametrize("heartbeat", [0.0, 1.0])
def test_a_beat_waits_for_nobody(heartbeat: float) -> None:
    heard, voice = multiprocessing.Pipe()
    with heard, voice:
        life = Life("a", 0, voice, heartbeat)
        beating = threading.Thread(target=lambda: [life.beat() for _ in range(10_000)], daemon=True)
        beating.start()
        beating.join(PATIENCE)
        assert not beating.is_alive()
        assert heard.poll() == bool(heartbeat)


@pytest.mark.parametrize("changed", [{"heartbeat": -1.0}, {"heartbeat": math.nan}, {"heartbeat": 1.0, "handshake": False}])
def test_a_heartbeat_that_makes_no_sense(changed: Any) -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        Program("x", signal.pause, **changed)
