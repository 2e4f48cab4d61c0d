"""The engine with real processes: every carrier in every scenario once, and what becomes of those that fail or hang."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ipcbus.bench.arena import Arena
from ipcbus.bench.case import SCENARIOS, Case
from ipcbus.bench.channels import ChannelCarrier, installed
from ipcbus.bench.crew import carrier_of
from ipcbus.bench.foreign import ICEORYX_PREFIX, PEERS
from ipcbus.bench.messages import Message
from ipcbus.bench.plan import Wish, make_plan
from ipcbus.bench.run import Effort, run
from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.kin import members

PROGRAMS = Path(__file__).parent / "programs"
BYTES = Message("bytes", 64)
SHORT = 0.003


@pytest.fixture(scope="module")
def arena():
    with Arena() as arena:
        yield arena


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Let an arena find the programs, and return the file in which they write their pids."""
    monkeypatch.setattr(sys, "path", [str(PROGRAMS), *sys.path])
    pids = tmp_path / "pids"
    monkeypatch.setenv("HANGING_PIDS", str(pids))
    return pids


def carriers():
    yield from installed()[0]
    yield from (name for name, peer in PEERS.items() if peer.missing() is None)


def cases():
    for scenario in SCENARIOS:
        message = Message("array", 1 << 20) if scenario == "arrays" else Message("dict", 64)
        senders, receivers = (3 if scenario == "fan-in" else 1), (3 if scenario == "fan-out" else 1)
        for name in carriers():
            for each in (message, BYTES) if scenario == "one-way" else (message,):
                case = Case(scenario, name, each, senders=senders, receivers=receivers)
                carrier = carrier_of(case)
                if scenario in carrier.scenarios and carrier.refuses(scenario, each, senders, receivers) is None:
                    yield case


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case.scenario}-{case.name}-{case.message.kind}")
def test_every_carrier_in_every_scenario(arena, case):
    outcome = arena.run(case, SHORT, limit=20)
    assert outcome.problem is None
    sample = outcome.sample
    assert 1e-8 < sample.seconds < 1
    assert sample.messages >= 2
    assert (sample.slow is not None) == case.trips
    if case.trips:
        assert sample.slow >= sample.seconds


@pytest.mark.parametrize(("kind", "serializer"), [("dict", "json"), ("protobuf", "protobuf"), ("dict", "msgpack")])
def test_receivers_that_compete_are_told_the_end_by_every_serializer(arena, kind, serializer):
    case = Case("fan-out", "unix:", Message(kind, 64), serializer, receivers=3)
    assert arena.run(case, SHORT, limit=20).problem is None


def test_an_empty_message_cannot_be_told_from_the_end(programs):
    with Arena() as arena:
        outcome = arena.run(Case("fan-out", "unix:", Message("hanging:empty", None), receivers=2), SHORT, limit=5)
    assert outcome.problem == "the message must not be empty: receivers that compete take b'' for the end"


def test_a_measurement_takes_about_as_long_as_it_should(arena):
    began = time.monotonic()
    outcome = arena.run(Case("one-way", "pipe:", BYTES), 0.2)
    assert 0.02 < outcome.sample.seconds * outcome.sample.messages < 2
    assert time.monotonic() - began < 10


def test_rounds_of_all_cases():
    plan = make_plan(
        Wish(("one-way",), "bytes", (64,)), [(ChannelCarrier("unix:"), "auto"), (PEERS["multiprocessing.Pipe"], "auto")]
    )
    seen = []
    results = run(plan.cases, Effort(2, SHORT), seen.append)
    assert [case.carrier for case in seen] == ["unix:", "multiprocessing.Pipe", "multiprocessing.Pipe", "unix:"]
    assert [(result.case.carrier, len(result.samples), result.problem) for result in results] == [
        ("unix:", 2, None), ("multiprocessing.Pipe", 2, None),
    ]  # fmt: skip


