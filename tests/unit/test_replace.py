"""Replacing a process by one that is loaded while it still runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ipcbus
from ipcbus import Program, StartFailed, Supervisor

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

PATIENCE = 20.0
each_method = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])


@pytest.fixture
def channel() -> Iterator[ipcbus.Channel]:
    with ipcbus.open("unix:") as channel:  # one queue for all senders, so it says who was first
        yield channel


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """The file that says what goes wrong."""
    path = tmp_path / "wrong"
    path.write_text("")
    return path


def program(programs: Any, channel: ipcbus.Channel, wrong: Path, **options: Any) -> Program:
    return Program("heir", programs.succession, (channel.sender, str(wrong)), **options)


def story(channel: ipcbus.Channel, count: int) -> list[tuple[str, int]]:
    return [channel.recv(PATIENCE) for _ in range(count)]


def happened(supervisor: Supervisor) -> list[str]:
    return [entry.what for entry in supervisor.history]


@each_method
def test_the_next_one_is_loaded_before_this_one_is_stopped(
    method: Any, programs: Any, channel: ipcbus.Channel, wrong: Path
) -> None:
    with Supervisor([program(programs, channel, wrong)], start_method=method, intensity=0) as supervisor:
        first = supervisor.pids["heir"]
        assert story(channel, 2) == [("loads", first), ("serves", first)]
        supervisor.replace("heir")
        second = supervisor.pids["heir"]
        assert second != first
        assert story(channel, 3) == [("loads", second), ("ends", first), ("serves", second)]
        assert happened(supervisor) == ["started", "ready", "started", "stopped", "ready"]
    assert channel.recv(PATIENCE) == ("ends", second)
    assert supervisor.failure is None


@pytest.mark.parametrize(("what", "why"), [("raise", "does not import"), ("hang", "was not ready within")])
def test_one_that_cannot_take_over_leaves_the_other_alone(
    what: str, why: str, programs: Any, channel: ipcbus.Channel, wrong: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Supervisor([program(programs, channel, wrong)], start_method="forkserver", intensity=0) as supervisor:
        first = supervisor.pids["heir"]
        story(channel, 2)
        wrong.write_text(what)
        supervisor._keeper._ready_timeout = 1.5 if what == "hang" else PATIENCE
        with pytest.raises(StartFailed, match=f"heir was not replaced, and the process that runs goes on: .*{why}"):
            supervisor.replace("heir")
        assert story(channel, 1)[0][0] == "loads"
        assert supervisor.pids == {"heir": first}
        assert happened(supervisor) == ["started", "ready", "started", "kept"]
        assert "was not replaced" in caplog.text
        assert why in supervisor.history[-1].detail
        # And once it is mended it is replaced after all.
        wrong.write_text("")
        supervisor._keeper._ready_timeout = PATIENCE
        supervisor.replace("heir")
        assert [word for word, _ in story(channel, 3)] == ["loads", "ends", "serves"]
    assert supervisor.failure is None


def test_one_that_dies_as_it_takes_over_is_followed_by_another(programs: Any, channel: ipcbus.Channel, wrong: Path) -> None:
    with Supervisor([program(programs, channel, wrong)], start_method="forkserver", intensity=1) as supervisor:
        story(channel, 2)
        wrong.write_text("die late")
        caught: list[BaseException] = []

        def replace() -> None:
            try:
                supervisor.replace("heir")
            except StartFailed as error:
                caught.append(error)

        asking = threading.Thread(target=replace)
        asking.start()
        assert [word for word, _ in story(channel, 2)] == ["loads", "ends"]
        assert [word for word, _ in story(channel, 2)] == ["loads", "serves"]
        asking.join(PATIENCE)
        assert not caught
        assert happened(supervisor)[2:] == ["started", "stopped", "died", "started", "ready"]


def test_one_that_is_killed_is_followed_by_its_heir(programs: Any, channel: ipcbus.Channel, wrong: Path) -> None:
    with Supervisor([program(programs, channel, wrong)], start_method="forkserver") as supervisor:
        first = supervisor.pids["heir"]
        story(channel, 2)
        os.kill(first, signal.SIGSTOP)  # so that it does not end when it is told to
        asking = threading.Thread(target=supervisor.replace, args=("heir",))
        asking.start()
        loads, second = story(channel, 1)[0]
        assert loads == "loads"
        os.kill(first, signal.SIGKILL)
        asking.join(PATIENCE)
        assert supervisor.pids == {"heir": second}
        assert story(channel, 1) == [("serves", second)]


def test_the_end_of_both_at_once(programs: Any, channel: ipcbus.Channel, wrong: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the one in office everything ends here, so its heir is nobody's."""

    def end_both(what: ipcbus.Occurrence) -> None:
        if what.what == "started" and what.pid != supervisor.pids["heir"]:
            for child in supervisor._keeper.roster.everybody:
                os.kill(child.pid, signal.SIGKILL)
                assert ipcbus.wait([child.sentinel], PATIENCE)

    supervisor = Supervisor([program(programs, channel, wrong)], start_method="forkserver", intensity=0, on_event=end_both)
    with supervisor:
        with pytest.raises(StartFailed, match="number 1 within"):
            supervisor.replace("heir")
        with pytest.raises(ipcbus.GaveUp, match="number 1 within"):
            supervisor.wait(PATIENCE)
    assert happened(supervisor)[2:] == ["started", "died", "gave up", "died"]
    assert "the supervisor failed" not in caplog.text


def test_a_storm_of_requests_is_one_or_two_replacements(programs: Any, channel: ipcbus.Channel, wrong: Path) -> None:
    with Supervisor([program(programs, channel, wrong)], start_method="forkserver") as supervisor:
        for _ in range(200):
            supervisor.request_replace("heir")
        supervisor.replace("heir")
        assert 1 <= happened(supervisor).count("stopped") <= 3
        supervisor.request_replace("heir")
        supervisor.stop("heir")  # which wins
        assert supervisor.pids == {}
        with pytest.raises(StartFailed, match="does not run"):
            supervisor.replace("heir")
        with pytest.raises(LookupError):
            supervisor.replace("nobody")
    assert set(happened(supervisor)) <= {"started", "ready", "stopped", "killed"}


def test_stopping_everything_ends_an_heir_that_still_loads(programs: Any, channel: ipcbus.Channel, wrong: Path) -> None:
    with Supervisor([program(programs, channel, wrong)], start_method="forkserver") as supervisor:
        story(channel, 2)
        wrong.write_text("hang")
        supervisor.request_replace("heir")
        _, second = story(channel, 1)[0]
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
    assert happened(supervisor)[-2:] == ["stopped", "stopped"]


def test_one_that_does_not_wait_for_its_turn_is_there_before_the_other_ends(programs: Any, channel: ipcbus.Channel) -> None:
    with Supervisor([Program("both", programs.overlap, (channel.sender,))], start_method="forkserver") as supervisor:
        first = channel.recv(PATIENCE)
        supervisor.replace("both")
        assert supervisor.pids == {"both": channel.recv(PATIENCE)}
        assert first != supervisor.pids["both"]
        assert happened(supervisor) == ["started", "ready", "started", "stopped", "ready"]


def test_a_plain_function_begins_when_the_other_one_has_ended(programs: Any, channel: ipcbus.Channel) -> None:
    plain = Program("plain", programs.plain, (channel.sender,), handshake=False)
    with Supervisor([plain], start_method="forkserver") as supervisor:
        first = channel.recv(PATIENCE)
        supervisor.replace("plain")
        second = channel.recv(PATIENCE)
        assert supervisor.pids == {"plain": second}
        assert first != second
