"""Runs: a plan, measured round by round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipcbus.bench.arena import LIMIT, Arena
from ipcbus.bench.figures import Result
from ipcbus.bench.plan import turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.bench.case import Case

__all__ = ["Effort", "run"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly to measure."""

    rounds: int = 3
    seconds: float = 0.1
    """How long the part of one measurement that counts should take."""
    limit: float = LIMIT
    """Seconds that one measurement may take beyond it, before it counts as stuck."""


def run(cases: Sequence[Case], effort: Effort, progress: Callable[[Case], object] | None = None) -> list[Result]:
    """Measure cases in turn, again and again, and return a result for each.

    Args:
        cases: what.
        effort: how thoroughly. A case that failed or was stuck is not tried again.
        progress: called before each measurement, and once more for each that is left out.
    """
    results = {case: Result(case, []) for case in cases}
    with Arena() as arena:
        for _, case in turns(cases, effort.rounds):
            if progress is not None:
                progress(case)
            result = results[case]
            if result.problem is not None:
                continue
            outcome = arena.run(case, effort.seconds, effort.limit)
            if outcome.sample is not None:
                result.samples.append(outcome.sample)
            else:
                result.problem, result.stuck = outcome.problem, outcome.stuck
    return [results[case] for case in cases]
