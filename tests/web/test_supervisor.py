from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ipcbus
from ipcbus.supervisor import Program, StartFailed, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20.0
METHODS = ("spawn", "forkserver")


@pytest.fixture
def channel() -> Iterator[ipcbus.Channel]:
    with ipcbus.open("pipe:") as channel:
        yield channel


def happened(supervisor: Supervisor, what: str) -> list[str]:
    return [entry.name for entry in supervisor.history if entry.what == what]


@pytest.mark.parametrize("method", METHODS)
def test_all_are_started_together_and_stopped_last_group_first(programs: Any, channel: ipcbus.Channel, method: Any) -> None:
    groups = [
        [Program("a", programs.serve, (channel.sender,))],
        [Program(name, programs.serve, (channel.sender,)) for name in "bc"],
    ]
    with Supervisor(groups, method=method) as supervisor:
        assert sorted(happened(supervisor, "ready")) == ["a", "b", "c"]
        told = {channel.recv(PATIENCE) for _ in range(3)}
        assert {(name, pid) for name, _, pid in told} == set(supervisor.pids.items())
        assert supervisor.wait(0) is None
    assert supervisor.wait() == 0
    assert sorted(happened(supervisor, "stopped")[:2]) == ["b", "c"]
    assert happened(supervisor, "stopped")[2] == "a"
    assert supervisor.pids == {}
    supervisor.stop()


def test_a_killed_process_is_started_again_with_the_same_arguments(programs: Any, channel: ipcbus.Channel) -> None:
    with Supervisor(
        [[Program("a", programs.serve, (channel.sender,)), Program("b", programs.serve, (channel.sender,))]]
    ) as supervisor:
        told = {name: pid for name, _, pid in (channel.recv(PATIENCE) for _ in range(2))}
        os.kill(told["a"], signal.SIGKILL)
        name, incarnation, pid = channel.recv(PATIENCE)
        assert (name, incarnation) == ("a", 1)
        assert supervisor.pids == {"a": pid, "b": told["b"]}
        (death,) = [entry for entry in supervisor.history if entry.what == "died"]
        assert (death.pid, death.detail) == (told["a"], "was killed by SIGKILL")


def test_dying_too_often_stops_everything(programs: Any, channel: ipcbus.Channel) -> None:
    with ipcbus.open("pipe:") as told:
        groups = [
            [Program("steady", programs.serve, (told.sender,))],
            [Program("weak", programs.dies_at_once, (channel.receiver,))],
        ]
        with Supervisor(groups, intensity=3, period=60) as supervisor:
            _, _, pid = told.recv(PATIENCE)
            channel.send("go")
            assert supervisor.wait(PATIENCE) == 1
            assert supervisor.failure is not None
            assert "weak ended with exit code 0" in supervisor.failure
            assert happened(supervisor, "started").count("weak") == 4
            assert happened(supervisor, "stopped") == ["steady"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_deaths_long_ago_are_forgiven(programs: Any, channel: ipcbus.Channel) -> None:
    with Supervisor([[Program("a", programs.serve, (channel.sender,))]], intensity=1, period=0.001) as supervisor:
        for _ in range(4):
            os.kill(channel.recv(PATIENCE)[2], signal.SIGKILL)
        assert channel.recv(PATIENCE)[:2] == ("a", 4)
        assert supervisor.failure is None


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("raises", "bad ended with exit code 1 before everything was ready; it said: RuntimeError: the disk is full"),
        ("returns", "bad ended with exit code 0 before"),
        ("never_ready", "bad was not ready within 2 seconds"),
    ],
)
def test_what_does_not_become_ready_fails_the_start(programs: Any, channel: ipcbus.Channel, target: str, why: str) -> None:
    groups = [[Program("good", programs.serve, (channel.sender,))], [Program("bad", getattr(programs, target))]]
    supervisor = Supervisor(groups, ready_timeout=2)
    with pytest.raises(StartFailed, match=why):
        supervisor.start()
    assert supervisor.pids == {}
    assert supervisor.wait(0) == 1
    with pytest.raises(StartFailed, match="make another"):
        supervisor.start()


def test_what_cannot_be_sent_to_a_process_fails_the_start(programs: Any) -> None:
    with pytest.raises(StartFailed, match="pickle"):
        Supervisor([[Program("bad", programs.serve, (lambda: None,))]]).start()


def test_what_ignores_sigterm_is_killed(programs: Any) -> None:
    with Supervisor([[Program("stubborn", programs.stubborn)]], stop_timeout=0.3) as supervisor:
        pid = supervisor.pids["stubborn"]
    assert happened(supervisor, "killed") == ["stubborn"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_names_are_unique(programs: Any) -> None:
    with pytest.raises(ValueError, match="unique"):
        Supervisor([[Program("a", programs.returns)], [Program("a", programs.returns)]])


SCRIPT = """
import sys
sys.path.insert(0, {path!r})
import web_programs, ipcbus
from ipcbus.supervisor import Program, Supervisor
if __name__ == "__main__":
    channel = ipcbus.open("pipe:")
    groups = [[Program("a", web_programs.serve, (channel.sender,)), Program("b", web_programs.stubborn)]]
    supervisor = Supervisor(groups, method={method!r}, stop_timeout=0.3).start()
    print(*supervisor.pids.values(), flush=True)
    {then}
"""


def start(tmp_path: Path, method: str, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=str(Path(__file__).parent / "programs"), method=method, then=then))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [int(word) for word in process.stdout.readline().split()]


@pytest.mark.parametrize("method", METHODS)
def test_no_process_outlives_a_killed_supervisor(tmp_path: Path, method: str, gone: Callable[[int, float], bool]) -> None:
    process, pids = start(tmp_path, method, "supervisor.wait()")
    with process:
        assert len(pids) == 2
        process.kill()
        process.wait(PATIENCE)
        assert all(gone(pid, PATIENCE) for pid in pids)


def test_a_program_that_ends_without_stopping_leaves_nothing_behind(tmp_path: Path, gone: Callable[[int, float], bool]) -> None:
    process, pids = start(tmp_path, "spawn", "pass")
    with process:
        assert process.wait(PATIENCE) == 0
        assert all(gone(pid, PATIENCE) for pid in pids)