def gone(pid):
    """Tell whether a process has ended, or is only still to be waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until_it_hangs(programs, measure):
    """Measure with a limit until it comes as far as that within it, on a busy machine; return what came of that."""
    limit = 1.5
    while True:
        outcome = measure(limit)
        assert outcome.stuck
        if programs.exists():
            return outcome
        limit *= 2


@pytest.mark.parametrize("carrier", ["unix:", "multiprocessing.Queue"])
def test_one_that_hangs_is_killed_and_the_next_is_measured(programs, carrier):
    with Arena() as arena:
        began = time.monotonic()
        case = Case("one-way", carrier, Message("hanging:waits", None))
        outcome = until_it_hangs(programs, lambda limit: arena.run(case, SHORT, limit=limit))
        assert time.monotonic() - began < 20  # and not the half minute that it may take by itself
        assert re.fullmatch(r"stuck: no result after \d s, so its processes were killed", outcome.problem)
        (pid,) = map(int, programs.read_text().split())
        assert gone(pid)
        assert arena.run(Case("one-way", carrier, BYTES), SHORT).problem is None


def test_one_that_hangs_before_it_begins_is_killed_too(programs):
    with Arena() as arena:
        case = Case("one-way", "pipe:", Message("hanging:forever", None))
        until_it_hangs(programs, lambda limit: arena.run(case, SHORT, limit=limit))
        assert all(gone(int(pid)) for pid in programs.read_text().split())


def test_what_hangs_is_not_tried_again(programs):
    case = Case("one-way", "unix:", Message("hanging:waits", None))
    until_it_hangs(programs, lambda limit: run([case], Effort(3, SHORT, limit=limit))[0])
    assert len(programs.read_text().split()) == 1


def test_a_death_is_told_by_its_signal(programs):
    with Arena() as arena:
        outcome = arena.run(Case("one-way", "unix:", Message("hanging:dies", None)), SHORT)
    assert not outcome.stuck
    assert "the receiver was killed by SIGKILL" in outcome.problem


def test_what_arrives_changed_is_told(programs):
    with Arena() as arena:
        outcome = arena.run(Case("one-way", "unix:", Message("hanging:changes", None)), SHORT)
    assert "the receiver failed: something else arrived than was sent: 'something else'" in outcome.problem


def test_a_message_that_cannot_travel_is_told_at_once(arena):
    began = time.monotonic()
    outcome = arena.run(Case("one-way", "unix:", Message("threading:RLock", None)), SHORT)
    assert "cannot travel" in outcome.problem
    assert time.monotonic() - began < 4


def test_an_arena_that_is_killed_is_told():
    with Arena() as arena:
        assert arena.run(Case("one-way", "pipe:", BYTES), SHORT).problem is None
        os.kill(arena._process.pid, signal.SIGKILL)
        arena._process.wait(10)
        with pytest.raises(ChannelBroken, match="the process that measures ended"):
            arena.run(Case("one-way", "pipe:", BYTES), SHORT)


def test_an_arena_that_is_killed_at_work_leaves_nothing(programs):
    case = Case("one-way", "unix:", Message("hanging:waits", None))
    os.mkfifo(programs)
    with Arena() as arena, ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(arena.run, case, SHORT)
        hung = int(programs.read_text())
        os.kill(arena._process.pid, signal.SIGKILL)
        with pytest.raises(ChannelBroken, match="the process that measures ended"):
            outcome.result(5)
    assert gone(hung)
    assert all(map(gone, members("session", arena._process.pid)))


def test_what_is_killed_leaves_no_directory(programs, monkeypatch):
    place = tempfile.mkdtemp(prefix="a-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", place)
    with Arena() as arena:
        assert arena.run(Case("one-way", "zmq:", Message("hanging:waits", None)), SHORT, limit=1).stuck
    Path(place).rmdir()  # which fails if anything is in there


def test_an_arena_leaves_no_file(monkeypatch):
    place = tempfile.mkdtemp(prefix="a-")  # short, for the path of a socket has 107 bytes
    monkeypatch.setattr(tempfile, "tempdir", place)
    names = [name for name in ("pyzmq send", "iceoryx2", "Manager().Queue()", "zmq:") if name in {*PEERS, "zmq:"}]
    with Arena() as arena:
        for name in names:
            if name == "zmq:" or PEERS[name].missing() is None:
                assert arena.run(Case("one-way", name, BYTES), SHORT).problem is None
    Path(place).rmdir()  # which fails if anything is in there
    assert not list(Path("/dev/shm").glob(f"{ICEORYX_PREFIX.format(arena._process.pid)}*"))
