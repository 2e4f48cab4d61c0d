"""The contract catches what it is there to catch: every mutant is killed, and what is not broken passes everything."""

import pytest

from ipcbus.testing import contract, mutants
from ipcbus.testing.runner import run_apart

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
    verdict = run_apart(CHECKS[name], lambda: mutants.MutantSubject("mutant-none:"), timeout=30)
    assert verdict.passed, verdict.report


def test_there_are_enough():
    assert len(KILLABLE) >= 8
    assert len({mutant.scheme for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
