"""The contract catches what it is there to catch: every mutant is killed, and what is not broken passes everything."""

import subprocess
import sys

import pytest

from ipcbus.testing import contract, mutants
from ipcbus.testing.runner import run_apart
from ipcbus.testing.subject import Subject
from ipcbus.transport import Capabilities

CHECKS = {check.name: check for check in contract.CHECKS}
KILLABLE = [mutant for mutant in mutants.MUTANTS if mutant.killed_by]


@pytest.fixture(autouse=True)
def _registered():
    mutants.register()


@pytest.mark.parametrize("mutant", KILLABLE, ids=lambda mutant: mutant.scheme)
def test_killed(mutant):
    verdict = run_apart(CHECKS[mutant.killed_by], lambda: mutants.MutantSubject(mutant.scheme + ":"), timeout=12)
    assert not verdict.passed, f"{mutant.scheme} {mutant.breaks}, and check_{mutant.killed_by} does not notice"


@pytest.mark.parametrize("name", sorted({mutant.killed_by for mutant in KILLABLE}))
def test_unharmed(name):
    sound = "mutant-none:" if CHECKS[name].scope == "thread" else "mutant-pipe:"
    verdict = run_apart(CHECKS[name], lambda: mutants.MutantSubject(sound), timeout=30)
    assert verdict.passed, verdict.report


BUSY = """
import select, sys, tempfile
while not select.select([sys.stdin], [], [], 0.001)[0]:
    tempfile.mkdtemp(prefix="ipcbus-1-", dir=sys.argv[1])
    print("made", flush=True)
"""


def test_what_other_programs_make_is_not_blamed_on_a_channel(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    other = subprocess.Popen([sys.executable, "-c", BUSY, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"made\n"
    verdict = run_apart(CHECKS["close_frees"], lambda: Subject("inproc:"), timeout=30)
    other.communicate(b"enough", timeout=30)
    assert verdict.passed, verdict.report


def test_a_transport_is_sent_nothing_that_its_medium_cannot_carry():
    def names(capabilities):
        return {check.name for check in contract.checks_for(capabilities)}

    every, fitting = names(Capabilities()), names(Capabilities(max_message=4000))
    assert fitting - every == {"most_that_is_carried"}
    assert {"large_message", "child", "sender_killed", "close_frees"} <= every - fitting
    assert {"fifo", "capacity", "inherited", "request"} <= fitting


def test_there_are_enough():
    assert len(KILLABLE) >= 8
    assert len({mutant.scheme for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
