"""A process is killed at a random instant, and the others go on; beside it, what a bare multiprocessing.Queue does."""

import importlib.util

import pytest

from ipcbus.testing.faults import BareQueue, kills, run_trials, table

CAPACITY = 16
SENDERS = 2
KILLS = kills()
REPORTS = []
SHM = pytest.param("shm", marks=pytest.mark.skipif(not importlib.util.find_spec("ipcbus_shm"), reason="not installed"))
"""Compiled, and not everywhere."""
CAREFUL = ["unix:", pytest.param("shm:", marks=SHM.marks), pytest.param("shm:?ring_bytes=16384", marks=SHM.marks)]
"""Those that lose at most one message; with a small ring, all but the smallest go beside it."""


def _run(url, victim, count):
    report = run_trials(url, victim, count, senders=SENDERS, capacity=CAPACITY)
    REPORTS.append(report)
    return report


def _with(report, count):
    return next(trial for trial in report.trials if getattr(trial, count))


def _assert_sound(report):
    seeds = [trial.seed for trial in report.stuck]
    assert not report.stuck, f"stuck with seeds {seeds}: {report.stuck[0].stuck}"
    for count in ("duplicated", "reordered", "torn", "unexpected"):
        assert report.total(count) == 0, f"{count}: {_with(report, count)}"
    assert report.total("accepted") > 0
    assert set(report.errors) <= {"ChannelFull", "PeerDied", "ChannelBroken"}


@pytest.mark.parametrize("scheme", ["pipe", "unix", SHM, "zmq"])
def test_sender_killed(scheme):
    report = _run(f"{scheme}:", "sender", KILLS)
    _assert_sound(report)
    assert report.total("lost") == 0, f"accepted of a survivor and lost: {_with(report, 'lost')}"


@pytest.mark.parametrize("scheme", ["pipe", "unix", SHM, "zmq"])
def test_receiver_killed(scheme):
    report = _run(f"{scheme}:", "receiver", KILLS)
    _assert_sound(report)
    for trial in report.trials:
        assert trial.succeeded, f"a successor received nothing: {trial}"
        # What every transport may lose with its receiver: what it had been given room for, and the one in its hand.
        assert trial.lost <= SENDERS * (CAPACITY + 1), f"more than the capacity was lost with the receiver: {trial}"


@pytest.mark.parametrize("url", CAREFUL)
@pytest.mark.parametrize("capacity", [1, CAPACITY])
@pytest.mark.parametrize("receivers", [1, 2])
def test_one_message_is_lost_with_a_receiver(receivers, capacity, url):
    report = run_trials(url, "receiver", KILLS, senders=SENDERS, receivers=receivers, capacity=capacity)
    REPORTS.append(report)
    if receivers > 1:
        assert not report.errors
    _assert_sound(report)
    assert max(trial.lost for trial in report.trials) <= 1


@pytest.mark.parametrize("url", CAREFUL)
def test_nothing_is_lost_with_one_of_several_senders(url):
    report = run_trials(url, "sender", KILLS, senders=4, receivers=2, capacity=2)
    REPORTS.append(report)
    _assert_sound(report)
    assert report.total("lost") == report.total("lost_of_victim") == 0


@pytest.mark.slow
def test_table(capsys):
    for victim in ("sender", "receiver"):
        _run(BareQueue, victim, 4)
    with capsys.disabled():
        print("\n" + table(REPORTS))
